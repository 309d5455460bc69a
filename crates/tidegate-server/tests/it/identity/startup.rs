//! The start of a server: credentials that it takes, and credentials that it refuses to start with.

use rcgen::KeyPair;
use tidegate_server::{
    AuthConfig, BindError, JwksUrl, JwtKeys, ListenAddress, Server, ServerConfig,
};

use super::{auth, jwt};
use crate::pki::Folder;

#[test]
fn the_admin_service_is_served_where_callers_authenticate() {
    let open = ServerConfig {
        listen: "0.0.0.0:0".parse().unwrap(),
        ..ServerConfig::default()
    };
    assert!(!open.serves_admin());
    let guarded = ServerConfig {
        auth: AuthConfig {
            tokens: Some("tokens".into()),
            ..AuthConfig::default()
        },
        ..open
    };
    assert!(guarded.serves_admin());
    let off = ServerConfig {
        admin: Some(false),
        ..guarded
    };
    assert!(!off.serves_admin());
}

#[tokio::test]
async fn credentials_need_tls_or_loopback_or_insecure() {
    let folder = Folder::new();
    let listen: ListenAddress = "0.0.0.0:0".parse().unwrap();
    let config = |insecure| ServerConfig {
        listen: listen.clone(),
        auth: AuthConfig {
            insecure,
            ..auth(&folder, None)
        },
        ..ServerConfig::default()
    };
    let error = Server::bind(config(false)).await.unwrap_err();
    assert!(matches!(error, BindError::PlaintextCredentials { address } if address == listen));
    assert!(Server::bind(config(true)).await.is_ok());
    // Nobody is asked for anything there.
    let open = ServerConfig {
        listen,
        ..ServerConfig::default()
    };
    assert!(Server::bind(open).await.is_ok());
}

#[tokio::test]
async fn unusable_credentials_stop_the_start() {
    let folder = Folder::new();
    let key = |content: &str| JwtKeys::Pem(folder.write("key.pem", content));
    let private = KeyPair::generate().unwrap().serialize_pem();
    let bad_jwt = [
        vec![],
        vec![key("no key")],
        vec![key(&private)],
        vec![JwtKeys::Secret(folder.write("secret", "short"))],
        vec![JwtKeys::JwksFile(
            folder.write("keys.json", "{\"keys\": []}"),
        )],
        vec![JwtKeys::JwksUrl(JwksUrl::new("http://keys.example/"))],
        vec![JwtKeys::JwksUrl(JwksUrl::new("keys.example"))],
        vec![JwtKeys::Pem("/nowhere".into())],
    ];
    let mut bad: Vec<_> = bad_jwt
        .into_iter()
        .map(|keys| auth(&folder, Some(jwt(keys))))
        .collect();
    bad.push(AuthConfig {
        tokens: Some(folder.write("bad-tokens", "alice alice-token")),
        ..AuthConfig::default()
    });
    for auth in bad {
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = ServerConfig {
            listen,
            auth,
            ..ServerConfig::default()
        };
        let error = Server::bind(config).await.unwrap_err();
        assert!(matches!(error, BindError::Security(_)), "{error:?}");
        let told = error.to_string();
        assert!(
            !told.contains("alice-token") && !told.contains("short"),
            "{told}"
        );
    }
}
