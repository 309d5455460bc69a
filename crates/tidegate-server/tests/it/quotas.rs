//! Quotas per address, enforced and only observed, over real sockets.

use std::time::Duration;

use tidegate::{SweepRules, proto::*};
use tidegate_server::{Quota, QuotaConfig, ServerConfig};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::common::*;

fn held_to(address: Quota) -> ServerConfig {
    ServerConfig {
        quotas: QuotaConfig {
            address,
            ..QuotaConfig::default()
        },
        ..ServerConfig::default()
    }
}

/// Checks that a status refuses for this quota, and returns how long to wait.
fn refused_for(status: &Status, quota: &str) -> Duration {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(reason(status), "QUOTA_EXCEEDED");
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["quota"], quota);
    let retry = status
        .get_details_retry_info()
        .unwrap()
        .retry_delay
        .unwrap();
    assert!(retry > Duration::ZERO);
    retry
}

#[tokio::test]
async fn the_end_of_a_stream_frees_a_subscription_of_its_address() {
    let server = Running::start(held_to(Quota {
        subscriptions: Some(2),
        ..Quota::default()
    }))
    .await;
    let mut client = server.client().await;
    let first = subscribe(&mut client, filters(&["a"])).await;
    let _second = subscribe(&mut client, filters(&["b"])).await;
    // Over another connection too: it is the address that counts.
    let mut other = server.client().await;
    let refused = other.subscribe(filters(&["c"])).await.unwrap_err();
    refused_for(&refused, "subscriptions");
    assert_eq!(server.hub.stats().subscriptions, 2);
    drop(first);
    server
        .until("the place is free", |stats| stats.subscriptions == 1)
        .await;
    let ended = || server.controls.stats().streams_ended;
    until("the end is written down", ended, |ended| {
        ended.contains(&("CLIENT_LEFT", 1))
    })
    .await;
    let _third = subscribe(&mut other, filters(&["c"])).await;
}

#[tokio::test]
async fn a_refused_request_uses_no_quota() {
    let server = Running::start(held_to(Quota {
        subscriptions: Some(1),
        ..Quota::default()
    }))
    .await;
    let mut client = server.client().await;
    for _ in 0..5 {
        let ahead = SubscribeRequest {
            resume_after: Some(Position {
                epoch: server.hub.position().epoch,
                sequence: 1_000,
            }),
            ..filters(&["a"])
        };
        let status = client.subscribe(ahead).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange);
    }
    subscribe(&mut client, filters(&["a"])).await;
    assert_eq!(server.controls.stats().streams_begun, 1);
}

#[tokio::test]
async fn distinct_filters_of_an_address_are_bounded() {
    let server = Running::start(held_to(Quota {
        filters: Some(2),
        ..Quota::default()
    }))
    .await;
    let mut client = server.client().await;
    let _first = subscribe(&mut client, filters(&["a", "b"])).await;
    let _same = subscribe(&mut client, filters(&["b", "a"])).await;
    let refused = client.subscribe(filters(&["a", "c"])).await.unwrap_err();
    refused_for(&refused, "filters");
}

#[tokio::test]
async fn a_client_takes_over_from_its_own_dead_stream_at_its_quota() {
    let server = Running::start(ServerConfig {
        // For longer than the test: only the takeover may free the place.
        sweep: SweepRules {
            reset_grace: PATIENCE,
            ..SweepRules::default()
        },
        ..held_to(Quota {
            subscriptions: Some(1),
            filters: Some(1),
            ..Quota::default()
        })
    })
    .await;
    let request = |of: &str| SubscribeRequest {
        client_id: "c".into(),
        ..filters(&[of])
    };
    // It takes no more than 64 KiB, so it can be told nothing, as if its connection were dead.
    let mut old_client = server.client_with_small_windows().await;
    let mut old = subscribe(&mut old_client, request("a")).await;
    old.is_disturbed = true;
    let mut client = server.client().await;
    for _ in 0..20 {
        let large = event("a", vec![b'x'; 16 << 10]);
        publish(&mut client, vec![large]).await.unwrap();
    }
    for of in ["b", "c", "d"] {
        let mut new = subscribe(&mut server.client().await, request(of)).await;
        publish(&mut client, vec![event(of, "x")]).await.unwrap();
        new.events(1).await;
        assert!(
            server.hub.stats().subscriptions >= 2,
            "the old one is there"
        );
        // It freed its own place, and no other.
        let refused = client.subscribe(filters(&["a"])).await.unwrap_err();
        refused_for(&refused, "subscriptions");
        new.is_disturbed = true;
    }
}

#[tokio::test]
async fn filters_of_one_address_have_a_bounded_cost_by_default() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    let mut held = Vec::new();
    // Each of five tokens may be the topic's or `*`: `a.a.a.a.a.7` goes all ways.
    let branching = |i: usize| {
        let ways = (0..32).map(|ways: u32| {
            let token = |bit: u32| if ways >> bit & 1 == 1 { "a" } else { "*" };
            let tokens: Vec<_> = (0..5).map(token).collect();
            format!("{}.{i}", tokens.join("."))
        });
        ways.collect::<Vec<_>>()
    };
    let refused = loop {
        let all = branching(held.len());
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        match client.subscribe(filters(&all)).await {
            Ok(stream) => held.push(stream),
            Err(status) => break status,
        }
        assert!(held.len() < 250, "nothing was refused");
    };
    refused_for(&refused, "filter_work");
    assert!(held.len() > 20, "{} were let in", held.len());
    // What makes no work is let in still.
    subscribe(&mut client, filters(&["news.>", "user.1"])).await;
}

#[tokio::test]
async fn a_batch_beyond_the_rate_is_refused_and_passes_after_the_delay() {
    let server = Running::start(held_to(Quota {
        publish_events: Some(20),
        ..Quota::default()
    }))
    .await;
    let mut client = server.client().await;
    let mut stream = subscribe(&mut client, filters(&["t"])).await;
    let batch = || (0..30).map(|_| event("t", "x")).collect::<Vec<_>>();
    publish(&mut client, batch()).await.unwrap();
    let request = PublishRequest { events: batch() };
    let refused = client.publish(request.clone()).await.unwrap_err();
    let wait = refused_for(&refused, "publish_events");
    assert!(wait <= Duration::from_millis(500), "{wait:?}");
    stream.events(30).await;
    assert_eq!(server.hub.stats().published, 30, "nothing of it is stored");
    tokio::time::sleep(wait + Duration::from_millis(1)).await;
    publish(&mut client, batch()).await.unwrap();
    stream.events(30).await;
}

#[tokio::test]
async fn a_publish_stream_ends_beyond_the_rate_in_encoded_bytes() {
    let server = Running::start(held_to(Quota {
        publish_bytes: Some(1_000),
        ..Quota::default()
    }))
    .await;
    let mut client = server.client().await;
    let request = |size: usize| PublishRequest {
        events: vec![event("t", vec![b'x'; size])],
    };
    let batches = tokio_stream::iter([request(600), request(600), request(600)]);
    let mut answers = client.publish_stream(batches).await.unwrap().into_inner();
    for _ in 0..2 {
        assert_eq!(answers.message().await.unwrap().unwrap().count, 1);
    }
    let refused = answers.message().await.unwrap_err();
    refused_for(&refused, "publish_bytes");
    assert_eq!(server.hub.stats().published, 2);
}

#[tokio::test]
async fn observing_counts_and_lets_pass() {
    let one = Quota {
        subscriptions: Some(1),
        filters: Some(1),
        publish_events: Some(1),
        publish_bytes: Some(1),
        ..Quota::default()
    };
    let server = Running::start(ServerConfig {
        max_connections_per_address: Some(1),
        quotas: QuotaConfig {
            address: one,
            principal: one,
            observe_only: true,
            ..QuotaConfig::default()
        },
        ..ServerConfig::default()
    })
    .await;
    let mut client = server.client().await;
    let mut first = subscribe(&mut client, filters(&["t"])).await;
    let mut second = subscribe(&mut server.client().await, filters(&["t", "u"])).await;
    for _ in 0..3 {
        publish(&mut client, vec![event("t", "x")]).await.unwrap();
    }
    first.events(3).await;
    second.events(3).await;
    let stats = server.controls.stats();
    assert!(stats.quotas.iter().all(|count| count.refused == 0));
    let observed: u64 = stats.quotas.iter().map(|count| count.observed).sum();
    // The second subscription, and the second and third batch.
    assert_eq!(observed, 3, "{:?}", stats.quotas);
    assert_eq!(stats.connections.observed_by_address, 1);
}

#[tokio::test]
async fn changed_quotas_count_what_is_in_use() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    let _first = subscribe(&mut client, filters(&["a"])).await;
    server.controls.apply(&held_to(Quota {
        subscriptions: Some(1),
        ..Quota::default()
    }));
    let refused = client.subscribe(filters(&["a"])).await.unwrap_err();
    refused_for(&refused, "subscriptions");
    server.controls.apply(&ServerConfig::default());
    subscribe(&mut client, filters(&["a"])).await;
}
