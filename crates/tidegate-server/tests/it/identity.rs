//! Who may call what, over real sockets: every method with every kind of credentials, and what becomes of calls
//! whose credentials or rules change.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use prost::Message as _;
use rcgen::{KeyPair, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData as _, RsaKeySize};
use serde_json::{Value, json};
use tidegate::proto::{admin_service_client::AdminServiceClient, *};
use tidegate_server::{
    AuthConfig, BindError, JwksUrl, JwtConfig, JwtKeys, Quota, QuotaConfig, Server, ServerConfig,
    token_line,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    common::*,
    pki::{Bearer, Folder, end},
};

/// What must have ended, has ended after this.
const IN_TIME: Duration = Duration::from_secs(5);

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "tidegate";

const RULES: &str = "
    [[rule]]
    principals = ['alice']
    publish = { allow = ['orders.>', '$client.alice'], deny = ['orders.secret'] }
    subscribe = { allow = ['orders.*', 'orders.*.>'] }
    admin = true

    [[rule]]
    principals = ['bob']
    publish = { allow = ['orders.>'] }
    subscribe = { allow = ['orders.>', '$client.alice'] }
";

/// A pair of keys and what they sign with.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    /// In PEM.
    public: String,
    pair: KeyPair,
}

impl Signer {
    fn p256() -> Self {
        let pair = KeyPair::generate().unwrap();
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self::new(Algorithm::ES256, key, pair)
    }

    fn ed25519() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let key = EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self::new(Algorithm::EdDSA, key, pair)
    }

    fn rsa() -> Self {
        let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self::new(Algorithm::RS256, key, pair)
    }

    fn new(algorithm: Algorithm, key: EncodingKey, pair: KeyPair) -> Self {
        Self {
            algorithm,
            key,
            public: pair.public_key_pem(),
            pair,
        }
    }

    fn sign(&self, claims: &Value) -> String {
        encode(&Header::new(self.algorithm), claims, &self.key).unwrap()
    }

    fn sign_as(&self, id: &str, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(id.into());
        encode(&header, claims, &self.key).unwrap()
    }

    /// Its public key as a JSON Web Key. For P-256 only.
    fn jwk(&self, id: &str) -> Value {
        use jsonwebtoken::jwk::Jwk;
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(id.into());
        assert!(!self.pair.der_bytes().is_empty());
        serde_json::to_value(jwk).unwrap()
    }
}

fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    now.as_secs() as i64 + seconds
}

/// The claims of a good token of `principal`, which grant it what alice's rules do.
fn claims(principal: &str) -> Value {
    json!({
        "sub": principal,
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": in_seconds(600),
        "tidegate": {
            "publish": { "allow": ["orders.>"] },
            "subscribe": { "allow": ["orders.>"] },
            "admin": true,
        },
    })
}

fn with(mut claims: Value, name: &str, value: impl Into<Value>) -> Value {
    claims[name] = value.into();
    claims
}

fn without(mut claims: Value, name: &str) -> Value {
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn jwt(keys: Vec<JwtKeys>) -> JwtConfig {
    JwtConfig {
        keys,
        leeway: Duration::ZERO,
        ..JwtConfig::new(ISSUER, AUDIENCE)
    }
}

/// The tokens `alice-token` of alice, and so on.
fn tokens(principals: &[&str]) -> String {
    let lines = principals
        .iter()
        .map(|name| token_line(name, &format!("{name}-token")).unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

fn auth(folder: &Folder, jwt: Option<JwtConfig>) -> AuthConfig {
    AuthConfig {
        tokens: Some(folder.write("tokens", tokens(&["alice", "bob", "carol"]))),
        rules_file: Some(folder.write("rules.toml", RULES)),
        jwt,
        ..AuthConfig::default()
    }
}

/// A server that looks at all bad credentials: tests try more than are looked at otherwise.
async fn start(auth: AuthConfig) -> Running {
    let quotas = QuotaConfig {
        address_auth_failures: None,
        ..QuotaConfig::default()
    };
    Running::start(ServerConfig {
        auth,
        quotas,
        ..ServerConfig::default()
    })
    .await
}

async fn bearer(server: &Running, token: &str) -> Bearer {
    Bearer::new(server.endpoint().connect().await.unwrap(), Some(token))
}

// ===== every method =====

/// Every method of every service that the server has, by its descriptors.
fn methods() -> Vec<String> {
    let sets = [
        tidegate::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let files = sets
        .iter()
        .flat_map(|set| prost_types::FileDescriptorSet::decode(*set).unwrap().file);
    let methods = files.flat_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().flat_map(move |service| {
            let service_path = format!("/{package}.{}", service.name());
            let methods = service.method.into_iter();
            methods
                .map(move |method| format!("{service_path}/{}", method.name()))
                .collect::<Vec<_>>()
        })
    });
    methods.collect()
}

/// What a good call of a method sends, and what is answered to a caller without rights and to one with them.
fn expected(method: &str) -> (Vec<u8>, Access, Code) {
    let batch = PublishRequest {
        events: vec![event("orders.eu", "x")],
    };
    match method {
        "/tidegate.v1.EventService/Subscribe" => (
            filters(&["orders.eu"]).encode_to_vec(),
            Access::ByRule,
            Code::Ok,
        ),
        "/tidegate.v1.EventService/Publish" | "/tidegate.v1.EventService/PublishStream" => {
            (batch.encode_to_vec(), Access::ByRule, Code::Ok)
        }
        "/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/Watch" => {
            (Vec::new(), Access::Open, Code::Ok)
        }
        // Field 7: list the services.
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo" => {
            (vec![7 << 3 | 2, 0], Access::ForPrincipals, Code::Ok)
        }
        "/tidegate.v1.AdminService/GetServer" | "/tidegate.v1.AdminService/ListSubscriptions" => {
            (Vec::new(), Access::ByRule, Code::Ok)
        }
        "/tidegate.v1.AdminService/DisconnectClient" => {
            let client_id = "nobody".into();
            let request = DisconnectClientRequest { client_id };
            (request.encode_to_vec(), Access::ByRule, Code::Ok)
        }
        // Let in and not understood: the server is still needed.
        "/tidegate.v1.AdminService/Drain" => (vec![0xff], Access::ByRule, Code::Internal),
        "/tidegate.v1.NoService/NoMethod" | "/elsewhere/NoMethod" => {
            (Vec::new(), Access::ByRule, Code::Unimplemented)
        }
        other => panic!("{other} has no entry: decide who may call it, and write it down here"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Open,
    ForPrincipals,
    ByRule,
}

/// Calls a method over a connection of its own, and returns the status, or OK with the first message.
async fn call(
    server: SocketAddr,
    method: &str,
    message: &[u8],
    authorization: Option<&str>,
) -> Code {
    let stream = TcpStream::connect(server).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://{server}{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    let mut send = send.ready().await.unwrap();
    let (response, mut body) = send.send_request(request.body(()).unwrap(), false).unwrap();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    // A call that was refused may have been reset before.
    let _ = body.send_data(frame.freeze(), true);
    let code = time::timeout(PATIENCE, answered(response))
        .await
        .expect("no answer");
    connection.abort();
    code
}

async fn answered(response: h2::client::ResponseFuture) -> Code {
    let status = |headers: &http::HeaderMap| {
        let status = headers.get("grpc-status")?;
        Some(Code::from_bytes(status.as_bytes()))
    };
    let (head, mut body): (_, h2::RecvStream) = response.await.unwrap().into_parts();
    if let Some(code) = status(&head.headers) {
        return code;
    }
    if let Some(data) = body.data().await {
        let _: Bytes = data.unwrap();
        return Code::Ok;
    }
    status(&body.trailers().await.unwrap().unwrap()).unwrap()
}

#[tokio::test]
async fn every_method_with_every_kind_of_credentials() {
    let (folder, signer, stranger) = (Folder::new(), Signer::p256(), Signer::p256());
    let keys = vec![JwtKeys::Pem(folder.write("key.pem", &signer.public))];
    let server = start(auth(&folder, Some(jwt(keys)))).await;
    let good = claims("dora");
    let bad: Vec<(&str, Option<String>)> = vec![
        ("nothing", None),
        ("no scheme", Some("alice-token".into())),
        ("another scheme", Some("Basic alice-token".into())),
        ("no token", Some("Bearer ".into())),
        ("an unknown token", Some("Bearer nobody-token".into())),
        ("garbage", Some("Bearer a.b.c".into())),
        (
            "expired",
            Some(signer.sign(&with(good.clone(), "exp", in_seconds(-1)))),
        ),
        (
            "no expiry",
            Some(signer.sign(&without(good.clone(), "exp"))),
        ),
        (
            "an expiry as text",
            Some(signer.sign(&with(good.clone(), "exp", "9999999999"))),
        ),
        (
            "not yet valid",
            Some(signer.sign(&with(good.clone(), "nbf", in_seconds(60)))),
        ),
        (
            "a begin as text",
            Some(signer.sign(&with(good.clone(), "nbf", "0"))),
        ),
        (
            "another audience",
            Some(signer.sign(&with(good.clone(), "aud", "other"))),
        ),
        (
            "no audience",
            Some(signer.sign(&without(good.clone(), "aud"))),
        ),
        (
            "another issuer",
            Some(signer.sign(&with(good.clone(), "iss", "https://other.example"))),
        ),
        (
            "no issuer",
            Some(signer.sign(&without(good.clone(), "iss"))),
        ),
        (
            "no principal",
            Some(signer.sign(&without(good.clone(), "sub"))),
        ),
        (
            "an empty principal",
            Some(signer.sign(&with(good.clone(), "sub", ""))),
        ),
        (
            "rights of another form",
            Some(signer.sign(&with(good.clone(), "tidegate", "all"))),
        ),
        ("another key", Some(stranger.sign(&good))),
    ];
    let no_right = [
        "Bearer carol-token".into(),
        format!("Bearer {}", signer.sign(&without(good.clone(), "tidegate"))),
    ];
    let right = [
        "Bearer alice-token".into(),
        format!("bearer {}", signer.sign(&good)),
    ];

    let mut called = methods();
    assert!(called.len() >= 10, "{called:?}");
    called.extend(["/tidegate.v1.NoService/NoMethod", "/elsewhere/NoMethod"].map(Into::into));
    for method in called {
        let (message, access, code) = expected(&method);
        let check = async |who: &str, credentials: Option<&str>, expected: Code| {
            let found = call(server.address, &method, &message, credentials).await;
            assert_eq!(found, expected, "{method} with {who}");
        };
        for (who, credentials) in &bad {
            let credentials = credentials.as_ref().map(|token| {
                match token.contains(' ') || *who == "no scheme" {
                    true => token.clone(),
                    false => format!("Bearer {token}"),
                }
            });
            let expected = match access {
                Access::Open => Code::Ok,
                _ => Code::Unauthenticated,
            };
            check(who, credentials.as_deref(), expected).await;
        }
        for credentials in &no_right {
            let expected = match access {
                Access::ByRule => Code::PermissionDenied,
                _ => Code::Ok,
            };
            check("no right", Some(credentials), expected).await;
        }
        for credentials in &right {
            check("a right", Some(credentials), code).await;
        }
    }
}

// ===== rules =====

#[tokio::test]
async fn what_may_be_published_and_seen_is_decided_by_topic() {
    let folder = Folder::new();
    let server = start(auth(&folder, None)).await;
    let alice = bearer(&server, "alice-token").await;
    for (topic, is_allowed) in [
        ("orders.eu", true),
        ("orders.secret", false),
        ("orders", false),
        ("ordersx.eu", false),
        ("Orders.eu", false),
        ("$client.alice", true),
        ("$client.bob", false),
    ] {
        match alice.publish(topic).await {
            Ok(()) => assert!(is_allowed, "{topic}"),
            Err(status) => {
                assert!(!is_allowed, "{topic}: {status}");
                assert_eq!(
                    (status.code(), &*reason(&status)),
                    (Code::PermissionDenied, "NOT_ALLOWED")
                );
            }
        }
    }
    for (filters, is_allowed) in [
        (&["orders.eu"][..], true),
        // By two patterns together.
        (&["orders.>"], true),
        (&["orders.eu", "news"], false),
        (&["*.eu"], false),
        (&[">"], false),
    ] {
        let subscribed = alice.subscribe("", filters).await;
        assert_eq!(subscribed.is_ok(), is_allowed, "{filters:?}");
    }
}

#[tokio::test]
async fn a_batch_with_one_topic_that_is_not_allowed_is_refused_whole() {
    let folder = Folder::new();
    let server = start(auth(&folder, None)).await;
    let alice = bearer(&server, "alice-token").await;
    let events = vec![event("orders.a", "x"), event("orders.secret", "x")];
    let request = alice.request(PublishRequest { events });
    let mut client = EventServiceClient::new(server.endpoint().connect().await.unwrap());
    let status = client.publish(request).await.unwrap_err();
    assert!(
        status.message().starts_with("events[1].topic: "),
        "{}",
        status.message()
    );
    assert_eq!(server.hub.position().sequence, 0);
}

#[tokio::test]
async fn a_client_id_is_for_its_namesake_and_who_was_allowed_it_and_taken_over_by_nobody_else() {
    let folder = Folder::new();
    let server = start(auth(&folder, None)).await;
    let alice = bearer(&server, "alice-token").await;
    let bob = bearer(&server, "bob-token").await;
    let status = alice.subscribe("bob", &["orders.a"]).await.unwrap_err();
    assert_eq!(reason(&status), "NOT_ALLOWED");

    let first = alice.subscribe("alice", &["orders.a"]).await.unwrap();
    // A rule lets bob be alice, but not take over from her.
    let status = bob.subscribe("alice", &["orders.a"]).await.unwrap_err();
    assert_eq!(
        (status.code(), &*reason(&status)),
        (Code::AlreadyExists, "CLIENT_ID_TAKEN")
    );
    let second = alice.subscribe("alice", &["orders.a"]).await.unwrap();
    let (_, status) = end(first).await;
    assert_eq!(reason(&status), "TAKEN_OVER");
    drop(second);
    server
        .until("the id is free", |stats| stats.subscriptions == 0)
        .await;
    bob.subscribe("alice", &["orders.a"]).await.unwrap();
}

#[tokio::test]
async fn an_id_that_the_server_made_is_for_whom_it_was_made() {
    let folder = Folder::new();
    let server = start(auth(&folder, None)).await;
    let alice = bearer(&server, "alice-token").await;
    let bob = bearer(&server, "bob-token").await;
    let first = alice.subscribe("", &["orders.a"]).await.unwrap();
    let id = server.hub.subscriptions()[0].client_id.to_string();
    let status = bob.subscribe(&id, &["orders.a"]).await.unwrap_err();
    assert_eq!(reason(&status), "CLIENT_ID_TAKEN");
    // As a client does that comes back.
    let _second = alice.subscribe(&id, &["orders.a"]).await.unwrap();
    let (_, status) = end(first).await;
    assert_eq!(reason(&status), "TAKEN_OVER");
    for not_made in ["anonymous-1", "anonymous-0123456789abcdeg", "anonymous"] {
        let status = alice.subscribe(not_made, &["orders.a"]).await.unwrap_err();
        assert_eq!(reason(&status), "NOT_ALLOWED", "{not_made}");
    }
}

// ===== operations =====

#[tokio::test]
async fn quotas_are_of_the_principal_and_operators_see_whose_a_stream_is() {
    let folder = Folder::new();
    let server = Running::start(ServerConfig {
        auth: auth(&folder, None),
        quotas: QuotaConfig {
            principal: Quota {
                subscriptions: Some(1),
                publish_events: Some(1),
                ..Quota::default()
            },
            ..QuotaConfig::default()
        },
        ..ServerConfig::default()
    })
    .await;
    let alice = bearer(&server, "alice-token").await;
    let bob = bearer(&server, "bob-token").await;
    // What is not allowed uses nothing.
    let status = alice.subscribe("", &["news"]).await.unwrap_err();
    assert_eq!(reason(&status), "NOT_ALLOWED");
    let status = alice.publish("orders.secret").await.unwrap_err();
    assert_eq!(reason(&status), "NOT_ALLOWED");

    let _first = alice.subscribe("", &["orders.a"]).await.unwrap();
    // Whatever the connection.
    let elsewhere = bearer(&server, "alice-token").await;
    let status = elsewhere.subscribe("", &["orders.a"]).await.unwrap_err();
    assert_eq!(reason(&status), "QUOTA_EXCEEDED");
    let _second = bob.subscribe("", &["orders.a"]).await.unwrap();
    // What a second allows, and then a debt.
    for _ in 0..2 {
        alice.publish("orders.a").await.unwrap();
    }
    let status = elsewhere.publish("orders.a").await.unwrap_err();
    assert_eq!(reason(&status), "QUOTA_EXCEEDED");
    bob.publish("orders.a").await.unwrap();

    let mut admin = AdminServiceClient::new(server.endpoint().connect().await.unwrap());
    let request = alice.request(ListSubscriptionsRequest::default());
    let listed = admin.list_subscriptions(request).await.unwrap();
    let principals: Vec<_> = listed
        .get_ref()
        .subscriptions
        .iter()
        .map(|state| &*state.principal)
        .collect();
    assert_eq!(principals, ["alice", "bob"]);

    assert_eq!(server.controls.stats().auth_failures, 0);
    let nobody = bearer(&server, "nobody-token").await;
    nobody.publish("orders.a").await.unwrap_err();
    assert_eq!(server.controls.stats().auth_failures, 1);
}

/// How often a quota refused and was only observed.
fn quota_count(server: &Running, quota: &str) -> (u64, u64) {
    let quotas = server.controls.stats().quotas;
    let count = quotas.iter().find(|count| count.quota == quota).unwrap();
    (count.refused, count.observed)
}

/// Checks that a status refuses for this quota, with a delay.
fn assert_over_quota(status: &tonic::Status, quota: &str) {
    assert_eq!(
        (status.code(), &*reason(status)),
        (Code::ResourceExhausted, "QUOTA_EXCEEDED"),
        "{status:?}"
    );
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["quota"], quota);
    assert!(status.get_details_retry_info().unwrap().retry_delay > Some(Duration::ZERO));
}

#[tokio::test]
async fn connections_are_counted_for_the_first_principal_that_calls_on_them() {
    let folder = Folder::new();
    let config = |principal_connections, observe_only| ServerConfig {
        auth: auth(&folder, None),
        quotas: QuotaConfig {
            principal_connections,
            observe_only,
            ..QuotaConfig::default()
        },
        ..ServerConfig::default()
    };
    let server = Running::start(config(Some(2), false)).await;
    let first = bearer(&server, "alice-token").await;
    let _stream = first.subscribe("", &["orders.a"]).await.unwrap();
    let second = bearer(&server, "alice-token").await;
    second.publish("orders.a").await.unwrap();
    let third_channel = server.endpoint().connect().await.unwrap();
    let third = Bearer::new(third_channel.clone(), Some("alice-token"));
    for _ in 0..2 {
        let refused = third.publish("orders.a").await.unwrap_err();
        assert_over_quota(&refused, "connections");
    }
    assert_eq!(quota_count(&server, "connections"), (2, 0));
    // Calls on those that are counted go on, and bad credentials make no owner.
    first.publish("orders.b").await.unwrap();
    let nobody = Bearer::new(third_channel.clone(), Some("nobody-token"));
    assert_eq!(
        reason(&nobody.publish("orders.a").await.unwrap_err()),
        "CREDENTIALS_INVALID"
    );
    // A place comes free with its connection, for the very connection that was refused.
    drop(second);
    let comes_in = comes_true(Duration::from_millis(5), async || {
        third.publish("orders.a").await.is_ok()
    });
    assert!(comes_in.await, "no place came free");
    // It is alice's now, whoever else calls on it.
    let bob = Bearer::new(third_channel, Some("bob-token"));
    bob.publish("orders.a").await.unwrap();
    let fourth = bearer(&server, "alice-token").await;
    assert_over_quota(
        &fourth.publish("orders.a").await.unwrap_err(),
        "connections",
    );
    // Bob has none of his own yet.
    let bobs = [
        bearer(&server, "bob-token").await,
        bearer(&server, "bob-token").await,
    ];
    for bob in &bobs {
        bob.publish("orders.a").await.unwrap();
    }

    // Observed, it passes, and is counted once; taken away, nothing is counted.
    server.controls.apply(&config(Some(2), true));
    let observed = quota_count(&server, "connections").1;
    for _ in 0..3 {
        fourth.publish("orders.a").await.unwrap();
    }
    assert_eq!(quota_count(&server, "connections").1, observed + 1);
    server.controls.apply(&config(None, false));
    bearer(&server, "alice-token")
        .await
        .publish("orders.a")
        .await
        .unwrap();
}

#[tokio::test]
async fn beyond_the_rate_bad_credentials_are_not_looked_at_and_who_is_known_goes_on() {
    let (folder, signer) = (Folder::new(), Signer::p256());
    let keys = vec![JwtKeys::Pem(folder.write("key.pem", &signer.public))];
    let config = |observe_only| ServerConfig {
        auth: auth(&folder, Some(jwt(keys.clone()))),
        quotas: QuotaConfig {
            // Some seconds without a failure until one more is looked at, on a slow machine too.
            address_auth_failures: Some(1),
            observe_only,
            ..QuotaConfig::default()
        },
        ..ServerConfig::default()
    };
    let server = Running::start(config(false)).await;
    let known = signer.sign(&claims("dora"));
    let mut honest = server.client().await;
    let dora = bearer(&server, &known).await;
    let mut stream = dora.subscribe("", &["orders.>"]).await.unwrap();
    let attacker = bearer(&server, "nobody-token").await;
    let mut refused = 0;
    for i in 0..50 {
        let guess = bearer(&server, &format!("guess-{i}")).await;
        let status = guess.publish("orders.a").await.unwrap_err();
        match status.code() {
            Code::Unauthenticated => {}
            _ => {
                assert_over_quota(&status, "auth_failures");
                refused += 1;
            }
        }
        // Whoever shares the address keeps stream, connection, and its token on new ones.
        dora.publish("orders.a").await.unwrap();
        bearer(&server, &known)
            .await
            .publish("orders.b")
            .await
            .unwrap();
    }
    assert!(
        refused >= 25,
        "only {refused} of 50 guesses were not looked at"
    );
    let (counted, observed) = quota_count(&server, "auth_failures");
    assert_eq!((counted, observed), (refused, 0));
    let looked_at = server.controls.stats().auth_failures;
    assert_eq!(looked_at + refused, 50, "each is counted once");
    let mut events = 0;
    while events < 100 {
        let message = time::timeout(PATIENCE, stream.message()).await.unwrap();
        if let Some(Response::Batch(batch)) = message.unwrap().unwrap().response {
            events += batch.events.len();
        }
    }
    // Nobody needs credentials for health, and a call without any is told so.
    assert_eq!(
        reason(&honest.publish(PublishRequest::default()).await.unwrap_err()),
        "CREDENTIALS_MISSING"
    );
    // A token that was not seen before waits for the rate, as the status says.
    let alice = bearer(&server, "alice-token").await;
    let comes_in = comes_true(Duration::from_millis(50), async || {
        alice.publish("orders.a").await.is_ok()
    });
    assert!(comes_in.await, "the rate never passes");

    server.controls.apply(&config(true));
    let observed_only = async || {
        let status = attacker.publish("orders.a").await.unwrap_err();
        assert_eq!(reason(&status), "CREDENTIALS_INVALID");
    };
    for _ in 0..5 {
        observed_only().await;
    }
    assert!(quota_count(&server, "auth_failures").1 >= 1);
}

#[tokio::test]
async fn how_streams_ended_whose_rights_were_withdrawn_is_counted() {
    let folder = Folder::new();
    let server = start(auth(&folder, None)).await;
    let alice = bearer(&server, "alice-token").await;
    let stream = alice.subscribe("", &["orders.a"]).await.unwrap();
    folder.write("tokens", tokens(&["bob"]));
    server.reloader.reload().await.unwrap();
    end(stream).await;
    server
        .until("the stream is gone", |stats| stats.subscriptions == 0)
        .await;
    let ended = server.controls.stats().streams_ended;
    assert!(ended.contains(&("CREDENTIALS_REVOKED", 1)), "{ended:?}");
}

#[test]
fn the_admin_service_is_served_where_callers_prove_who_they_are() {
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

// ===== endings =====

#[tokio::test]
async fn a_stream_ends_with_its_position_when_its_token_expires() {
    let (folder, signer) = (Folder::new(), Signer::p256());
    let keys = vec![JwtKeys::Pem(folder.write("key.pem", &signer.public))];
    let server = start(auth(&folder, Some(jwt(keys)))).await;
    let expiry = in_seconds(2);
    let dora = bearer(&server, &signer.sign(&with(claims("dora"), "exp", expiry))).await;
    let mut streams = Vec::new();
    for filter in ["orders.a", "orders.b"] {
        streams.push(dora.subscribe("", &[filter]).await.unwrap());
    }
    dora.publish("orders.c").await.unwrap();
    for stream in streams {
        let (going_away, status) = time::timeout(PATIENCE, end(stream)).await.unwrap();
        let late = in_seconds(0) - expiry;
        assert!(
            (0..=IN_TIME.as_secs() as i64).contains(&late),
            "ended {late} s late"
        );
        assert_eq!(
            (status.code(), &*reason(&status)),
            (Code::Unauthenticated, "CREDENTIALS_EXPIRED")
        );
        let position = going_away.unwrap().resume_after.unwrap();
        assert_eq!(position.epoch, server.hub.position().epoch);
    }
    // Neither over the same connection, which remembers the token, nor over a new one.
    for _ in 0..2 {
        let status = dora.publish("orders.a").await.unwrap_err();
        assert_eq!(reason(&status), "CREDENTIALS_EXPIRED");
    }
    let renewed = bearer(&server, &signer.sign(&claims("dora"))).await;
    renewed.subscribe("", &["orders.a"]).await.unwrap();
}

#[tokio::test]
async fn a_publish_stream_ends_when_its_token_expires() {
    let (folder, signer) = (Folder::new(), Signer::p256());
    let keys = vec![JwtKeys::Pem(folder.write("key.pem", &signer.public))];
    let server = start(auth(&folder, Some(jwt(keys)))).await;
    let dora = bearer(
        &server,
        &signer.sign(&with(claims("dora"), "exp", in_seconds(2))),
    )
    .await;
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut client = EventServiceClient::new(server.endpoint().connect().await.unwrap());
    requests
        .send(PublishRequest {
            events: vec![event("orders.a", "x")],
        })
        .await
        .unwrap();
    let mut responses = client
        .publish_stream(dora.request(stream))
        .await
        .unwrap()
        .into_inner();
    assert!(responses.message().await.unwrap().is_some());
    let ended = time::timeout(PATIENCE, responses.message()).await.unwrap();
    assert_eq!(reason(&ended.unwrap_err()), "CREDENTIALS_EXPIRED");
}

#[tokio::test]
async fn what_is_withdrawn_from_the_files_ends_within_five_seconds_and_the_rest_goes_on() {
    let folder = Folder::new();
    let server = start(auth(&folder, None)).await;
    let alice = bearer(&server, "alice-token").await;
    let bob = bearer(&server, "bob-token").await;
    let without_token = alice.subscribe("", &["orders.a"]).await.unwrap();
    let without_rule = bob.subscribe("", &["orders.b"]).await.unwrap();
    let mut kept = bob.subscribe("", &["orders.a"]).await.unwrap();
    folder.write("tokens", tokens(&["bob", "carol"]));
    folder.write(
        "rules.toml",
        "rule = [{ principals = ['bob'], subscribe = { allow = ['orders.a'] } }]",
    );
    let ended = time::timeout(IN_TIME, async {
        (end(without_token).await, end(without_rule).await)
    });
    let ((going_away, token), (none, rule)) = ended.await.expect("they did not end in time");
    assert_eq!(
        (token.code(), &*reason(&token)),
        (Code::Unauthenticated, "CREDENTIALS_REVOKED")
    );
    assert!(going_away.unwrap().resume_after.is_some());
    assert_eq!(
        (rule.code(), &*reason(&rule)),
        (Code::PermissionDenied, "NOT_ALLOWED")
    );
    assert_eq!(none, None);
    let facts = rule.get_details_error_info().unwrap().metadata;
    assert!(facts.contains_key("resume_after_sequence"), "{facts:?}");

    let status = alice.publish("orders.a").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let status = bob.publish("orders.a").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    server
        .hub
        .publish(
            [tidegate::encode(event("orders.a", "x")).unwrap()],
            std::time::Instant::now(),
        )
        .unwrap();
    let message = time::timeout(PATIENCE, kept.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(
        matches!(message.response, Some(Response::Batch(_))),
        "{message:?}"
    );
}

#[tokio::test]
async fn bad_files_leave_what_was_there_and_do_not_keep_the_others_from_changing() {
    let folder = Folder::new();
    let server = start(auth(&folder, None)).await;
    let alice = bearer(&server, "alice-token").await;
    let stream = alice.subscribe("", &["orders.a"]).await.unwrap();
    folder.write("rules.toml", "[[rule]]\nprincipals = ['alice'");
    let errors = server.reloader.reload().await.unwrap_err();
    assert!(
        errors[0]
            .to_string()
            .contains("rules.toml: TOML parse error at line 2"),
        "{errors:?}"
    );
    alice.publish("orders.a").await.unwrap();
    folder.write("tokens", tokens(&["bob"]));
    let errors = server.reloader.reload().await.unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    let ending = async {
        let mut stream = stream;
        loop {
            if let Err(status) = stream.message().await {
                return status;
            }
        }
    };
    let status = time::timeout(PATIENCE, ending).await.unwrap();
    assert_eq!(reason(&status), "CREDENTIALS_REVOKED");
}

// ===== keys =====

#[tokio::test]
async fn a_token_is_good_with_the_algorithm_of_its_key_and_no_other() {
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

fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * i) & 63) as usize]));
        }
    }
    text
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
async fn keys_at_an_address_are_fetched_and_an_unknown_one_has_them_fetched_again_but_seldom() {
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

    // What is no key set leaves the keys, and a key that is gone takes its streams with it.
    *keys.set.lock().unwrap() = json!("nothing");
    server.reloader.reload().await.unwrap();
    dora.publish("orders.a").await.unwrap();
    keys.set(&[second.jwk("two")]);
    server.reloader.reload().await.unwrap();
    let (_, status) = time::timeout(PATIENCE, end(stream)).await.unwrap();
    assert_eq!(reason(&status), "CREDENTIALS_REVOKED");
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_are_trusted_for_a_time_and_good_again_when_they_can() {
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

// ===== starting =====

#[tokio::test]
async fn credentials_are_not_taken_without_tls_from_elsewhere_unless_it_is_said() {
    let folder = Folder::new();
    let listen = "0.0.0.0:0".parse().unwrap();
    let config = |insecure| ServerConfig {
        listen,
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
async fn a_server_does_not_start_with_credentials_that_it_cannot_use() {
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
