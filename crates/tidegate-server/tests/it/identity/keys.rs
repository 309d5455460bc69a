//! Keys for JSON Web Tokens, from files and from addresses.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::PublicKeyData as _;
use serde_json::{Value, json};
use tidegate_server::{JwksUrl, JwtKeys};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time,
};
use tonic::Code;

use super::{Signer, auth, base64url, bearer, claims, jwt, start};
use crate::{
    common::*,
    pki::{Folder, end},
};

#[tokio::test]
async fn a_token_needs_the_algorithm_of_its_key() {
    let folder = Folder::new();
    let secret = "a secret of thirty-two bytes or more";
    let signers = [Signer::rsa(), Signer::p256(), Signer::ed25519()];
    let mut keys: Vec<_> = signers
        .iter()
        .enumerate()
        .map(|(i, signer)| JwtKeys::Pem(folder.write(&format!("{i}.pem"), &signer.public)))
        .collect();
    keys.push(JwtKeys::Secret(
        folder.write("secret", format!("{secret}\n")),
    ));
    let server = start(auth(&folder, Some(jwt(keys)))).await;
    for signer in &signers {
        let token = signer.sign(&claims("dora"));
        bearer(&server, &token)
            .await
            .publish("orders.a")
            .await
            .unwrap();
    }
    let with_secret = |algorithm, secret: &[u8]| {
        let key = EncodingKey::from_secret(secret);
        encode(&Header::new(algorithm), &claims("dora"), &key).unwrap()
    };
    let good = with_secret(Algorithm::HS256, secret.as_bytes());
    bearer(&server, &good)
        .await
        .publish("orders.a")
        .await
        .unwrap();

    let mut forged = vec![
        with_secret(Algorithm::HS384, secret.as_bytes()),
        with_secret(Algorithm::HS512, secret.as_bytes()),
    ];
    for signer in &signers {
        // The public key, in each form in which it is known, taken for a secret.
        let der = signer.pair.subject_public_key_info();
        for public in [
            signer.public.as_bytes(),
            signer.public.trim_end().as_bytes(),
            &der,
            signer.pair.der_bytes(),
        ] {
            forged.push(with_secret(Algorithm::HS256, public));
        }
    }
    let rsa = &signers[0];
    for algorithm in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256] {
        forged.push(encode(&Header::new(algorithm), &claims("dora"), &rsa.key).unwrap());
    }
    // Without a signature, and with one over another header.
    let parts: Vec<&str> = good.split('.').collect();
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"None"}"#,
        r#"{"typ":"JWT"}"#,
        r#"{"alg":"RS256"}"#,
    ] {
        let header = base64url(header.as_bytes());
        forged.push(format!("{header}.{}.", parts[1]));
        forged.push(format!("{header}.{}.{}", parts[1], parts[2]));
    }
    for token in forged {
        let status = bearer(&server, &token)
            .await
            .publish("orders.a")
            .await
            .unwrap_err();
        assert_eq!(reason(&status), "CREDENTIALS_INVALID", "{token}");
    }
}

/// Serves a key set over HTTP, and counts how often it is asked for.
struct KeyServer {
    url: String,
    set: Arc<Mutex<Value>>,
    asked: Arc<AtomicUsize>,
}

impl KeyServer {
    async fn start(keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            url: format!("http://{}/keys", listener.local_addr().unwrap()),
            set: Arc::new(Mutex::new(json!({ "keys": keys }))),
            asked: Arc::default(),
        };
        let (set, asked) = (Arc::clone(&server.set), Arc::clone(&server.asked));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4_096];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /keys HTTP/1.1\r\n"));
                asked.fetch_add(1, Relaxed);
                let body = set.lock().unwrap().to_string();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                stream
                    .write_all(format!("{head}{body}").as_bytes())
                    .await
                    .unwrap();
            }
        });
        server
    }

    fn set(&self, keys: &[Value]) {
        *self.set.lock().unwrap() = json!({ "keys": keys });
    }

    fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

#[tokio::test]
async fn an_unknown_key_has_the_key_set_fetched_at_most_by_interval() {
    let (folder, first, second) = (Folder::new(), Signer::p256(), Signer::p256());
    let keys = KeyServer::start(&[first.jwk("one")]).await;
    let mut set = JwksUrl::new(&keys.url);
    set.unknown_key_interval = Duration::from_millis(200);
    let server = start(auth(&folder, Some(jwt(vec![JwtKeys::JwksUrl(set)])))).await;
    let dora = bearer(&server, &first.sign_as("one", &claims("dora"))).await;
    dora.publish("orders.a").await.unwrap();
    let stream = dora.subscribe("", &["orders.b"]).await.unwrap();

    keys.set(&[first.jwk("one"), second.jwk("two")]);
    let by_second = second.sign_as("two", &claims("dora"));
    let is_accepted = async || {
        let bearer = bearer(&server, &by_second).await;
        bearer.publish("orders.a").await.is_ok()
    };
    let pause = Duration::from_millis(10);
    assert!(
        comes_true(pause, is_accepted).await,
        "the new key was never fetched"
    );

    let (before, began) = (keys.asked(), std::time::Instant::now());
    for i in 0..300 {
        let token = second.sign_as(&format!("../../{i}"), &claims("dora"));
        let status = bearer(&server, &token)
            .await
            .publish("orders.a")
            .await
            .unwrap_err();
        assert_eq!(reason(&status), "CREDENTIALS_INVALID");
    }
    let at_most = began.elapsed().as_millis() / 200 + 1;
    let asked = (keys.asked() - before) as u128;
    assert!(
        asked <= at_most,
        "asked {asked} times, at most {at_most} are due"
    );

    // A file that is no key set leaves the keys, and a key that is gone takes its streams with it.
    *keys.set.lock().unwrap() = json!("nothing");
    server.reloader.reload().await.unwrap();
    dora.publish("orders.a").await.unwrap();
    keys.set(&[second.jwk("two")]);
    server.reloader.reload().await.unwrap();
    let (_, status) = time::timeout(PATIENCE, end(stream)).await.unwrap();
    assert_eq!(reason(&status), "CREDENTIALS_REVOKED");
}

#[tokio::test]
async fn keys_expire_when_their_set_cannot_be_fetched() {
    let (folder, signer) = (Folder::new(), Signer::p256());
    let keys = KeyServer::start(&[signer.jwk("one")]).await;
    let mut set = JwksUrl::new(&keys.url);
    set.unknown_key_interval = Duration::from_millis(100);
    set.max_age = Some(Duration::from_secs(1));
    let server = start(auth(&folder, Some(jwt(vec![JwtKeys::JwksUrl(set)])))).await;
    let token = signer.sign_as("one", &claims("dora"));
    let dora = bearer(&server, &token).await;
    let bob = bearer(&server, "bob-token").await;
    dora.publish("orders.a").await.unwrap();
    // As long as it can be had it is trusted, however seldom it is looked at unasked.
    time::sleep(Duration::from_secs(4)).await;
    dora.publish("orders.a").await.unwrap();
    assert_eq!(server.controls.stats().key_fetch_failures, 0);

    let stream = dora.subscribe("", &["orders.b"]).await.unwrap();
    *keys.set.lock().unwrap() = json!("nothing");
    let (_, status) = time::timeout(PATIENCE, end(stream)).await.unwrap();
    assert_eq!(reason(&status), "CREDENTIALS_REVOKED");
    assert!(server.controls.stats().key_fetch_failures > 0);
    for bearer in [dora.clone(), bearer(&server, &token).await] {
        let status = bearer.publish("orders.a").await.unwrap_err();
        assert_eq!(
            (status.code(), &*reason(&status)),
            (Code::Unavailable, "KEYS_UNAVAILABLE")
        );
    }
    // Other credentials are none of its business.
    bob.publish("orders.a").await.unwrap();

    keys.set(&[signer.jwk("one")]);
    let is_accepted = async || dora.publish("orders.a").await.is_ok();
    assert!(
        comes_true(Duration::from_millis(20), is_accepted).await,
        "the keys are never trusted again"
    );
    let stranger = Signer::p256().sign_as("one", &claims("dora"));
    let status = bearer(&server, &stranger).await.publish("orders.a").await;
    assert_eq!(reason(&status.unwrap_err()), "CREDENTIALS_INVALID");
}

#[tokio::test]
async fn a_key_is_used_under_its_own_name_only() {
    let (folder, first, second) = (Folder::new(), Signer::p256(), Signer::p256());
    let set = json!({ "keys": [first.jwk("one"), second.jwk("two"), { "kty": "other", "kid": "three" }] });
    let keys = vec![JwtKeys::JwksFile(
        folder.write("keys.json", set.to_string()),
    )];
    let server = start(auth(&folder, Some(jwt(keys)))).await;
    for (token, is_good) in [
        (first.sign_as("one", &claims("dora")), true),
        (second.sign_as("two", &claims("dora")), true),
        (second.sign(&claims("dora")), true),
        (second.sign_as("one", &claims("dora")), false),
        (second.sign_as("three", &claims("dora")), false),
    ] {
        let published = bearer(&server, &token).await.publish("orders.a").await;
        assert_eq!(published.is_ok(), is_good, "{token}");
    }
}

#[tokio::test]
async fn withdrawn_key_ends_its_tokens_while_another_file_cannot_be_read() {
    let (folder, first, second) = (Folder::new(), Signer::p256(), Signer::p256());
    let keys = [("first.pem", &first), ("second.pem", &second)];
    let keys = keys.map(|(name, signer)| JwtKeys::Pem(folder.write(name, &signer.public)));
    let server = start(auth(&folder, Some(jwt(keys.into())))).await;
    let dora = bearer(&server, &first.sign(&claims("dora"))).await;
    let erin = bearer(&server, &second.sign(&claims("erin"))).await;
    erin.publish("orders.a").await.unwrap();
    folder.write("first.pem", "no key");
    folder.write("second.pem", &Signer::p256().public);
    let errors = server.reloader.reload().await.unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].to_string().contains("first.pem"), "{errors:?}");
    let status = erin.publish("orders.a").await.unwrap_err();
    assert_eq!(reason(&status), "CREDENTIALS_INVALID");
    dora.publish("orders.a").await.unwrap();
}
