//! Subscriptions and publishing over real sockets, as the contract describes them.

use std::{iter, time::Duration};

use tidegate::{CloseReason, HistoryLimits, Reason, proto::*};
use tidegate_server::ServerConfig;
use tokio::time;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::common::*;

async fn start() -> (Running, Client) {
    let server = Running::start(ServerConfig::default()).await;
    let client = server.client().await;
    (server, client)
}

#[tokio::test]
async fn order_events_arrive_once_whatever_filters_overlap() {
    let (_server, mut client) = start().await;
    let mut stream = subscribe(&mut client, filters(&["a.*", "*.b", "a.b", "c.>"])).await;
    let topics = ["a.b", "x.y", "c.d.e", "a.x", "z.b", "a.b"];
    let answer = publish(
        &mut client,
        topics.iter().map(|topic| event(topic, *topic)).collect(),
    )
    .await
    .unwrap();
    assert_eq!((answer.count, answer.matched), (6, 5));
    assert_eq!(answer.last_sequence - answer.first_sequence, 5);
    let topics: Vec<_> = stream
        .events(5)
        .await
        .into_iter()
        .map(|event| event.topic)
        .collect();
    assert_eq!(topics, ["a.b", "c.d.e", "a.x", "z.b", "a.b"]);
}

#[tokio::test]
async fn large_events_come_whole_between_small_ones() {
    let (_server, mut client) = start().await;
    let request = SubscribeRequest {
        limits: Some(Limits {
            max_bytes: 16 << 20,
            ..Default::default()
        }),
        ..filters(&[">"])
    };
    let mut stream = subscribe(&mut client, request).await;
    let sizes = [
        10, 16_000, 16_384, 100_000, 1, 0, 1_000_000, 20_000, 20_000, 3,
    ];
    let payload = |i: usize| {
        (0..sizes[i])
            .map(|b| (b * 7 + i) as u8)
            .collect::<Vec<u8>>()
    };
    publish(
        &mut client,
        (0..sizes.len()).map(|i| event("t", payload(i))).collect(),
    )
    .await
    .unwrap();
    for (i, event) in stream.events(sizes.len()).await.into_iter().enumerate() {
        assert!(
            event.payload == payload(i),
            "event {i} of {} bytes differs",
            sizes[i]
        );
    }
}

#[tokio::test]
async fn no_silent_loss_an_unread_stream_gets_an_exact_gap() {
    let (server, mut client) = start().await;
    let mut stalled = subscribe(&mut server.client().await, filters(&["t"])).await;
    let mut healthy = subscribe(&mut server.client().await, filters(&["t"])).await;
    healthy.is_healthy = true;
    let total = 50_000;
    for _ in 0..total / 500 {
        publish(
            &mut client,
            iter::repeat_with(|| event("t", [7; 1_000]))
                .take(500)
                .collect(),
        )
        .await
        .unwrap();
        healthy.events(500).await;
    }
    assert_eq!((healthy.delivered, healthy.counted), (total, 0));
    let mut gaps = 0;
    while stalled.next_index < total {
        gaps += u32::from(matches!(stalled.next().await.unwrap(), Response::Gap(_)));
    }
    assert_eq!(gaps, 1, "one gap, after what the transport held");
    assert_eq!(stalled.delivered + stalled.counted, total);
    let dropped = server.hub.stats().overflowed;
    assert_eq!(
        stalled.counted, dropped,
        "what the server counted is what the client was told"
    );
    assert!(
        stalled.delivered >= 1_024,
        "the newest events that its limits admit arrive"
    );
}

#[tokio::test]
async fn resume_joins_replay_and_live_while_events_are_published() {
    let (server, mut client) = start().await;
    let first = subscribe(&mut client, filters(&["t"])).await;
    let total = 20_000;
    let mut publisher = server.client().await;
    let publishing = tokio::spawn(async move {
        for i in 0..total / 100 {
            let events = (0..100)
                .map(|j| event("t", (i * 100 + j).to_string()))
                .collect();
            publish(&mut publisher, events).await.unwrap();
        }
    });
    let mut seen: Vec<String> = Vec::new();
    let text = |event: &Event| String::from_utf8(event.payload.to_vec()).unwrap();
    let mut position = first.subscribed.position.unwrap();
    let mut stream = first;
    while seen.len() < total {
        // Break the stream off after each few batches, wherever that is, and go on from the last event.
        for _ in 0..3 {
            match stream.next().await.unwrap() {
                Response::Batch(batch) => {
                    seen.extend(batch.events.iter().map(text));
                    position.sequence = batch.events.last().unwrap().sequence;
                }
                Response::CaughtUp(_) | Response::Heartbeat(_) => {}
                other => panic!("nothing may be missing: {other:?}"),
            }
            if seen.len() == total {
                break;
            }
        }
        let request = SubscribeRequest {
            resume_after: Some(position),
            ..filters(&["t"])
        };
        stream = subscribe(&mut client, request).await;
    }
    publishing.await.unwrap();
    let expected: Vec<_> = (0..total).map(|i| i.to_string()).collect();
    assert!(
        seen == expected,
        "something was missed or repeated at a seam"
    );
}

#[tokio::test]
async fn resume_from_elsewhere_reports_the_gap_first() {
    let history = HistoryLimits {
        max_events: 10,
        ..HistoryLimits::default()
    };
    let server = Running::start(ServerConfig {
        history,
        ..ServerConfig::default()
    })
    .await;
    let mut client = server.client().await;
    let answer = publish(
        &mut client,
        (0..30).map(|i| event("t", i.to_string())).collect(),
    )
    .await
    .unwrap();
    let epoch = answer.epoch;
    let resume = |epoch, sequence| SubscribeRequest {
        resume_after: Some(Position { epoch, sequence }),
        ..filters(&["t"])
    };
    let gap = |reason: GapReason, first_sequence, last_sequence| Gap {
        first_sequence,
        last_sequence,
        reason: reason.into(),
        ..Default::default()
    };
    // Before history, of another epoch, and just at the edge.
    for (request, missing) in [
        (resume(epoch, 5), Some(gap(GapReason::Expired, 6, 20))),
        (resume(epoch, 0), Some(gap(GapReason::Expired, 1, 20))),
        (
            resume(epoch ^ 2, 5),
            Some(gap(GapReason::EpochChanged, 0, 20)),
        ),
        (resume(epoch, 20), None),
    ] {
        let mut stream = subscribe(&mut client, request).await;
        if let Some(missing) = missing {
            assert_eq!(stream.next().await.unwrap(), Response::Gap(missing));
        }
        let sequences: Vec<_> = stream
            .events(10)
            .await
            .iter()
            .map(|event| event.sequence)
            .collect();
        assert_eq!(sequences, Vec::from_iter(21..=30));
        let caught_up = CaughtUp {
            position: Some(Position {
                epoch,
                sequence: 30,
            }),
        };
        assert_eq!(stream.next().await.unwrap(), Response::CaughtUp(caught_up));
    }
    let status = client.subscribe(resume(epoch, 31)).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::OutOfRange, "POSITION_AHEAD")
    );
}

#[tokio::test]
async fn heartbeats_move_past_events_that_do_not_match() {
    let (_server, mut client) = start().await;
    let request = SubscribeRequest {
        heartbeat_interval: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..filters(&["quiet"])
    };
    let mut stream = subscribe(&mut client, request).await;
    let answer = publish(&mut client, vec![event("loud", "x")])
        .await
        .unwrap();
    let began = time::Instant::now();
    let Response::Heartbeat(heartbeat) = stream.next().await.unwrap() else {
        panic!("not a heartbeat")
    };
    assert!(began.elapsed() >= Duration::from_millis(900));
    assert_eq!(heartbeat.position.unwrap().sequence, answer.last_sequence);
}

#[tokio::test]
async fn a_bad_publish_changes_nothing() {
    let (server, mut client) = start().await;
    let big = vec![0; 1 << 20];
    for (events, code, why) in [
        (
            vec![event("good", "x"), event("bad.*", "x")],
            Code::InvalidArgument,
            "INVALID_TOPIC",
        ),
        (
            vec![event("good", "x"), event("$sys", "x")],
            Code::InvalidArgument,
            "INVALID_TOPIC",
        ),
        (vec![], Code::InvalidArgument, "INVALID_REQUEST"),
        (
            vec![event("good", vec![0; 9 << 20])],
            Code::InvalidArgument,
            "BATCH_TOO_LARGE",
        ),
        (
            vec![NewEvent {
                time: Some(prost_types::Timestamp {
                    seconds: i64::MAX,
                    nanos: 0,
                }),
                ..event("good", "x")
            }],
            Code::InvalidArgument,
            "INVALID_REQUEST",
        ),
        (
            (0..1_001).map(|_| event("good", "x")).collect(),
            Code::InvalidArgument,
            "TOO_MANY_EVENTS",
        ),
        (
            vec![event("good", "x"), event("good", big.clone())],
            Code::InvalidArgument,
            "EVENT_TOO_LARGE",
        ),
        (
            (0..5).map(|_| event("good", &big[..1_000_000])).collect(),
            Code::InvalidArgument,
            "BATCH_TOO_LARGE",
        ),
    ] {
        let status = publish(&mut client, events).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (code, why),
            "{status:?}"
        );
    }
    let stats = server.hub.stats();
    assert_eq!((stats.published, stats.history_events), (0, 0));
}

#[tokio::test]
async fn a_bad_subscribe_changes_nothing() {
    let (server, mut client) = start().await;
    let holder = SubscribeRequest {
        client_id: "c".into(),
        ..filters(&["a"])
    };
    let _held = subscribe(&mut client, holder).await;
    let bad = |change: fn(&mut SubscribeRequest)| {
        let mut request = SubscribeRequest {
            client_id: "c".into(),
            ..filters(&["a"])
        };
        change(&mut request);
        request
    };
    for (request, why) in [
        (bad(|r| r.filters = vec!["a..b".into()]), "INVALID_FILTER"),
        (
            bad(|r| r.filters = vec!["$client.c".into()]),
            "INVALID_FILTER",
        ),
        (
            bad(|r| r.filters = vec!["a".into(); 1_025]),
            "TOO_MANY_FILTERS",
        ),
        (
            bad(|r| r.filters = vec!["a.b.c.d.e.f.g.h.i".into(); 1_000]),
            "TOO_MANY_FILTERS",
        ),
        (
            bad(|r| r.filters = vec!["x".repeat(600_000)]),
            "INVALID_REQUEST",
        ),
        (bad(|r| r.client_id = "a.b".into()), "INVALID_CLIENT_ID"),
        (
            bad(|r| {
                r.limits = Some(Limits {
                    overflow: 9,
                    ..Default::default()
                })
            }),
            "INVALID_LIMITS",
        ),
        (
            bad(|r| r.resume_after = Some(Position::default())),
            "INVALID_POSITION",
        ),
        (
            bad(|r| {
                r.heartbeat_interval = Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 5,
                })
            }),
            "INVALID_REQUEST",
        ),
        (
            bad(|r| {
                r.resume_after = Some(Position {
                    epoch: 1,
                    sequence: 1,
                });
                r.replay_last = 1;
            }),
            "INVALID_REQUEST",
        ),
    ] {
        let status = client.subscribe(request).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, why),
            "{status:?}"
        );
    }
    // The holder of the id was not taken over by a request that was refused.
    server
        .until("the holder is there", |stats| stats.subscriptions == 1)
        .await;
}

#[tokio::test]
async fn publish_stream_answers_in_order_to_the_first_bad_request() {
    let (server, mut client) = start().await;
    let requests: Vec<_> = (0..100)
        .map(|i| PublishRequest {
            events: vec![event(if i == 60 { "bad.*" } else { "t" }, i.to_string())],
        })
        .collect();
    let mut answers = client
        .publish_stream(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    for sequence in 1..=60 {
        assert_eq!(
            answers.message().await.unwrap().unwrap().first_sequence,
            sequence
        );
    }
    let status = answers.message().await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, "INVALID_TOPIC")
    );
    assert_eq!(server.hub.stats().published, 60);
}

#[tokio::test]
async fn an_event_to_a_client_reaches_that_client_alone() {
    let (_server, mut client) = start().await;
    let request = |id: &str| SubscribeRequest {
        client_id: id.into(),
        ..filters(&[">"])
    };
    let mut alice = subscribe(&mut client, request("alice")).await;
    let mut bob = subscribe(&mut client, request("bob")).await;
    let answer = publish(
        &mut client,
        vec![event("$client.alice", "psst"), event("all", "hi")],
    )
    .await
    .unwrap();
    assert_eq!(answer.matched, 3);
    assert_eq!(alice.events(2).await.len(), 2);
    assert_eq!(bob.events(1).await[0].topic, "all");
}

#[tokio::test]
async fn too_slow_under_disconnect_ends_with_resource_exhausted() {
    let (_server, mut client) = start().await;
    let limits = Limits {
        max_events: 10,
        overflow: Overflow::Disconnect.into(),
        ..Default::default()
    };
    let mut stream = subscribe(
        &mut client,
        SubscribeRequest {
            limits: Some(limits),
            ..filters(&["t"])
        },
    )
    .await;
    publish(&mut client, (0..50).map(|_| event("t", "x")).collect())
        .await
        .unwrap();
    let (_, status) = stream.end().await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "TOO_SLOW")
    );
}

#[tokio::test]
async fn honest_endings_each_cause_has_its_status_and_position() {
    for (cause, code, expected) in [
        (CloseReason::TakenOver, Code::Aborted, Reason::TakenOver),
        (
            CloseReason::ShuttingDown,
            Code::Unavailable,
            Reason::ShuttingDown,
        ),
        (
            CloseReason::TooSlow,
            Code::ResourceExhausted,
            Reason::TooSlow,
        ),
        (
            CloseReason::Stalled,
            Code::ResourceExhausted,
            Reason::Stalled,
        ),
        (
            CloseReason::Disconnected,
            Code::Aborted,
            Reason::Disconnected,
        ),
        (
            CloseReason::EpochChanged,
            Code::Unavailable,
            Reason::EpochChanged,
        ),
    ] {
        let (server, mut client) = start().await;
        let mut stream = subscribe(&mut client, filters(&["t"])).await;
        let answer = publish(&mut client, vec![event("t", "x")]).await.unwrap();
        stream.events(1).await;
        server.hub.close(cause);
        let (going_away, status) = stream.end().await;
        assert_eq!(going_away.is_some(), cause == CloseReason::ShuttingDown);
        assert_eq!(status.code(), code, "{cause:?}");
        assert_eq!(reason(&status), expected.as_str());
        assert_eq!(expected.code(), code);
        let info = status.get_details_error_info().unwrap();
        let fact = |name: &str| info.metadata[name].parse::<u64>().unwrap();
        let position = (fact("resume_after_epoch"), fact("resume_after_sequence"));
        assert_eq!(position, (answer.epoch, answer.last_sequence));
        // A later stream is told the same.
        let refused = client.subscribe(filters(&["t"])).await.unwrap_err();
        assert_eq!(refused.code(), code);
    }
}

#[tokio::test]
async fn honest_endings_a_drain_says_where_to_resume() {
    let (server, mut client) = start().await;
    let mut stream = subscribe(&mut client, filters(&["t"])).await;
    let answer = publish(&mut client, vec![event("t", "x")]).await.unwrap();
    stream.events(1).await;
    let unread = subscribe(&mut server.client().await, filters(&["t"])).await;
    let report = tokio::spawn(server.stop());
    let (going_away, status) = stream.end().await;
    let position = Position {
        epoch: answer.epoch,
        sequence: answer.last_sequence,
    };
    assert_eq!(going_away.unwrap().resume_after, Some(position));
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "SHUTTING_DOWN")
    );
    let report = report.await.unwrap();
    assert_eq!((report.connections_drained, report.connections_cut), (2, 0));
    drop(unread);
}

#[tokio::test]
async fn honest_endings_before_a_first_gap_keep_the_asked_position() {
    let server = Running::start(ServerConfig {
        history: HistoryLimits::OFF,
        ..ServerConfig::default()
    })
    .await;
    let mut client = server.client().await;
    let answer = publish(&mut client, (0..5).map(|_| event("t", "x")).collect())
        .await
        .unwrap();
    let asked = Position {
        epoch: answer.epoch,
        sequence: 1,
    };
    // Nothing of the stream is read before the server ends it.
    let request = SubscribeRequest {
        resume_after: Some(asked),
        ..filters(&["t"])
    };
    let mut stream = subscribe(&mut client, request).await;
    let report = tokio::spawn(server.stop());
    loop {
        match stream.next().await {
            Ok(Response::Gap(gap)) => assert_eq!(gap.reason(), GapReason::Expired),
            Ok(Response::CaughtUp(_)) => {}
            Ok(Response::GoingAway(going_away)) => {
                let position = going_away.resume_after.unwrap();
                let told = stream.gaps > 0;
                assert_eq!(
                    position.sequence,
                    if told { answer.last_sequence } else { 1 }
                );
            }
            Ok(other) => panic!("{other:?}"),
            Err(status) => break assert_eq!(reason(&status), "SHUTTING_DOWN"),
        }
    }
    report.await.unwrap();
}

#[tokio::test]
async fn a_silent_connection_delays_no_drain() {
    let server = Running::start(ServerConfig::default()).await;
    let _silent = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    // A client that came after it and was served shows that the silent one was accepted.
    let _stream = subscribe(&mut server.client().await, filters(&["t"])).await;
    assert_eq!(server.stop().await.connections_cut, 0);
}
