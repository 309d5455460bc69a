//! Overflow policies, releases at intervals, stalls and the memory budget, over real sockets.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tidegate::{StallPolicy, SweepRules, proto::*};
use tidegate_server::{Http2Config, ServerConfig};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{self, Instant},
};
use tonic::{Code, transport::Uri};

use crate::common::*;

fn limits(max_events: u32, overflow: Overflow) -> Option<Limits> {
    Some(Limits {
        max_events,
        max_bytes: 64 << 20,
        overflow: overflow.into(),
    })
}

fn keyed(topic: &str, key: usize, value: usize) -> NewEvent {
    NewEvent {
        key: key.to_string(),
        ..event(topic, value.to_string())
    }
}

/// Publishes in batches of 500.
async fn publish_all(client: &mut Client, events: impl IntoIterator<Item = NewEvent>) {
    let mut events = events.into_iter().peekable();
    while events.peek().is_some() {
        publish(client, events.by_ref().take(500).collect())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn conflate_delivers_the_newest_of_each_key_and_counts_the_rest() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    let request = |overflow| SubscribeRequest {
        limits: limits(60_000, overflow),
        ..filters(&["price"])
    };
    let mut conflated = subscribe(&mut server.client().await, request(Overflow::Conflate)).await;
    // One filter, another policy: they share the feed.
    let mut whole = subscribe(&mut server.client().await, request(Overflow::DropOldest)).await;
    let total = 50_000;
    publish_all(&mut client, (0..total).map(|i| keyed("price", i % 10, i))).await;
    assert_eq!(server.hub.stats().feeds, 3);

    let mut latest = BTreeMap::new();
    let mut gaps = 0;
    while conflated.next_index < total as u64 {
        match conflated.next().await.unwrap() {
            Response::Batch(batch) => {
                latest.extend(
                    batch
                        .events
                        .into_iter()
                        .map(|event| (event.key, event.payload)),
                );
            }
            Response::Gap(gap) => {
                assert_eq!(gap.reason(), GapReason::Conflated);
                gaps += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(conflated.delivered + conflated.counted, total as u64);
    assert!(gaps > 0, "it was read after all was published");
    for key in 0..10 {
        assert_eq!(latest[&key.to_string()], (total - 10 + key).to_string());
    }
    assert_eq!(server.hub.stats().conflated, conflated.counted);
    whole.events(total).await;
}

#[tokio::test]
async fn min_interval_spaces_releases_of_all_that_is_ready() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    let interval = Duration::from_millis(300);
    let request = SubscribeRequest {
        limits: limits(1_000, Overflow::Conflate),
        min_interval: Some(interval.try_into().unwrap()),
        ..filters(&["price"])
    };
    let mut dashboard = subscribe(&mut server.client().await, request).await;
    let publishing = tokio::spawn(async move {
        let mut pace = time::interval(Duration::from_millis(5));
        for i in 0..300 {
            pace.tick().await;
            publish_all(&mut client, (0..100).map(|key| keyed("price", key, i))).await;
        }
    });
    let began = Instant::now();
    let mut releases = 0;
    while dashboard.next_index < 30_000 {
        if let Response::Batch(batch) = dashboard.next().await.unwrap() {
            releases += 1;
            assert!(batch.events.len() <= 100);
        }
    }
    publishing.await.unwrap();
    assert_eq!(dashboard.delivered + dashboard.counted, 30_000);
    // Each release is one batch: the newest of 100 keys fit into a chunk. However slow the machine is, there are
    // no more of them than the time allows.
    let most = began.elapsed().as_millis() / interval.as_millis() + 2;
    assert!(releases > 3 && releases <= most, "{releases} of {most}");
    assert!(u128::from(dashboard.delivered) <= most * 100);
}

#[tokio::test]
async fn min_interval_delays_neither_replay_nor_first_event() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    publish_all(&mut client, (0..5_000).map(|i| event("t", i.to_string()))).await;
    let request = SubscribeRequest {
        replay_last: 5_000,
        limits: limits(10, Overflow::DropOldest),
        min_interval: Some(Duration::from_secs(3_600).try_into().unwrap()),
        ..filters(&["t"])
    };
    let mut stream = subscribe(&mut client, request).await;
    stream.events(5_000).await;
    assert!(matches!(
        stream.next().await.unwrap(),
        Response::CaughtUp(_)
    ));
    publish(&mut client, vec![event("t", "first live")])
        .await
        .unwrap();
    assert_eq!(stream.events(1).await[0].payload, "first live");
}

fn sweep(grace: Duration) -> ServerConfig {
    let sweep = SweepRules {
        stall_timeout: Some(Duration::from_millis(200)),
        on_stall: StallPolicy::Close,
        reset_grace: grace,
    };
    ServerConfig {
        sweep,
        ..ServerConfig::default()
    }
}

#[tokio::test]
async fn a_stalled_stream_gets_its_status_within_the_grace() {
    let server = Running::start(sweep(PATIENCE)).await;
    let mut stream = subscribe(
        &mut server.client_with_small_windows().await,
        filters(&["t"]),
    )
    .await;
    publish_all(
        &mut server.client().await,
        (0..2_000).map(|_| event("t", [0; 1_000])),
    )
    .await;
    server
        .until("it is found stalled", |stats| stats.ended_stalled == 1)
        .await;
    let status = loop {
        match stream.next().await {
            Ok(Response::Batch(_) | Response::Gap(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(status) => break status,
        }
    };
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "STALLED")
    );
    assert_eq!(server.hub.stats().reset, 0);
    server
        .until("it is gone", |stats| stats.subscriptions == 0)
        .await;
}

#[tokio::test]
async fn a_stalled_stream_is_reset_and_its_neighbor_lives() {
    let server = Running::start(sweep(Duration::from_millis(200))).await;
    // Both on one connection.
    let mut client = server.client_with_small_windows().await;
    let mut stalled = subscribe(&mut client, filters(&["t"])).await;
    stalled.is_disturbed = true;
    let mut neighbor = subscribe(&mut client, filters(&["u"])).await;
    publish_all(
        &mut server.client().await,
        (0..2_000).map(|_| event("t", [0; 1_000])),
    )
    .await;
    server
        .until("the stalled one is reset and gone", |stats| {
            stats.reset == 1 && stats.subscriptions == 1
        })
        .await;
    publish(&mut server.client().await, vec![event("u", "x")])
        .await
        .unwrap();
    neighbor.events(1).await;
    let status = loop {
        if let Err(status) = stalled.next().await {
            break status;
        }
    };
    assert_ne!(status.code(), Code::Ok);
}

#[tokio::test]
async fn a_stalled_stream_stays_parked_by_default() {
    let sweep = SweepRules {
        stall_timeout: Some(Duration::from_millis(100)),
        ..SweepRules::default()
    };
    let server = Running::start(ServerConfig {
        sweep,
        ..ServerConfig::default()
    })
    .await;
    let mut stream = subscribe(
        &mut server.client_with_small_windows().await,
        filters(&["t"]),
    )
    .await;
    publish_all(
        &mut server.client().await,
        (0..2_000).map(|_| event("t", [0; 1_000])),
    )
    .await;
    server
        .until("it is seen to be stalled", |stats| stats.stalled == 1)
        .await;
    while stream.next_index < 2_000 {
        stream.next().await.unwrap();
    }
    server
        .until("it is not stalled any more", |stats| stats.stalled == 0)
        .await;
}

#[tokio::test]
async fn the_write_timeout_ends_a_peer_that_reads_nothing() {
    let http2 = Http2Config {
        write_timeout: Duration::from_millis(500),
        ..Http2Config::default()
    };
    let server = Running::start(ServerConfig {
        http2,
        ..ServerConfig::default()
    })
    .await;
    let is_shut = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&is_shut);
    let connector = tower::service_fn(move |uri: Uri| {
        let gate = Arc::clone(&gate);
        async move {
            let stream = TcpStream::connect(uri.authority().unwrap().as_str()).await?;
            io::Result::Ok(TokioIo::new(Gated { stream, gate }))
        }
    });
    let most = (1 << 31) - 1;
    let endpoint = server
        .endpoint()
        .initial_stream_window_size(most)
        .initial_connection_window_size(most);
    let mut client = server.client_over(endpoint.connect_with_connector(connector).await.unwrap());
    let request = SubscribeRequest {
        limits: limits(60_000, Overflow::DropOldest),
        ..filters(&["t"])
    };
    let _stream = subscribe(&mut client, request).await;
    is_shut.store(true, Relaxed);
    let mut publisher = server.client().await;
    let began = Instant::now();
    while server.hub.stats().subscriptions == 1 {
        assert!(began.elapsed() < PATIENCE, "it is still there");
        publish_all(&mut publisher, (0..500).map(|_| event("t", [0; 1_000]))).await;
    }
}

/// A connection that, once its gate is shut, is never read again.
struct Gated {
    stream: TcpStream,
    gate: Arc<AtomicBool>,
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.gate.load(Relaxed) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
