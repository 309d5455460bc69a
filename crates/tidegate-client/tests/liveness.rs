//! A slow peer is waited for as long as bytes move, and a dead one is noticed.

mod support;

use std::time::Duration;

use bytes::Bytes;
use support::{
    raw::{RawServer, RawStream, message},
    *,
};
use tidegate_client::{Backoff, Error, NewEvent, SubscribeOptions, Subscription, Update};
use tidegate_proto::v1::{Batch, Event, SubscribeResponse, subscribe_response::Response as Kind};
use tokio::time::{Instant, sleep, timeout};

/// Interval of heartbeats. A stream is broken after three of them.
const INTERVAL: Duration = Duration::from_millis(200);

/// Silence that breaks a stream.
const SILENCE: Duration = Duration::from_millis(600);

/// Longest wait for a thing that happens sooner, on a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

fn options() -> SubscribeOptions {
    support::options()
        .heartbeat_interval(INTERVAL)
        .backoff(Backoff {
            base: Duration::ZERO,
            max: Duration::ZERO,
        })
}

fn large_event(sequence: u64, bytes: usize) -> SubscribeResponse {
    let event = Event {
        sequence,
        topic: "a.b".into(),
        payload: vec![7; bytes].into(),
        ..Default::default()
    };
    SubscribeResponse {
        response: Some(Kind::Batch(Batch {
            events: vec![event],
            first_index: 0,
        })),
    }
}

async fn begin(server: &mut RawServer, subscription: &mut Subscription) -> RawStream {
    let mut stream = server.call(subscription).await.open();
    stream.send(&subscribed(10));
    expect(subscription, &["subscribed"]).await;
    stream
}

/// Expects the subscription to find its stream broken, no sooner than a silence after `since`, which was before the
/// last byte.
async fn expect_broken(subscription: &mut Subscription, since: Instant) {
    let update = timeout(PATIENCE, subscription.next()).await;
    let update = update.expect("a dead peer is not noticed");
    assert!(
        matches!(update, Some(Ok(Update::Reconnecting { .. }))),
        "{update:?}"
    );
    assert!(since.elapsed() >= SILENCE, "{:?}", since.elapsed());
}

#[tokio::test]
async fn event_that_takes_longer_than_three_heartbeats_arrives() {
    let mut server = RawServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let mut stream = begin(&mut server, &mut subscription).await;
    let event = message(&large_event(11, 30_000));
    let begin = Instant::now();
    let send = async {
        for piece in event.chunks(1500) {
            stream.bytes(Bytes::copy_from_slice(piece));
            sleep(SILENCE / 6).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = expect(&mut subscription, &["event 11"]) => {}
        () = send => unreachable!(),
    }
    assert!(begin.elapsed() > SILENCE * 3);
}

#[tokio::test]
async fn frame_that_takes_longer_than_three_heartbeats_arrives() {
    let mut server = RawServer::start().await;
    // One DATA frame of 16 KiB takes three times the silence.
    let pace = Pace {
        piece: 800,
        pause: SILENCE / 7,
    };
    let wire = Wire::slow(server.address, pace).await;
    let mut subscription = wire.client().subscribe(options());
    let mut stream = begin(&mut server, &mut subscription).await;
    let begin = Instant::now();
    stream.send(&large_event(11, 16_000));
    expect(&mut subscription, &["event 11"]).await;
    assert!(begin.elapsed() > SILENCE * 2, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn program_that_was_busy_finds_the_part_that_arrived() {
    let mut server = RawServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let mut stream = begin(&mut server, &mut subscription).await;
    let event = message(&large_event(11, 1000));
    stream.bytes(event.slice(..500));
    sleep(SILENCE * 2).await;
    let rest = async {
        sleep(SILENCE / 3).await;
        stream.bytes(event.slice(500..));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = expect(&mut subscription, &["event 11"]) => {}
        () = rest => unreachable!(),
    }
}

#[tokio::test]
async fn half_an_event_and_then_silence_is_noticed() {
    let mut server = RawServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let since = Instant::now();
    let mut stream = begin(&mut server, &mut subscription).await;
    stream.bytes(message(&large_event(11, 1000)).slice(..500));
    expect_broken(&mut subscription, since).await;
    let again = server.call(&mut subscription).await;
    assert_eq!(again.request.resume_after, Some(at(10).into()));
}

#[tokio::test]
async fn silent_service_that_answers_pings_is_noticed() {
    let mut server = RawServer::start().await;
    let ping = Duration::from_millis(10);
    let client = server.builder().keep_alive(ping, PATIENCE).connect_lazy();
    let mut subscription = client.unwrap().subscribe(options());
    let since = Instant::now();
    let _stream = begin(&mut server, &mut subscription).await;
    expect_broken(&mut subscription, since).await;
    // At the first look, not put off by pings.
    assert!(since.elapsed() < SILENCE * 10, "{:?}", since.elapsed());
}

#[tokio::test]
async fn server_that_never_answers_is_noticed() {
    let mut server = RawServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let begin = Instant::now();
    let _unanswered = server.call(&mut subscription).await;
    expect_broken(&mut subscription, begin).await;
}

#[tokio::test]
async fn listener_that_never_speaks_is_noticed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = tidegate_client::Client::connect_lazy(format!("http://{address}")).unwrap();
    let mut subscription = client.subscribe(options());
    expect_broken(&mut subscription, Instant::now()).await;
}

#[tokio::test]
async fn half_open_connection_is_noticed_in_the_middle_of_an_event() {
    let mut server = RawServer::start().await;
    let wire = Wire::to(server.address).await;
    let mut subscription = wire.client().subscribe(options());
    let since = Instant::now();
    let mut stream = begin(&mut server, &mut subscription).await;
    let part = 200_000;
    stream.bytes(message(&large_event(11, 2 * part)).slice(..part));
    // More than is left of the window, so the client has taken the part.
    tokio::select! {
        () = stream.has_room(part) => {}
        update = subscription.next() => panic!("{update:?}"),
    }
    wire.stop();
    expect_broken(&mut subscription, since).await;
}

fn event(bytes: usize) -> NewEvent {
    NewEvent {
        topic: "a.b".into(),
        payload: vec![7; bytes].into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn publisher_on_a_slow_link_is_waited_for() {
    let mut server = FakeServer::start().await;
    let pace = Pace {
        piece: 8 * 1024,
        pause: Duration::from_millis(10),
    };
    let wire = Wire::slow(server.address, pace).await;
    // A ping is sent soon, and waits behind the event for far longer than it may.
    let (interval, limit) = (Duration::from_millis(100), Duration::from_millis(400));
    let client = wire.builder().keep_alive(interval, limit).connect_lazy();
    let mut publisher = client.unwrap().publisher(Default::default());
    let begin = Instant::now();
    publisher.send(event(1_000_000)).await.unwrap();
    let acknowledge = async {
        let mut call = server.publish_call().await;
        while let Some(request) = call.requests.message().await.unwrap() {
            let answer = acknowledgment(request.events.len());
            call.responses.send(Ok(answer)).await.unwrap();
        }
    };
    let (published, ()) = tokio::join!(publisher.finish(), acknowledge);
    assert_eq!(published.unwrap(), 1);
    assert!(
        begin.elapsed() > (interval + limit) * 2,
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn publisher_whose_server_vanished_fails() {
    let mut server = FakeServer::start().await;
    let wire = Wire::to(server.address).await;
    let short = Duration::from_millis(200);
    let client = wire.builder().keep_alive(short, short).connect_lazy();
    let mut publisher = client.unwrap().publisher(Default::default());
    publisher.send(event(1)).await.unwrap();
    let mut call = server.publish_call().await;
    call.requests.message().await.unwrap().unwrap();
    wire.stop();
    let failure = timeout(PATIENCE, publisher.finish()).await.unwrap();
    let failure = failure.unwrap_err();
    assert!(
        matches!(failure.error, Error::Unavailable(_)),
        "{failure:?}"
    );
    assert_eq!((failure.acknowledged, failure.unacknowledged), (0, 1));
}
