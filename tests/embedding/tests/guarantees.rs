//! The guarantees for a service with its own messages, over real sockets.

use tidegate::typed::Hub;
use tidegate_embedding_tests::{
    Counted, Running, missed, next, on,
    proto::{OnLoss, ServerEvent, WatchRequest},
    text, texts, watch,
};
use tonic::Code;

/// Events that fill every buffer of a connection that is not read.
const FLOOD: u64 = 2_000;

fn padded(number: u64) -> ServerEvent {
    ServerEvent {
        padding: vec![0; 4_096],
        ..text(number.to_string())
    }
}

#[tokio::test]
async fn event_is_encoded_once_for_any_number_of_subscribers() {
    let server = Running::start(Hub::new()).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let stream = server
            .client()
            .await
            .watch_counted(WatchRequest::default())
            .await;
        streams.push(stream.unwrap().into_inner());
    }
    let before = Counted::encodings();
    for number in 1..=50 {
        server.counted.publish(Counted { number }).unwrap();
    }
    for stream in &mut streams {
        for number in 1..=50 {
            assert_eq!(next(stream).await.unwrap(), Counted { number });
        }
    }
    assert_eq!(Counted::encodings() - before, 50);
}

#[tokio::test]
async fn a_subscriber_sees_its_topics_in_order_and_nothing_else() {
    let server = Running::start(Hub::new()).await;
    let mut client = server.client().await;
    let mut stream = client.watch(watch("rooms.*")).await.unwrap().into_inner();
    let published = [
        on("rooms.blue", "1"),
        on("jobs.1", "not this"),
        on("rooms.red", "2"),
        on("rooms.blue", "3"),
    ];
    server.hub.publish_all(published).unwrap();
    assert_eq!(texts(&mut stream, 3).await, ["1", "2", "3"]);
}

#[tokio::test]
async fn loss_is_reported_in_the_applications_message_in_its_place() {
    let server = Running::start(Hub::new()).await;
    let mut client = server.client_with_small_windows().await;
    let request = WatchRequest {
        max_events: 10,
        ..WatchRequest::default()
    };
    let mut stream = client.watch(request).await.unwrap().into_inner();
    for number in 1..=FLOOD {
        server.hub.publish(padded(number)).unwrap();
        // Meanwhile its connection fills its buffers.
        tokio::task::yield_now().await;
    }
    let (mut seen, mut lost) = (0, 0);
    while seen < FLOOD {
        let event = next(&mut stream).await.unwrap();
        if event.missed > 0 {
            lost += event.missed;
            seen += event.missed;
        } else {
            seen += 1;
            assert_eq!(event.text, seen.to_string(), "told where it is missing");
        }
    }
    assert!(lost > 0, "nothing was lost");
    let clients = server.hub.clients();
    assert_eq!((clients[0].lost, clients[0].backlog), (lost, 0));
    assert_eq!(clients[0].delivered, FLOOD - lost);
}

#[tokio::test]
async fn loss_ends_the_stream_under_that_policy() {
    let server = Running::start(Hub::new()).await;
    let mut client = server.client_with_small_windows().await;
    let mut request = WatchRequest {
        max_events: 10,
        ..WatchRequest::default()
    };
    request.set_on_loss(OnLoss::Fail);
    let mut stream = client.watch(request).await.unwrap().into_inner();
    for number in 1..=FLOOD {
        server.hub.publish(padded(number)).unwrap();
        tokio::task::yield_now().await;
    }
    let status = loop {
        if let Err(status) = next(&mut stream).await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::DataLoss);
    assert!(status.message().ends_with("are missing"), "{status:?}");
}

#[tokio::test]
async fn slow_subscriber_delays_no_other() {
    let server = Running::start(Hub::new()).await;
    let (mut slow, mut healthy) = (
        server.client_with_small_windows().await,
        server.client().await,
    );
    let mut stalled = slow
        .watch(WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut stream = healthy
        .watch(WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    for number in 1..=FLOOD {
        server.hub.publish(padded(number)).unwrap();
        let event = next(&mut stream).await.unwrap();
        assert_eq!(event.text, number.to_string());
    }
    assert_eq!(next(&mut stalled).await.unwrap().text, "1");
}

#[tokio::test]
async fn resume_misses_nothing_and_repeats_nothing() {
    let hub = Hub::builder().sequence_field(3).epoch_field(4).build();
    let server = Running::start(hub).await;
    let mut client = server.client().await;
    let mut stream = client.watch(watch("a.>")).await.unwrap().into_inner();
    for number in 1..=3 {
        server.hub.publish(on("a.b", &number.to_string())).unwrap();
    }
    let first = next(&mut stream).await.unwrap();
    assert_eq!(first.epoch, server.hub.position().epoch);
    drop(stream);
    let resumed = WatchRequest {
        epoch: first.epoch,
        sequence: first.sequence,
        ..watch("a.>")
    };
    let mut stream = client.watch(resumed).await.unwrap().into_inner();
    server.hub.publish(on("a.b", "4")).unwrap();
    assert_eq!(texts(&mut stream, 3).await, ["2", "3", "4"]);
}

#[tokio::test]
async fn lost_positions_are_reported_before_the_first_event() {
    let server = Running::start(Hub::new()).await;
    let mut client = server.client().await;
    server.hub.publish(text("1")).unwrap();
    let elsewhere = WatchRequest {
        epoch: 12_345,
        sequence: 7,
        ..WatchRequest::default()
    };
    let mut stream = client.watch(elsewhere).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap(), missed(0));
    assert_eq!(next(&mut stream).await.unwrap().text, "1");
}
