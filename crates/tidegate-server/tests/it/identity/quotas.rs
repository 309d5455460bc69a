//! Quotas of principals, and on bad credentials.

use std::time::Duration;

use tidegate::proto::{admin_service_client::AdminServiceClient, *};
use tidegate_server::{JwtKeys, Quota, QuotaConfig, ServerConfig};
use tokio::time;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{Signer, auth, bearer, claims, jwt};
use crate::{
    common::*,
    pki::{Bearer, Folder},
};

#[tokio::test]
async fn a_quota_holds_for_a_principal_over_all_connections() {
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
    // A refused call uses nothing.
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
    // As much as a second allows, and then a debt.
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

/// The calls that a quota refused, and those that it only observed.
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
async fn a_connection_counts_for_its_first_principal() {
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
async fn a_takeover_frees_the_place_of_a_dead_connection() {
    let folder = Folder::new();
    let server = Running::start(ServerConfig {
        auth: auth(&folder, None),
        quotas: QuotaConfig {
            principal_connections: Some(1),
            ..QuotaConfig::default()
        },
        ..ServerConfig::default()
    })
    .await;
    let old = bearer(&server, "alice-token").await;
    let _stream = old.subscribe("alice", &["orders.a"]).await.unwrap();
    let new = bearer(&server, "alice-token").await;
    // Only a takeover does so, and only from the last stream of a connection.
    assert_over_quota(&new.publish("orders.a").await.unwrap_err(), "connections");
    let refused = new.subscribe("", &["orders.a"]).await.unwrap_err();
    assert_over_quota(&refused, "connections");
    let other = old.subscribe("", &["orders.a"]).await.unwrap();
    let refused = new.subscribe("alice", &["orders.a"]).await.unwrap_err();
    assert_over_quota(&refused, "connections");
    drop(other);
    server
        .until("one stream is left", |stats| stats.subscriptions == 1)
        .await;
    let comes_in = comes_true(Duration::from_millis(5), async || {
        new.subscribe("alice", &["orders.a"]).await.is_ok()
    });
    assert!(
        comes_in.await,
        "the place of the old connection is not free"
    );
    // The place is that of the new one now.
    new.publish("orders.a").await.unwrap();
    assert_over_quota(&old.publish("orders.a").await.unwrap_err(), "connections");
    let third = bearer(&server, "alice-token").await;
    assert_over_quota(&third.publish("orders.a").await.unwrap_err(), "connections");
    // Whichever goes first, what is left counts once.
    drop(old);
    drop(new);
    let comes_in = comes_true(Duration::from_millis(5), async || {
        third.publish("orders.a").await.is_ok()
    });
    assert!(comes_in.await, "no place came free");
    let fourth = bearer(&server, "alice-token").await;
    assert_over_quota(
        &fourth.publish("orders.a").await.unwrap_err(),
        "connections",
    );
}

#[tokio::test]
async fn bad_credentials_beyond_the_rate_are_refused_unchecked() {
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
        // A neighbor at the same address keeps stream, connection, and its token on new ones.
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
