//! TLS over real sockets: who is let in, what is refused, and certificates that change.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use rcgen::SanType;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tidegate_server::{
    AuthConfig, BindError, ClientAuth, Http2Config, ListenAddress, Server, ServerConfig, TlsConfig,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{self, Channel};

use crate::{
    common::*,
    pki::{Authority, Bearer, Folder, Pair, end, tls_endpoint},
};

const RULES: &str = "[[rule]]
principals = ['*']
publish = { allow = ['>'] }
subscribe = { allow = ['>'] }
";

fn config(folder: &Folder, pair: &Pair) -> ServerConfig {
    let (certificate, key) = folder.write_pair(pair);
    ServerConfig {
        tls: Some(TlsConfig::new(certificate, key)),
        ..ServerConfig::default()
    }
}

/// A server that asks for certificates that `clients` signed.
struct Mutual {
    folder: Folder,
    authority: Authority,
    clients: Authority,
    server: Running,
}

impl Mutual {
    async fn start(auth: ClientAuth) -> Self {
        Self::start_with_revoked(auth, None).await
    }

    /// The same, with these serial numbers on a list of revoked certificates.
    async fn start_with_revoked(auth: ClientAuth, revoked: Option<&[u64]>) -> Self {
        let (folder, authority) = (Folder::new(), Authority::new("test"));
        let clients = Authority::new("clients");
        let mut config = config(&folder, &authority.server());
        let tls = config.tls.as_mut().unwrap();
        tls.client_ca = Some(folder.write("clients.pem", &clients.pem));
        tls.client_auth = auth;
        let list = revoked.map(|serials| folder.write("crl.pem", clients.revoked(serials)));
        tls.client_crls.extend(list);
        config.auth.rules_file = Some(folder.write("rules.toml", RULES));
        Self {
            server: Running::start(config).await,
            folder,
            authority,
            clients,
        }
    }

    /// Connects with a certificate of `billing` that has this serial number.
    async fn connect(&self, serial: u64) -> Result<Channel, transport::Error> {
        let pair = self.clients.numbered_client("billing", serial);
        tls_endpoint(self.server.address, &self.authority, Some(&pair))
            .connect()
            .await
    }
}

/// Shakes hands with these protocols on offer.
async fn shake_hands(
    server: &Running,
    authority: &Authority,
    protocols: &[&[u8]],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// The certificate that the server shows now.
async fn shown(server: &Running, authority: &Authority) -> Vec<u8> {
    let stream = shake_hands(server, authority, &[b"h2"]).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn der(pair: &Pair) -> Vec<u8> {
    CertificateDer::from_pem_slice(pair.certificate.as_bytes())
        .unwrap()
        .to_vec()
}

/// A status that is none of the server's: there was no connection to send one over.
async fn is_refused(connected: Result<tonic::transport::Channel, tonic::transport::Error>) {
    // With TLS 1.3 a client learns only with its first read that its certificate was refused.
    if let Ok(channel) = connected {
        let status = Bearer::new(channel, None).publish("t").await.unwrap_err();
        assert_ne!(status.code(), tonic::Code::Unauthenticated, "{status:?}");
        assert!(
            std::error::Error::source(&status).is_some(),
            "the server answered {status:?}"
        );
    }
}

#[tokio::test]
async fn events_go_over_tls_however_slowly_they_are_read() {
    let (folder, authority) = (Folder::new(), Authority::new("test"));
    let server = Running::start(config(&folder, &authority.server())).await;
    let endpoint = tls_endpoint(server.address, &authority, None);
    let mut publisher = server.client_over(endpoint.connect().await.unwrap());
    let mut client = server.client_over(endpoint.connect().await.unwrap());
    let mut stream = subscribe(&mut client, filters(&["t"])).await;
    // More than the socket and all buffers before it hold, in pieces that are no multiple of anything.
    for _ in 0..40 {
        let events = vec![event("t", vec![7; 99_991]); 10];
        publish(&mut publisher, events).await.unwrap();
        stream.events(10).await;
    }
    let events = vec![event("t", vec![7; 1_000]); 1_000];
    publish(&mut publisher, events).await.unwrap();
    assert_eq!(stream.events(1_000).await.len(), 1_000);
}

#[tokio::test]
async fn a_client_must_choose_http2_by_alpn() {
    let (folder, authority) = (Folder::new(), Authority::new("test"));
    let server = Running::start(config(&folder, &authority.server())).await;
    assert!(
        shake_hands(&server, &authority, &[b"h2", b"http/1.1"])
            .await
            .is_ok()
    );
    assert!(
        shake_hands(&server, &authority, &[b"http/1.1"])
            .await
            .is_err()
    );
    // Without a protocol the handshake succeeds, and the connection ends before anything is read.
    let mut silent = shake_hands(&server, &authority, &[]).await.unwrap();
    let read = time::timeout(PATIENCE, silent.read_u8()).await.unwrap();
    assert!(read.is_err());
    // A client that does not trust the authority does not connect.
    let stranger = Authority::new("stranger");
    assert!(shake_hands(&server, &stranger, &[b"h2"]).await.is_err());
}

#[tokio::test]
async fn an_unfinished_handshake_ends_at_the_deadline() {
    let (folder, authority) = (Folder::new(), Authority::new("test"));
    let preface_timeout = Duration::from_millis(500);
    let server = Running::start(ServerConfig {
        http2: Http2Config {
            preface_timeout,
            ..Http2Config::default()
        },
        ..config(&folder, &authority.server())
    })
    .await;
    let began = Instant::now();
    let mut half_handshakes = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // The begin of a record with a ClientHello, which never ends.
        stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        half_handshakes.push(stream);
    }
    // The handshake and the preface share one deadline.
    let mut no_preface = shake_hands(&server, &authority, &[b"h2"]).await.unwrap();

    let endpoint = tls_endpoint(server.address, &authority, None);
    let client = Bearer::new(endpoint.connect().await.unwrap(), None);
    client.publish("t").await.unwrap();
    for stream in &mut half_handshakes {
        let closed = time::timeout(PATIENCE, stream.read_u8()).await;
        assert!(closed.expect("it is still open").is_err());
    }
    let closed = time::timeout(PATIENCE, no_preface.read_u8()).await;
    assert!(closed.expect("it is still open").is_err());
    assert!(began.elapsed() >= preface_timeout);
    client.publish("t").await.unwrap();
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_a_bad_one_none() {
    let (folder, authority) = (Folder::new(), Authority::new("test"));
    let first = authority.server();
    let server = Running::start(config(&folder, &first)).await;
    let endpoint = tls_endpoint(server.address, &authority, None);
    let mut publisher = server.client_over(endpoint.connect().await.unwrap());
    let mut client = server.client_over(endpoint.connect().await.unwrap());
    let mut stream = subscribe(&mut client, filters(&["t"])).await;
    assert_eq!(shown(&server, &authority).await, der(&first));

    let mut latest = first;
    for _ in 0..100 {
        latest = authority.server();
        folder.write_pair(&latest);
        server.reloader.reload().await.unwrap();
        publish(&mut publisher, vec![event("t", "x")])
            .await
            .unwrap();
        stream.events(1).await;
    }
    assert_eq!(shown(&server, &authority).await, der(&latest));

    let other_key = authority.server().key;
    for (name, content) in [
        ("server.key", other_key.as_bytes()),
        ("server.key", &latest.key.as_bytes()[..latest.key.len() / 2]),
        ("server.pem", b"no certificate"),
        ("server.pem", b""),
    ] {
        folder.write(name, content);
        let errors = server.reloader.reload().await.unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(shown(&server, &authority).await, der(&latest));
        folder.write_pair(&latest);
    }
    publish(&mut publisher, vec![event("t", "x")])
        .await
        .unwrap();
    stream.events(1).await;
}

#[tokio::test]
async fn changed_files_are_read_without_a_request() {
    let (folder, authority) = (Folder::new(), Authority::new("test"));
    let server = Running::start(config(&folder, &authority.server())).await;
    let next = authority.server();
    folder.write_pair(&next);
    let replaced = async {
        while shown(&server, &authority).await != der(&next) {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = time::timeout(Duration::from_secs(5), replaced).await;
    in_time.expect("the new certificate is not shown within 5 s");
}

#[tokio::test]
async fn a_certificate_names_its_principal() {
    let Mutual {
        folder: _folder,
        authority,
        clients,
        server,
    } = Mutual::start(ClientAuth::Required).await;
    let uri = SanType::URI("spiffe://example.org/billing".try_into().unwrap());
    let dns = SanType::DnsName("billing.example.org".try_into().unwrap());
    let ip = SanType::IpAddress("192.0.2.1".parse().unwrap());
    for (names, expected) in [
        (vec![uri.clone()], "spiffe://example.org/billing"),
        (vec![ip.clone(), dns.clone(), uri], "billing.example.org"),
        (vec![ip], "billing"),
        (vec![], "billing"),
    ] {
        let pair = clients.client("billing", names);
        let endpoint = tls_endpoint(server.address, &authority, Some(&pair));
        let client = Bearer::new(endpoint.connect().await.unwrap(), None);
        let _stream = client.subscribe("", &["t"]).await.unwrap();
        let subscriptions = server.hub.subscriptions();
        let principals: Vec<_> = subscriptions
            .iter()
            .map(|info| info.principal.as_deref())
            .collect();
        assert!(principals.contains(&Some(expected)), "{principals:?}");
    }
}

#[tokio::test]
async fn a_required_certificate_must_be_good() {
    let Mutual {
        folder: _folder,
        authority,
        clients,
        server,
    } = Mutual::start(ClientAuth::Required).await;
    for pair in [
        None,
        Some(Authority::new("clients").client("billing", vec![])),
        Some(clients.expired_client("billing")),
        // Good for servers only, which a certificate for clients says of itself not to be.
        Some(authority.server()),
    ] {
        let endpoint = tls_endpoint(server.address, &authority, pair.as_ref());
        is_refused(endpoint.connect().await).await;
    }
    assert_eq!(server.hub.position().sequence, 0);
}

#[tokio::test]
async fn an_optional_certificate_leaves_a_call_to_its_token() {
    let Mutual {
        folder: _folder,
        authority,
        clients,
        server,
    } = Mutual::start(ClientAuth::Optional).await;
    let endpoint = tls_endpoint(server.address, &authority, None);
    let nobody = Bearer::new(endpoint.connect().await.unwrap(), None);
    let status = nobody.publish("t").await.unwrap_err();
    assert_eq!(reason(&status), "CREDENTIALS_MISSING");
    let pair = clients.client("billing", vec![]);
    let endpoint = tls_endpoint(server.address, &authority, Some(&pair));
    let channel = endpoint.connect().await.unwrap();
    Bearer::new(channel.clone(), None)
        .publish("t")
        .await
        .unwrap();
    // A bad token is not made up for by a good certificate.
    let status = Bearer::new(channel, Some("bad"))
        .publish("t")
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "CREDENTIALS_INVALID");
}

#[tokio::test]
async fn a_stream_ends_when_the_authority_of_its_certificate_goes() {
    let Mutual {
        folder,
        authority,
        clients,
        server,
    } = Mutual::start(ClientAuth::Required).await;
    let pair = clients.client("billing", vec![]);
    let endpoint = tls_endpoint(server.address, &authority, Some(&pair));
    let client = Bearer::new(endpoint.connect().await.unwrap(), None);
    let stream = client.subscribe("", &["t"]).await.unwrap();
    folder.write("clients.pem", &Authority::new("others").pem);
    server.reloader.reload().await.unwrap();
    let (going_away, status) = time::timeout(PATIENCE, end(stream)).await.unwrap();
    assert_eq!(reason(&status), "CREDENTIALS_REVOKED");
    assert!(going_away.unwrap().resume_after.is_some());
    let status = client.publish("t").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn unusable_tls_files_stop_the_start() {
    let (folder, authority) = (Folder::new(), Authority::new("test"));
    let good = authority.server();
    let listen: ListenAddress = "127.0.0.1:0".parse().unwrap();
    for (certificate, key) in [
        (&good.certificate, "no key"),
        (&String::from("no certificate"), &good.key),
        (&good.certificate, &authority.server().key),
    ] {
        let pair = Pair {
            certificate: certificate.clone(),
            key: key.into(),
        };
        let config = ServerConfig {
            listen: listen.clone(),
            ..config(&folder, &pair)
        };
        let error = Server::bind(config).await.unwrap_err();
        assert!(matches!(error, BindError::Security(_)), "{error:?}");
        assert!(error.to_string().contains("server."), "{error}");
    }
    let auth = AuthConfig {
        rules_file: Some(folder.write("rules.toml", RULES)),
        ..AuthConfig::default()
    };
    // Rules for nobody who could be told from anybody else.
    let config = ServerConfig {
        listen,
        auth,
        ..config(&folder, &good)
    };
    let error = Server::bind(config).await.unwrap_err();
    assert!(matches!(error, BindError::Security(_)), "{error:?}");
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_at_the_handshake() {
    for auth in [ClientAuth::Required, ClientAuth::Optional] {
        let mutual = Mutual::start_with_revoked(auth, Some(&[7])).await;
        is_refused(mutual.connect(7).await).await;
        let client = Bearer::new(mutual.connect(8).await.unwrap(), None);
        client.publish("t").await.unwrap();
        assert_eq!(mutual.server.hub.position().sequence, 1);
    }
}

#[tokio::test]
async fn a_changed_list_refuses_handshakes_and_ends_streams() {
    let mutual = Mutual::start_with_revoked(ClientAuth::Required, Some(&[])).await;
    let doomed = Bearer::new(mutual.connect(7).await.unwrap(), None);
    let kept = Bearer::new(mutual.connect(8).await.unwrap(), None);
    let (ending, mut going_on) = (
        doomed.subscribe("", &["t"]).await.unwrap(),
        kept.subscribe("", &["t"]).await.unwrap(),
    );
    // A file that is no list is named, and changes nothing.
    for (content, problem) in [
        ("no list", "contains no certificate revocation list in PEM"),
        (
            "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n",
            "provided CRL could not be parsed",
        ),
    ] {
        mutual.folder.write("crl.pem", content);
        let errors = mutual.server.reloader.reload().await.unwrap_err();
        let told = errors[0].to_string();
        assert!(told.contains("crl.pem") && told.contains(problem), "{told}");
        doomed.publish("u").await.unwrap();
    }
    // Nobody asks for a reload: the file is looked at.
    mutual.folder.write("crl.pem", mutual.clients.revoked(&[7]));
    let ended = time::timeout(Duration::from_secs(5), end(ending)).await;
    let (going_away, status) = ended.expect("the stream of a revoked certificate goes on");
    assert_eq!(reason(&status), "CREDENTIALS_REVOKED");
    assert!(going_away.unwrap().resume_after.is_some());
    // Neither calls on the connection that is there, nor new ones.
    let refused = doomed.publish("t").await.unwrap_err();
    assert_eq!(reason(&refused), "CREDENTIALS_INVALID");
    is_refused(mutual.connect(7).await).await;
    kept.publish("t").await.unwrap();
    let message = time::timeout(PATIENCE, going_on.message()).await.unwrap();
    assert!(message.unwrap().is_some());
}

#[tokio::test]
async fn an_authority_without_a_list_is_refused_where_others_have_one() {
    let mutual = Mutual::start_with_revoked(ClientAuth::Required, Some(&[])).await;
    mutual
        .folder
        .write("crl.pem", Authority::new("other").revoked(&[]));
    mutual.server.reloader.reload().await.unwrap();
    is_refused(mutual.connect(8).await).await;
}

#[tokio::test]
async fn a_changed_list_holds_while_the_key_does_not_match() {
    let mutual = Mutual::start_with_revoked(ClientAuth::Required, Some(&[])).await;
    let doomed = Bearer::new(mutual.connect(7).await.unwrap(), None);
    doomed.publish("t").await.unwrap();
    let key = std::fs::read(mutual.folder.write_pair(&mutual.authority.server()).1).unwrap();
    mutual.server.reloader.reload().await.unwrap();
    // The key of another certificate, as in the middle of a renewal by hand.
    mutual
        .folder
        .write("server.key", &mutual.authority.server().key);
    mutual.folder.write("crl.pem", mutual.clients.revoked(&[7]));
    let errors = mutual.server.reloader.reload().await.unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    let told = errors[0].to_string();
    assert!(told.contains("server.pem"), "{told}");
    let refused = doomed.publish("t").await.unwrap_err();
    assert_eq!(reason(&refused), "CREDENTIALS_INVALID");
    is_refused(mutual.connect(7).await).await;
    mutual.connect(8).await.unwrap();
    // And the other way around: a new pair holds while there is no list.
    mutual.folder.write("server.key", key);
    mutual.folder.write("crl.pem", "no list");
    let errors = mutual.server.reloader.reload().await.unwrap_err();
    let told = errors[0].to_string();
    assert!(errors.len() == 1 && told.contains("crl.pem"), "{errors:?}");
    is_refused(mutual.connect(7).await).await;
    mutual.connect(8).await.unwrap();
}
