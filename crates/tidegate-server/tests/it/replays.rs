//! Replays over real sockets: what they cost their neighbors, and how they end.

use tidegate::{CloseReason, proto::*};
use tidegate_server::{Quota, QuotaConfig, ServerConfig};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::common::*;

/// 128 filters of 32 tokens, whose places a topic of as many visits nearly all, and matches none.
fn costly(stream: usize) -> SubscribeRequest {
    let filter = |mask: usize| {
        let token = |i: usize| match i {
            31 => format!("z{stream}x{mask}"),
            0..7 if mask >> i & 1 == 0 => "t".to_owned(),
            _ => "*".to_owned(),
        };
        (0..32).map(token).collect::<Vec<_>>().join(".")
    };
    SubscribeRequest {
        filters: (0..128).map(filter).collect(),
        replay_last: 1_000_000,
        ..Default::default()
    }
}

/// A server whose history has so many events that nobody wants, and which lets filters cost what they may: what a turn
/// does is bounded all the same.
async fn server_with_history(events: usize) -> Running {
    let unlimited = Quota {
        filter_work: None,
        ..Quota::default()
    };
    let server = Running::start(ServerConfig {
        max_filter_work: u64::MAX,
        quotas: QuotaConfig {
            address: unlimited,
            ..QuotaConfig::default()
        },
        ..ServerConfig::default()
    })
    .await;
    let mut publisher = server.client().await;
    let topic = ["t"; 32].join(".");
    for _ in 0..events / 1_000 {
        let events = (0..1_000).map(|_| event(&topic, "x")).collect();
        publish(&mut publisher, events).await.unwrap();
    }
    server
}

/// Sixteen replays share one connection with a live stream. However many events that gets one by one, it gets them all
/// before any of the replays has come to its end.
#[tokio::test]
async fn isolation_live_stream_goes_on_beside_costly_replays_of_its_connection() {
    let server = server_with_history(10_000).await;
    let mut publisher = server.client().await;
    let mut shared = server.client().await;
    let mut quiet = subscribe(&mut shared, filters(&["quiet"])).await;
    let mut replays = Vec::new();
    for stream in 0..16 {
        replays.push(subscribe(&mut shared, costly(stream)).await);
    }
    for _ in 0..20 {
        publish(&mut publisher, vec![event("quiet", "x")])
            .await
            .unwrap();
        quiet.events(1).await;
    }
    let listed = server.hub.subscriptions();
    let handed_off: u64 = listed.iter().map(|stream| stream.handed_off).sum();
    assert_eq!((listed.len(), handed_off), (17, 20));
    for replay in &mut replays {
        let ended = tokio::select! {
            biased;
            response = replay.next() => Some(response),
            () = tokio::task::yield_now() => None,
        };
        assert!(
            ended.is_none(),
            "over before the live stream had its events: {ended:?}"
        );
    }
}

/// A replay of the newest events that has not found the first of them has no position: none would bring back what was
/// asked for.
#[tokio::test]
async fn honest_endings_before_the_first_event_of_a_replay_of_the_last_have_no_position() {
    let server = server_with_history(4_000).await;
    let mut client = server.client().await;
    let mut stream = subscribe(&mut client, costly(0)).await;
    server.hub.close(CloseReason::ShuttingDown);
    let (going_away, status) = stream.end().await;
    assert_eq!(going_away.unwrap().resume_after, None);
    assert_eq!(status.code(), Code::Unavailable);
    let facts = status.get_details_error_info().unwrap().metadata;
    assert!(!facts.contains_key("resume_after_epoch"), "{facts:?}");
    assert!(!facts.contains_key("resume_after_sequence"), "{facts:?}");
    assert!(facts.contains_key("backlog"));
}
