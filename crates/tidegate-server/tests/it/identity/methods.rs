//! Every method of every service with every kind of credentials.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use tidegate::proto::*;
use tidegate_server::JwtKeys;
use tokio::{net::TcpStream, time};
use tonic::Code;

use super::{Signer, auth, claims, in_seconds, jwt, start, with, without};
use crate::{common::*, pki::Folder};

/// Every method of every service that the server has, by its descriptors.
fn methods() -> Vec<String> {
    let sets = [
        tidegate::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
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

/// The message of a good call, the access that its method needs, and the status for a caller with rights.
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
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => {
            (vec![7 << 3 | 2, 0], Access::ForPrincipals, Code::Ok)
        }
        "/tidegate.v1.AdminService/GetServer"
        | "/tidegate.v1.AdminService/ListSubscriptions"
        | "/tidegate.v1.AdminService/ListPublishStreams" => (Vec::new(), Access::ByRule, Code::Ok),
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
