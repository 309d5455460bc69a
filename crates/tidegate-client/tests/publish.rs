//! Publishing: order, batches, and the counts after a failure.

mod support;

use std::time::Duration;

use support::*;
use tidegate_client::{Closed, Error, NewEvent, PublisherOptions, Violation};
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
