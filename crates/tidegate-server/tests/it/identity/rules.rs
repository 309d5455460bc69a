//! Rules: the topics that a principal may publish and subscribe to, and the client ids that it may use.

use tidegate::proto::*;
use tonic::Code;

use super::{auth, bearer, start};
use crate::{
    common::*,
    pki::{Folder, end},
};

#[tokio::test]
async fn rules_decide_by_topic_on_publish_and_subscribe() {
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
async fn a_batch_with_one_forbidden_topic_is_refused_whole() {
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
async fn a_client_id_is_taken_over_by_its_principal_alone() {
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
async fn a_generated_client_id_belongs_to_its_principal() {
    let folder = Folder::new();
    let server = start(auth(&folder, None)).await;
    let alice = bearer(&server, "alice-token").await;
    let bob = bearer(&server, "bob-token").await;
    let first = alice.subscribe("", &["orders.a"]).await.unwrap();
    let id = server.hub.subscriptions()[0].client_id.to_string();
    let status = bob.subscribe(&id, &["orders.a"]).await.unwrap_err();
    assert_eq!(reason(&status), "CLIENT_ID_TAKEN");
    // As a client does that comes back.
    let second = alice.subscribe(&id, &["orders.a"]).await.unwrap();
    let (_, status) = end(first).await;
    assert_eq!(reason(&status), "TAKEN_OVER");
    drop(second);
    server
        .until("the id is free", |stats| stats.subscriptions == 0)
        .await;
    // It stays hers while she is away, though bob has seen it: he publishes to it, or lists clients.
    let status = bob.subscribe(&id, &["orders.a"]).await.unwrap_err();
    assert_eq!(
        (status.code(), &*reason(&status)),
        (Code::AlreadyExists, "CLIENT_ID_TAKEN")
    );
    // Also at another server, or after a restart.
    let restarted = start(auth(&folder, None)).await;
    let again = bearer(&restarted, "alice-token").await;
    again.subscribe(&id, &["orders.a"]).await.unwrap();
    // The form alone is no right.
    let made_up = "anonymous-0123456789abcdef";
    let status = alice.subscribe(made_up, &["orders.a"]).await.unwrap_err();
    assert_eq!(reason(&status), "CLIENT_ID_TAKEN");
    for not_made in ["anonymous-1", "anonymous-0123456789abcdeg", "anonymous"] {
        let status = alice.subscribe(not_made, &["orders.a"]).await.unwrap_err();
        assert_eq!(reason(&status), "NOT_ALLOWED", "{not_made}");
    }
}
