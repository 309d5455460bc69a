//! Calls whose credentials expire, or whose credentials or rules are withdrawn, over real sockets.

use std::time::Duration;

use tidegate::proto::*;
use tidegate_server::JwtKeys;
use tokio::time;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{Signer, auth, bearer, claims, in_seconds, jwt, start, tokens, with};
use crate::{
    common::*,
    pki::{Folder, end},
};

/// The time within which a withdrawal must end streams.
const IN_TIME: Duration = Duration::from_secs(5);

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
async fn withdrawn_tokens_and_rules_end_streams_within_5_seconds() {
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
async fn a_bad_file_keeps_its_old_contents_and_the_others_change() {
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

#[tokio::test]
async fn streams_that_end_by_withdrawal_are_counted() {
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
