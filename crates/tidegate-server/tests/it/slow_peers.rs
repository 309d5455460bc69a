//! Peers that take a large event slowly, or not at all: the first are left alone, the second hold their share of memory
//! and no more. Each opens its window by hand.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest};
use http::Request;
use prost::Message as _;
use tidegate::{HistoryLimits, StallPolicy, SweepRules};
use tidegate_server::ServerConfig;
use tokio::{net::TcpStream, time};

use crate::common::*;

/// A connection whose streams have a window of `window` bytes each, and room for all of them together.
async fn connect(server: &Running, window: u32) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(64 << 20)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    send
}

/// Subscribes to one topic, and waits for the answer.
async fn subscribe_raw(connection: &SendRequest<Bytes>, topic: &str) -> RecvStream {
    let request = Request::post("http://server/tidegate.v1.EventService/Subscribe")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let mut connection = connection.clone().ready().await.unwrap();
    let (response, mut body) = connection
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    let message = filters(&[topic]).encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    body.send_data(frame.freeze(), true).unwrap();
    response.await.unwrap().into_body()
}

/// Takes at least `len` bytes, and opens the window again for each piece after a pause.
async fn take_slowly(stream: &mut RecvStream, len: usize, pause: Duration) {
    let mut taken = 0;
    while taken < len {
        let piece = time::timeout(PATIENCE, stream.data())
            .await
            .expect("nothing comes")
            .expect("the stream has ended")
            .expect("the stream was reset");
        time::sleep(pause).await;
        stream.flow_control().release_capacity(piece.len()).unwrap();
        taken += piece.len();
    }
}

/// At 10 kB/s, half a window in each pause, a chunk takes longer than the stall timeout, and so does each slice of a large event.
#[tokio::test]
async fn peer_that_takes_a_large_event_slowly_is_not_stalled_and_one_that_stops_is() {
    let sweep = SweepRules {
        stall_timeout: Some(Duration::from_secs(1)),
        on_stall: StallPolicy::Close,
        reset_grace: Duration::from_secs(1),
    };
    let server = Running::start(ServerConfig {
        sweep,
        ..ServerConfig::default()
    })
    .await;
    let mut stream = subscribe_raw(&connect(&server, 1_024).await, "t").await;
    let mut publisher = server.client().await;
    let large = event("t", [0; 40_000]);
    publish(&mut publisher, vec![large, event("t", "behind it")])
        .await
        .unwrap();
    take_slowly(&mut stream, 40_000, Duration::from_millis(50)).await;
    let stats = server.hub.stats();
    assert_eq!((stats.ended_stalled, stats.subscriptions), (0, 1));

    // Nothing waits behind this one, and the peer stops in the middle of it.
    publish(&mut publisher, vec![event("t", [0; 100_000])])
        .await
        .unwrap();
    take_slowly(&mut stream, 5_000, Duration::ZERO).await;
    server
        .until("it is reset, and nothing of it is left", |stats| {
            let is_ended = stats.ended_stalled == 1 && stats.reset == 1;
            is_ended && stats.subscriptions == 0 && stats.sending_bytes == 0
        })
        .await;
}

/// An end is told behind what was begun. The peer takes that slowly, and gets its status.
#[tokio::test]
async fn peer_that_takes_a_large_event_slowly_is_told_the_end_behind_it() {
    let sweep = SweepRules {
        reset_grace: Duration::from_secs(1),
        ..SweepRules::default()
    };
    let server = Running::start(ServerConfig {
        sweep,
        ..ServerConfig::default()
    })
    .await;
    let mut stream = subscribe_raw(&connect(&server, 1_024).await, "t").await;
    let mut publisher = server.client().await;
    publish(&mut publisher, vec![event("t", [0; 40_000])])
        .await
        .unwrap();
    take_slowly(&mut stream, 1_000, Duration::ZERO).await;
    let clients = server.hub.subscriptions();
    server.hub.disconnect(&clients[0].client_id);
    take_slowly(&mut stream, 39_000, Duration::from_millis(50)).await;
    let status = async {
        while let Some(piece) = stream.data().await {
            let len = piece.unwrap().len();
            stream.flow_control().release_capacity(len).unwrap();
        }
        stream.trailers().await.unwrap().unwrap()
    };
    let trailers = time::timeout(PATIENCE, status).await.expect("no status");
    assert_eq!(trailers["grpc-status"], "10", "ABORTED");
    assert_eq!(server.hub.stats().reset, 0);
}

#[tokio::test]
async fn peers_that_stop_in_large_events_hold_half_of_the_budget_and_spare_history() {
    const BUDGET: u64 = 16 << 20;
    let history = HistoryLimits {
        max_bytes: 2 << 20,
        ..HistoryLimits::default()
    };
    let server = Running::start(ServerConfig {
        memory_budget: Some(BUDGET),
        history,
        ..ServerConfig::default()
    })
    .await;
    // All on one connection: those that are reset leave the others and their neighbor alone.
    let connection = connect(&server, 65_535).await;
    let mut neighbor = subscribe_raw(&connection, "small").await;
    let mut publisher = server.client().await;
    let mut peers = Vec::new();
    for i in 0..40 {
        let topic = format!("large.{i}");
        peers.push(subscribe_raw(&connection, &topic).await);
        let large = event(&topic, vec![0; 1_000_000]);
        publish(&mut publisher, vec![large]).await.unwrap();
    }
    server
        .until("the oldest are reset, and the others hold half", |stats| {
            let is_within = stats.sending_bytes <= BUDGET / 2;
            is_within && stats.reset > 30 && stats.subscriptions == 41 - stats.reset
        })
        .await;
    let stats = server.hub.stats();
    assert!(stats.sending_bytes >= 6_000_000, "{stats:?}");
    assert!(stats.retained_bytes <= BUDGET, "{stats:?}");
    let small: Vec<_> = (0..500).map(|_| event("small", [0; 1_000])).collect();
    publish(&mut publisher, small).await.unwrap();
    assert!(server.hub.stats().history_events >= 500);
    take_slowly(&mut neighbor, 500_000, Duration::ZERO).await;
    drop(peers);
}
