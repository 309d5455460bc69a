//! A subscription survives broken streams, and resumes after the events that it has yielded.

mod support;

use std::time::{Duration, Instant};

use support::*;
use tidegate_client::{Backoff, GapReason, Update};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

#[tokio::test]
async fn a_cut_connection_resumes_after_the_last_yielded_event() {
    let mut server = FakeServer::start().await;
    let wire = Wire::to(server.address).await;
    let mut subscription = wire.client().subscribe(options());

    let first = call(&mut server, &mut subscription).await;
    assert_eq!(first.resume_after(), None);
    assert_eq!(first.request.client_id, "");
    let responses = first.begin(10).await;
    responses.send(Ok(batch(0, &[11, 13]))).await.unwrap();
    expect(&mut subscription, &["subscribed", "event 11", "event 13"]).await;
    wire.cut().await;
    expect(&mut subscription, &["reconnecting"]).await;

    let second = call(&mut server, &mut subscription).await;
    assert_eq!(second.resume_after(), Some(at(13)));
    assert_eq!(second.request.client_id, "made-by-server");
    let responses = second.begin(20).await;
    responses.send(Ok(batch(0, &[14]))).await.unwrap();
    responses.send(Ok(caught_up(20))).await.unwrap();
    expect(
        &mut subscription,
        &["subscribed", "event 14", "caught up 20"],
    )
    .await;
}

#[tokio::test]
async fn a_batch_is_yielded_whole_before_the_reconnect() {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let responses = call(&mut server, &mut subscription).await.begin(0).await;
    responses.send(Ok(batch(0, &[1, 2, 3]))).await.unwrap();
    responses
        .send(Err(Status::unavailable("drain")))
        .await
        .unwrap();
    expect(
        &mut subscription,
        &[
            "subscribed",
            "event 1",
            "event 2",
            "event 3",
            "reconnecting",
        ],
    )
    .await;
    assert_eq!(subscription.position(), Some(at(3)));
}

#[tokio::test]
async fn live_subscription_without_events_resumes_after_its_head() {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let responses = call(&mut server, &mut subscription).await.begin(10).await;
    drop(responses);
    expect(&mut subscription, &["subscribed", "reconnecting"]).await;
    let second = call(&mut server, &mut subscription).await;
    assert_eq!(second.resume_after(), Some(at(10)));
}

#[tokio::test]
async fn replay_broken_before_its_first_event_is_requested_again() {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options().replay_last(5));
    drop(call(&mut server, &mut subscription).await.begin(10).await);
    expect(&mut subscription, &["subscribed", "reconnecting"]).await;
    let second = call(&mut server, &mut subscription).await;
    assert_eq!(second.resume_after(), None);
    assert_eq!(second.request.replay_last, 5);
}

#[tokio::test]
async fn resume_broken_before_its_replay_keeps_its_position() {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options().resume_after(at(4)));
    drop(call(&mut server, &mut subscription).await.begin(10).await);
    expect(&mut subscription, &["subscribed", "reconnecting"]).await;
    let second = call(&mut server, &mut subscription).await;
    assert_eq!(second.resume_after(), Some(at(4)));
}

#[tokio::test]
async fn heartbeats_and_gaps_move_the_position() {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let responses = call(&mut server, &mut subscription).await.begin(10).await;
    responses.send(Ok(heartbeat(25))).await.unwrap();
    expect(&mut subscription, &["subscribed", "heartbeat 25"]).await;
    assert_eq!(subscription.position(), Some(at(25)));
    responses
        .send(Ok(gap(GapReason::Overflow, 26, 40, 7)))
        .await
        .unwrap();
    expect(&mut subscription, &["gap GAP_REASON_OVERFLOW 7"]).await;
    assert_eq!(subscription.position(), Some(at(40)));
}

#[tokio::test]
async fn expired_resume_yields_a_gap_and_then_history() {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options().resume_after(at(4)));
    let responses = call(&mut server, &mut subscription).await.begin(100).await;
    responses
        .send(Ok(gap(GapReason::Expired, 5, 89, 0)))
        .await
        .unwrap();
    responses.send(Ok(batch(0, &[90]))).await.unwrap();
    expect(
        &mut subscription,
        &["subscribed", "gap GAP_REASON_EXPIRED 0", "event 90"],
    )
    .await;
}

#[tokio::test]
async fn new_epoch_yields_a_gap_and_is_resumed() {
    let mut server = FakeServer::start().await;
    let old = tidegate_client::Position {
        epoch: 1,
        sequence: 500,
    };
    let mut subscription = server.client().subscribe(options().resume_after(old));
    let responses = call(&mut server, &mut subscription).await.begin(10).await;
    responses
        .send(Ok(gap(GapReason::EpochChanged, 0, 0, 0)))
        .await
        .unwrap();
    responses.send(Ok(batch(0, &[1, 2]))).await.unwrap();
    expect(
        &mut subscription,
        &[
            "subscribed",
            "gap GAP_REASON_EPOCH_CHANGED 0",
            "event 1",
            "event 2",
        ],
    )
    .await;
    drop(responses);
    expect(&mut subscription, &["reconnecting"]).await;
    let second = call(&mut server, &mut subscription).await;
    assert_eq!(second.resume_after(), Some(at(2)));
}

#[tokio::test]
async fn retry_info_is_waited_for() {
    let hint = Duration::from_millis(60);
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let details = ErrorDetails::with_retry_info(Some(hint));
    let status = Status::with_error_details(tonic::Code::Unavailable, "busy", details);
    call(&mut server, &mut subscription).await.refuse(status);

    let begin = Instant::now();
    let update = subscription.next().await.unwrap().unwrap();
    let Update::Reconnecting { retry_in, .. } = update else {
        panic!("{update:?}");
    };
    assert!(retry_in >= hint, "{retry_in:?}");
    call(&mut server, &mut subscription).await;
    assert!(begin.elapsed() >= hint);
}

#[tokio::test]
async fn going_away_is_waited_for_and_resumed_after() {
    let after = Duration::from_millis(60);
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let responses = call(&mut server, &mut subscription).await.begin(10).await;
    responses.send(Ok(going_away(12, after))).await.unwrap();
    responses
        .send(Err(Status::unavailable("drain")))
        .await
        .unwrap();
    expect(&mut subscription, &["subscribed", "going away"]).await;
    let update = subscription.next().await.unwrap().unwrap();
    let Update::Reconnecting { retry_in, .. } = update else {
        panic!("{update:?}");
    };
    assert!(retry_in >= after, "{retry_in:?}");
    let second = call(&mut server, &mut subscription).await;
    assert_eq!(second.resume_after(), Some(at(12)));
}

#[tokio::test]
async fn back_off_grows_until_something_is_delivered() {
    async fn attempt(subscription: &mut tidegate_client::Subscription) -> u32 {
        match subscription.next().await.unwrap().unwrap() {
            Update::Reconnecting { attempt, .. } => attempt,
            other => panic!("{other:?}"),
        }
    }

    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options());
    for expected in 1..=3 {
        // An accepted subscription alone does not reset the back-off.
        drop(call(&mut server, &mut subscription).await.begin(10).await);
        expect(&mut subscription, &["subscribed"]).await;
        assert_eq!(attempt(&mut subscription).await, expected);
    }
    let responses = call(&mut server, &mut subscription).await.begin(10).await;
    responses.send(Ok(batch(0, &[11]))).await.unwrap();
    drop(responses);
    expect(&mut subscription, &["subscribed", "event 11"]).await;
    assert_eq!(attempt(&mut subscription).await, 1);
}

#[tokio::test]
async fn client_waits_for_a_server_that_is_not_up_yet() {
    let address = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let client = tidegate_client::Client::connect_lazy(format!("http://{address}")).unwrap();
    let mut subscription = client.subscribe(options());
    expect(&mut subscription, &["reconnecting", "reconnecting"]).await;
}

#[tokio::test]
async fn a_silent_stream_is_broken_after_three_heartbeat_intervals() {
    let interval = Duration::from_millis(20);
    let mut server = FakeServer::start().await;
    let backoff = Backoff {
        base: Duration::ZERO,
        max: Duration::ZERO,
    };
    let options = options().heartbeat_interval(interval).backoff(backoff);
    let mut subscription = server.client().subscribe(options);
    // The stream stays open for the whole test, and is silent.
    let _silent = call(&mut server, &mut subscription).await.begin(10).await;
    let begin = Instant::now();
    expect(&mut subscription, &["subscribed", "reconnecting"]).await;
    assert!(begin.elapsed() >= interval * 2);
    let second = call(&mut server, &mut subscription).await;
    assert_eq!(second.resume_after(), Some(at(10)));
}
