//! Publishing: order, batches, and the counts after a failure.

mod support;

use std::time::Duration;

use support::*;
use tidegate_client::{
    Backoff, Closed, Error, NewEvent, Progress, PublisherOptions, PublisherState, Violation,
};
use tonic::Status;

fn event(number: u64) -> NewEvent {
    NewEvent {
        topic: "a.b".into(),
        payload: number.to_be_bytes().to_vec().into(),
        ..Default::default()
    }
}

fn pairs() -> PublisherOptions {
    PublisherOptions {
        max_batch_events: 2,
        max_in_flight: 2,
        ..Default::default()
    }
}

#[tokio::test]
async fn one_batch_is_all_or_nothing() {
    let server = FakeServer::start().await;
    let client = server.client();
    let response = client.publish(vec![event(1), event(2)]).await.unwrap();
    assert_eq!(response.count, 2);
    let error = client.publish(Vec::new()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
}

#[tokio::test]
async fn events_arrive_in_order_and_are_all_acknowledged() {
    let mut server = FakeServer::start().await;
    let mut publisher = server.client().publisher(pairs());
    let (accepted, arrived) = tokio::join!(
        async {
            for number in 0..101 {
                publisher.send(event(number)).await.unwrap();
            }
            publisher.finish().await.unwrap()
        },
        async {
            let mut call = server.publish_call().await;
            let mut arrived = Vec::new();
            while let Some(request) = call.requests.message().await.unwrap() {
                assert!(request.events.len() <= 2);
                let answer = acknowledgment(request.events.len());
                arrived.extend(request.events);
                call.responses.send(Ok(answer)).await.unwrap();
            }
            arrived
        }
    );
    assert_eq!(accepted, 101);
    assert_eq!(arrived, (0..101).map(event).collect::<Vec<_>>());
}

/// Sends event 0, so that the stream is certain to open, and takes the call.
async fn server_call(
    server: &mut FakeServer,
    publisher: &mut tidegate_client::Publisher,
) -> PublishCall {
    publisher.send(event(0)).await.unwrap();
    server.publish_call().await
}

#[tokio::test]
async fn a_refusal_says_how_many_were_accepted_before() {
    let mut server = FakeServer::start().await;
    let mut publisher = server.client().publisher(PublisherOptions {
        max_batch_events: 1,
        ..Default::default()
    });
    let mut call = server_call(&mut server, &mut publisher).await;
    for number in 1..3 {
        publisher.send(event(number)).await.unwrap();
    }
    for answer in [
        Ok(acknowledgment(1)),
        Ok(acknowledgment(1)),
        Err(Status::invalid_argument("event is larger than 1 MiB")),
    ] {
        assert_eq!(
            call.requests.message().await.unwrap().unwrap().events.len(),
            1
        );
        call.responses.send(answer).await.unwrap();
    }
    // The publisher learns of the failure sooner or later, and then takes no more events.
    let mut sent = 3;
    let Closed(returned) = loop {
        match publisher.send(event(sent)).await {
            Ok(()) => sent += 1,
            Err(closed) => break closed,
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(returned, event(sent));
    let failure = publisher.finish().await.unwrap_err();
    assert_eq!(failure.acknowledged, 2);
    assert_eq!(failure.unacknowledged, sent - 2);
    assert!(matches!(failure.error, Error::InvalidArgument(_)));
}

#[tokio::test]
async fn a_cut_connection_leaves_the_rest_unknown() {
    let mut server = FakeServer::start().await;
    let wire = Wire::to(server.address).await;
    let mut publisher = wire.client().publisher(pairs());
    let mut call = server_call(&mut server, &mut publisher).await;
    call.requests.message().await.unwrap().unwrap();
    wire.cut().await;
    let failure = publisher.finish().await.unwrap_err();
    assert_eq!((failure.acknowledged, failure.unacknowledged), (0, 1));
    assert!(
        matches!(failure.error, Error::Unavailable(_)),
        "{failure:?}"
    );
}

#[tokio::test]
async fn an_end_without_a_reason_is_no_success() {
    let mut server = FakeServer::start().await;
    let mut publisher = server.client().publisher(pairs());
    drop(server_call(&mut server, &mut publisher).await);
    let failure = publisher.finish().await.unwrap_err();
    assert!(
        matches!(failure.error, Error::Unavailable(_)),
        "{failure:?}"
    );
}

#[tokio::test]
async fn an_early_end_that_refuses_an_event_is_no_success() {
    let mut server = FakeServer::start().await;
    let mut publisher = server.client().publisher(pairs());
    let mut call = server_call(&mut server, &mut publisher).await;
    call.requests.message().await.unwrap().unwrap();
    call.responses.send(Ok(acknowledgment(1))).await.unwrap();
    let progress = publisher.progress();
    while progress.acknowledged() == 0 {
        tokio::task::yield_now().await;
    }
    // The server ends the stream with OK, although the publisher has more to send.
    drop(call);
    // Nothing but a send shows that the publisher has noticed, and one that comes too early is taken.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let Closed(returned) = publisher.send(event(1)).await.unwrap_err();
    assert_eq!(returned, event(1));
    let failure = publisher.finish().await.unwrap_err();
    assert!(
        matches!(failure.error, Error::Unavailable(_)),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_wrong_count_is_a_violation() {
    let mut server = FakeServer::start().await;
    let mut publisher = server.client().publisher(pairs());
    let mut call = server_call(&mut server, &mut publisher).await;
    call.requests.message().await.unwrap().unwrap();
    call.responses.send(Ok(acknowledgment(5))).await.unwrap();
    let failure = publisher.finish().await.unwrap_err();
    assert!(
        matches!(
            failure.error,
            Error::Violation(Violation::Acknowledgment {
                expected: 1,
                found: 5
            })
        ),
        "{failure:?}"
    );
}

#[tokio::test]
async fn send_waits_while_too_much_is_unacknowledged() {
    use futures_util::FutureExt as _;

    let mut server = FakeServer::start().await;
    let mut publisher = server.client().publisher(PublisherOptions {
        max_unacknowledged_bytes: 1,
        ..Default::default()
    });
    let mut call = server_call(&mut server, &mut publisher).await;
    call.requests.message().await.unwrap().unwrap();
    assert!(publisher.send(event(1)).now_or_never().is_none());
    call.responses.send(Ok(acknowledgment(1))).await.unwrap();
    publisher.send(event(1)).await.unwrap();
    assert_eq!(publisher.progress().acknowledged(), 1);
}

#[tokio::test]
async fn publishing_without_a_server_is_unavailable() {
    let address = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let client = tidegate_client::Client::connect_lazy(format!("http://{address}")).unwrap();
    let error = client.publish(vec![event(1)]).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    let failure = client.publisher(pairs()).finish().await.unwrap_err();
    assert!(
        matches!(failure.error, Error::Unavailable(_)),
        "{failure:?}"
    );
}

// ===== Reconnecting =====

fn reconnecting() -> PublisherOptions {
    PublisherOptions {
        max_batch_events: 2,
        reconnect: Some(Backoff {
            base: Duration::from_millis(1),
            max: Duration::from_millis(5),
        }),
        ..Default::default()
    }
}

/// Takes and answers every request of a call until its end, and returns the events.
async fn answer_all(mut call: PublishCall) -> Vec<NewEvent> {
    let mut arrived = Vec::new();
    while let Ok(Some(request)) = call.requests.message().await {
        let answer = acknowledgment(request.events.len());
        arrived.extend(request.events);
        call.responses.send(Ok(answer)).await.unwrap();
    }
    arrived
}

/// A status that the server itself ends a stream with.
fn with_reason(mut status: Status, reason: &str) -> Status {
    let value = reason.parse().unwrap();
    status.metadata_mut().insert("tidegate-reason", value);
    status
}

async fn changed(progress: &mut Progress) -> PublisherState {
    let changed = tokio::time::timeout(PATIENCE, progress.changed()).await;
    changed.expect("nothing happens").expect("it has ended")
}

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn idle_publisher_notices_the_end_and_publishes_on_the_next_stream() {
    let mut server = FakeServer::start().await;
    let wire = Wire::to(server.address).await;
    let mut publisher = wire.client().publisher(reconnecting());
    let mut progress = publisher.progress();
    let first = server.publish_call().await;
    assert!(matches!(changed(&mut progress).await, PublisherState::Open));
    wire.cut().await;
    // Nothing was sent: it notices all the same.
    let state = changed(&mut progress).await;
    assert!(
        matches!(state, PublisherState::Reconnecting { .. }),
        "{state:?}"
    );
    drop(first);
    let second = server.publish_call().await;
    assert!(progress.opened().await);
    publisher.send(event(1)).await.unwrap();
    let (accepted, arrived) = tokio::join!(publisher.finish(), answer_all(second));
    assert_eq!(accepted.unwrap(), 1);
    assert_eq!(arrived, [event(1)]);
}

#[tokio::test]
async fn publisher_without_reconnecting_notices_the_end_before_it_takes_an_event() {
    let mut server = FakeServer::start().await;
    let wire = Wire::to(server.address).await;
    let publisher = wire.client().publisher(pairs());
    let _call = server.publish_call().await;
    wire.cut().await;
    let closed = tokio::time::timeout(PATIENCE, publisher.closed()).await;
    closed.expect("it does not notice");
    let failure = publisher.finish().await.unwrap_err();
    assert!(
        matches!(failure.error, Error::Unavailable(_)),
        "{failure:?}"
    );
    assert_eq!((failure.acknowledged, failure.unacknowledged), (0, 0));
}

#[tokio::test]
async fn stream_that_the_server_ends_with_a_reason_leaves_nothing_unknown() {
    let mut server = FakeServer::start().await;
    let mut publisher = server.client().publisher(reconnecting());
    for number in 0..5 {
        publisher.send(event(number)).await.unwrap();
    }
    let accepted = tokio::spawn(publisher.finish());
    let mut first = server.publish_call().await;
    let mut arrived = first.requests.message().await.unwrap().unwrap().events;
    first
        .responses
        .send(Ok(acknowledgment(arrived.len())))
        .await
        .unwrap();
    // Another request has arrived, and the server ends without an answer to it.
    first.requests.message().await.unwrap().unwrap();
    let status = with_reason(Status::unavailable("drain"), "SHUTTING_DOWN");
    first.responses.send(Err(status)).await.unwrap();
    let second = server.publish_call().await;
    arrived.extend(answer_all(second).await);
    assert_eq!(accepted.await.unwrap().unwrap(), 5);
    assert_eq!(arrived, (0..5).map(event).collect::<Vec<_>>());
}

/// Cuts the wire while one event was answered, one is in flight, and one waits.
async fn cut_in_the_middle(
    options: PublisherOptions,
) -> (FakeServer, Wire, tidegate_client::Publisher) {
    let mut server = FakeServer::start().await;
    let wire = Wire::to(server.address).await;
    let mut publisher = wire.client().publisher(PublisherOptions {
        max_batch_events: 1,
        max_in_flight: 1,
        ..options
    });
    let progress = publisher.progress();
    let mut call = server_call(&mut server, &mut publisher).await;
    call.requests.message().await.unwrap().unwrap();
    call.responses.send(Ok(acknowledgment(1))).await.unwrap();
    for number in 1..3 {
        publisher.send(event(number)).await.unwrap();
    }
    call.requests.message().await.unwrap().unwrap();
    while progress.acknowledged() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(progress.in_flight(), 1);
    wire.cut().await;
    (server, wire, publisher)
}

#[tokio::test]
async fn broken_connection_tells_what_is_unknown_and_what_is_not_published() {
    let (_server, _wire, publisher) = cut_in_the_middle(reconnecting()).await;
    let failure = publisher.finish().await.unwrap_err();
    assert_eq!((failure.acknowledged, failure.unacknowledged), (1, 2));
    assert_eq!(failure.unknown, [event(1)]);
    assert_eq!(failure.unpublished, [event(2)]);
    assert!(
        matches!(failure.error, Error::Unavailable(_)),
        "{failure:?}"
    );
}

#[tokio::test]
async fn what_is_unknown_is_sent_again_only_if_asked_for() {
    let (mut server, _wire, publisher) = cut_in_the_middle(PublisherOptions {
        resend: true,
        ..reconnecting()
    })
    .await;
    let accepted = tokio::spawn(publisher.finish());
    let second = server.publish_call().await;
    assert_eq!(answer_all(second).await, [event(1), event(2)]);
    assert_eq!(accepted.await.unwrap().unwrap(), 3);
}

#[tokio::test]
async fn publisher_that_is_dropped_says_what_is_in_flight() {
    let mut server = FakeServer::start().await;
    let mut publisher = server.client().publisher(PublisherOptions {
        max_in_flight: 1,
        ..pairs()
    });
    let progress = publisher.progress();
    let mut call = server_call(&mut server, &mut publisher).await;
    call.requests.message().await.unwrap().unwrap();
    publisher.send(event(1)).await.unwrap();
    drop(publisher);
    assert_eq!(
        (
            progress.sent(),
            progress.acknowledged(),
            progress.in_flight()
        ),
        (2, 0, 1)
    );
}

#[tokio::test]
async fn event_is_taken_only_once_the_call_is_accepted() {
    // A server that takes connections and never says a word.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = tidegate_client::Client::connect_lazy(url).unwrap();
    let mut publisher = client.publisher(reconnecting());
    let progress = publisher.progress();
    publisher.send(event(0)).await.unwrap();
    let _connection = listener.accept().await.unwrap();
    let silence = Duration::from_secs(4);
    assert!(
        tokio::time::timeout(silence, progress.opened())
            .await
            .is_err()
    );
    assert_eq!((progress.sent(), progress.in_flight()), (1, 0));
}

// ===== Refusals =====

/// Serves publish calls, and refuses requests with an event whose number is not a multiple of 3.
async fn refuse_most(server: &mut FakeServer) -> Vec<NewEvent> {
    let mut stored = Vec::new();
    loop {
        let mut call = server.publish_call().await;
        loop {
            let Ok(Some(request)) = call.requests.message().await else {
                return stored;
            };
            let is_bad = |event: &NewEvent| event.payload[7] % 3 != 0;
            if request.events.iter().any(is_bad) {
                let status = Status::invalid_argument("not a multiple of 3");
                call.responses.send(Err(status)).await.unwrap();
                break;
            }
            let answer = acknowledgment(request.events.len());
            stored.extend(request.events);
            call.responses.send(Ok(answer)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn everything_before_an_invalid_event_is_published() {
    let mut server = FakeServer::start().await;
    let mut publisher = server.client().publisher(PublisherOptions::default());
    for number in [0, 3, 6, 7, 9] {
        publisher.send(event(number)).await.unwrap();
    }
    let finish = tokio::spawn(publisher.finish());
    let stored = tokio::spawn(async move { refuse_most(&mut server).await });
    let failure = finish.await.unwrap().unwrap_err();
    stored.abort();
    assert!(
        matches!(failure.error, Error::InvalidArgument(_)),
        "{failure:?}"
    );
    assert_eq!(failure.acknowledged, 3);
    assert!(failure.unknown.is_empty());
    assert_eq!(failure.unpublished, [event(7), event(9)]);
}

#[tokio::test]
async fn invalid_events_are_left_out_and_told_if_asked_for() {
    let mut server = FakeServer::start().await;
    let mut publisher = server.client().publisher(PublisherOptions {
        max_batch_events: 4,
        skip_refused: true,
        ..Default::default()
    });
    let progress = publisher.progress();
    for number in 0..20 {
        publisher.send(event(number)).await.unwrap();
    }
    let (accepted, stored) = tokio::join!(publisher.finish(), refuse_most(&mut server));
    assert_eq!(accepted.unwrap(), 7);
    let expected: Vec<_> = (0..20)
        .filter(|number| number % 3 == 0)
        .map(event)
        .collect();
    assert_eq!(stored, expected);
    assert_eq!(progress.refused(), 13);
    let refused: Vec<_> = progress
        .take_refusals()
        .iter()
        .map(|refusal| refusal.index)
        .collect();
    assert_eq!(
        refused,
        (0..20).filter(|number| number % 3 != 0).collect::<Vec<_>>()
    );
}
