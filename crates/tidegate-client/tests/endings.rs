//! The ends of subscriptions. A subscription that has ended makes no further call.

mod support;

use support::*;
use tidegate_client::{
    Error, GapReason, OutOfRange, SubscribeOptions, Subscription, Update, Violation,
};
use tidegate_proto::v1::SubscribeResponse;
use tonic::{Code, Status};

/// Answers the first call with `status`, and returns the error that ends the subscription.
async fn refused(options: SubscribeOptions, status: Status) -> Error {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options);
    let (call, error) = tokio::join!(
        async { server.subscribe_call().await.refuse(status) },
        subscription.next()
    );
    let () = call;
    ended(&server, &mut subscription).await;
    error.unwrap().unwrap_err()
}

/// Fails unless the subscription has ended for good.
async fn ended(server: &FakeServer, subscription: &mut Subscription) {
    assert!(subscription.next().await.is_none());
    assert!(subscription.next().await.is_none());
    assert!(!server.has_subscribe_call());
}

/// Sends `responses` on the first stream, and returns the error that ends the subscription.
async fn answered(options: SubscribeOptions, responses: Vec<SubscribeResponse>) -> Error {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options);
    let (stream, error) = tokio::join!(
        async {
            let stream = server.subscribe_call().await.accept();
            for response in responses {
                stream.send(Ok(response)).await.unwrap();
            }
            stream
        },
        async {
            loop {
                if let Err(error) = subscription.next().await.unwrap() {
                    return error;
                }
            }
        }
    );
    ended(&server, &mut subscription).await;
    drop(stream);
    error
}

type Check = fn(&Error) -> bool;

#[tokio::test]
async fn final_statuses_end_the_subscription() {
    let matches: [(Code, Check); 6] = [
        (Code::Unauthenticated, |e| {
            matches!(e, Error::Unauthenticated(_))
        }),
        (Code::PermissionDenied, |e| {
            matches!(e, Error::PermissionDenied(_))
        }),
        (Code::InvalidArgument, |e| {
            matches!(e, Error::InvalidArgument(_))
        }),
        (Code::AlreadyExists, |e| {
            matches!(e, Error::ClientIdInUse(_))
        }),
        (Code::Aborted, |e| matches!(e, Error::Superseded(_))),
        (Code::Unimplemented, |e| matches!(e, Error::Failed(_))),
    ];
    for (code, is_expected) in matches {
        let error = refused(options(), Status::new(code, "why")).await;
        assert!(is_expected(&error), "{code:?}: {error:?}");
        assert_eq!(error.status().unwrap().code(), code);
        assert!(error.to_string().ends_with("why"), "{error}");
    }
}

#[tokio::test]
async fn takeover_ends_the_subscription() {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let (_, update) = tokio::join!(
        async {
            let responses = server.subscribe_call().await.begin(10).await;
            responses
                .send(Err(Status::aborted("taken over")))
                .await
                .unwrap();
        },
        next(&mut subscription)
    );
    assert_eq!(update, "subscribed");
    let error = subscription.next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Superseded(_)), "{error:?}");
    ended(&server, &mut subscription).await;
}

#[tokio::test]
async fn position_ahead_of_the_server_ends_the_subscription() {
    let error = refused(
        options().resume_after(at(900)),
        Status::out_of_range("head is 5"),
    )
    .await;
    assert!(
        matches!(&error, Error::PositionAhead { position, .. } if *position == at(900)),
        "{error:?}"
    );
}

#[tokio::test]
async fn position_ahead_of_the_server_is_dropped_only_by_policy() {
    for (policy, expected) in [
        (OutOfRange::StartLive, None),
        (OutOfRange::StartFromHistory, Some(at(0))),
    ] {
        let mut server = FakeServer::start().await;
        let options = options().resume_after(at(900)).out_of_range(policy);
        let mut subscription = server.client().subscribe(options);
        let (resumed, ()) = tokio::join!(
            async {
                let first = server.subscribe_call().await;
                first.refuse(Status::out_of_range("head is 5"));
                server.subscribe_call().await.resume_after()
            },
            async {
                let update = subscription.next().await.unwrap().unwrap();
                assert!(
                    matches!(&update, Update::Reconnecting { status, .. } if status.code() == Code::OutOfRange),
                    "{update:?}"
                );
                // The test dropped the second call, which refuses it too.
                expect(&mut subscription, &["reconnecting"]).await;
            }
        );
        assert_eq!(resumed, expected);
    }
}

#[tokio::test]
async fn first_failure_ends_a_subscription_that_does_not_reconnect() {
    let error = refused(options().no_reconnect(), Status::unavailable("drain")).await;
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn index_hole_ends_the_subscription() {
    let error = answered(
        options(),
        vec![subscribed(10), batch(0, &[11, 12]), batch(3, &[14])],
    )
    .await;
    assert!(
        matches!(
            error,
            Error::Violation(Violation::Index {
                expected: 2,
                found: 3
            })
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn repeated_event_ends_the_subscription() {
    let error = answered(
        options(),
        vec![subscribed(10), batch(0, &[11]), batch(1, &[11])],
    )
    .await;
    assert!(
        matches!(error, Error::Violation(Violation::Order { found: 11, .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn gap_without_its_count_ends_the_subscription() {
    let error = answered(
        options(),
        vec![subscribed(10), gap(GapReason::Evicted, 11, 12, 0)],
    )
    .await;
    assert!(
        matches!(
            error,
            Error::Violation(Violation::UncountedGap(GapReason::Evicted))
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn stream_without_subscribed_ends_the_subscription() {
    let error = answered(options(), vec![batch(0, &[11])]).await;
    assert!(
        matches!(error, Error::Violation(Violation::Subscribed)),
        "{error:?}"
    );
}
