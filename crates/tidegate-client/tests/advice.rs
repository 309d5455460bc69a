//! The next step of a subscription after each ending, by the protocol's table of statuses.

mod support;

use std::{collections::HashMap, fs, path::PathBuf, time::Duration};

use h2::Reason;
use support::{
    raw::{RawServer, framed},
    *,
};
use tidegate_client::{
    Client, Code, Error, GapReason, OutOfRange, Status, SubscribeOptions, Subscription, Update,
};
use tidegate_proto::v1::{
    GoingAway, Heartbeat, SubscribeResponse, subscribe_response::Response as Kind,
};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Next step of a client, with the error that it gives up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Resume,
    /// Resume if the token may be a new one, else give up.
    Renew,
    GiveUp(Variant),
}

use Step::{GiveUp, Renew, Resume};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Refused,
    Ahead,
    IdInUse,
    Superseded,
    Disconnected,
    NotAllowed,
    Unauthenticated,
    Failed,
    TooLarge,
}

fn variant(error: &Error) -> Variant {
    match error {
        Error::InvalidArgument(_) => Variant::Refused,
        Error::PositionAhead { .. } => Variant::Ahead,
        Error::ClientIdInUse(_) => Variant::IdInUse,
        Error::Superseded(_) => Variant::Superseded,
        Error::Disconnected(_) => Variant::Disconnected,
        Error::PermissionDenied(_) => Variant::NotAllowed,
        Error::Unauthenticated(_) => Variant::Unauthenticated,
        Error::Failed(_) => Variant::Failed,
        Error::ResponseTooLarge(_) => Variant::TooLarge,
        other => panic!("{other:?}"),
    }
}

/// Each reason of docs/protocol.md, with its code, the step, and words of the error.
const REASONS: [(&str, Code, Step, &str); 31] = [
    (
        "INVALID_FILTER",
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        "correct it first",
    ),
    (
        "INVALID_TOPIC",
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        "correct it first",
    ),
    (
        "INVALID_CLIENT_ID",
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        "correct it first",
    ),
    (
        "INVALID_LIMITS",
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        "correct it first",
    ),
    (
        "INVALID_POSITION",
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        "correct it first",
    ),
    (
        "INVALID_REQUEST",
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        "correct it first",
    ),
    (
        "TOO_MANY_FILTERS",
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        "correct it first",
    ),
    (
        "FILTERS_TOO_COSTLY",
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        "correct it first",
    ),
    (
        "TOO_MANY_EVENTS",
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        "correct it first",
    ),
    (
        "EVENT_TOO_LARGE",
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        "correct it first",
    ),
    (
        "BATCH_TOO_LARGE",
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        "correct it first",
    ),
    (
        "COMPRESSION_UNSUPPORTED",
        Code::Unimplemented,
        GiveUp(Variant::Failed),
        "the server answered Unimplemented",
    ),
    (
        "MALFORMED_MESSAGE",
        Code::Internal,
        GiveUp(Variant::Failed),
        "the server answered Internal",
    ),
    (
        "POSITION_AHEAD",
        Code::OutOfRange,
        GiveUp(Variant::Ahead),
        "ahead of the server",
    ),
    (
        "CLIENT_ID_TAKEN",
        Code::AlreadyExists,
        GiveUp(Variant::IdInUse),
        "choose another",
    ),
    (
        "TAKEN_OVER",
        Code::Aborted,
        GiveUp(Variant::Superseded),
        "an id of its own",
    ),
    (
        "DISCONNECTED",
        Code::Aborted,
        GiveUp(Variant::Disconnected),
        "ask them before you reconnect",
    ),
    (
        "TOO_SLOW",
        Code::ResourceExhausted,
        Resume,
        "\"disconnect\"",
    ),
    ("STALLED", Code::ResourceExhausted, Resume, "keep reading"),
    (
        "QUOTA_EXCEEDED",
        Code::ResourceExhausted,
        Resume,
        "over a quota",
    ),
    (
        "SHUTTING_DOWN",
        Code::Unavailable,
        Resume,
        "try again later",
    ),
    (
        "MAX_CONNECTION_AGE",
        Code::Unavailable,
        Resume,
        "try again later",
    ),
    (
        "EPOCH_CHANGED",
        Code::Unavailable,
        Resume,
        "try again later",
    ),
    (
        "KEYS_UNAVAILABLE",
        Code::Unavailable,
        Resume,
        "try again later",
    ),
    (
        "NOT_ALLOWED",
        Code::PermissionDenied,
        GiveUp(Variant::NotAllowed),
        "not allowed",
    ),
    (
        "CREDENTIALS_MISSING",
        Code::Unauthenticated,
        Renew,
        "get new ones",
    ),
    (
        "CREDENTIALS_INVALID",
        Code::Unauthenticated,
        Renew,
        "get new ones",
    ),
    (
        "CREDENTIALS_EXPIRED",
        Code::Unauthenticated,
        Renew,
        "get new ones",
    ),
    (
        "CREDENTIALS_REVOKED",
        Code::Unauthenticated,
        Renew,
        "get new ones",
    ),
    ("INTERNAL", Code::Internal, Resume, "Internal"),
    (
        "DEADLINE_EXCEEDED",
        Code::DeadlineExceeded,
        Resume,
        "DeadlineExceeded",
    ),
];

/// Forms in which a server can state a reason.
#[derive(Clone, Copy, Debug)]
enum Form {
    Details,
    Trailer,
}

/// Moments at which a call can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Before the stream has begun.
    Refused,
    /// After an event.
    Streaming,
}

fn with_reason(code: Code, reason: &str, form: Form) -> Status {
    match form {
        Form::Details => {
            let details = ErrorDetails::with_error_info(reason, "tidegate", HashMap::new());
            Status::with_error_details(code, "why", details)
        }
        Form::Trailer => {
            let mut status = Status::new(code, "why");
            let metadata = status.metadata_mut();
            metadata.insert("tidegate-reason", reason.parse().unwrap());
            status
        }
    }
}

/// Ends a subscription that resumes after 4 with `status`, after event 5 or before the stream has begun, and returns
/// its next update.
async fn end(
    server: &mut FakeServer,
    subscription: &mut Subscription,
    moment: Moment,
    status: Status,
) -> Result<Update, Error> {
    let first = call(server, subscription).await;
    assert_eq!(first.resume_after(), Some(at(4)));
    match moment {
        Moment::Refused => first.refuse(status),
        Moment::Streaming => {
            let responses = first.begin(10).await;
            responses.send(Ok(batch(0, &[5]))).await.unwrap();
            responses.send(Err(status)).await.unwrap();
            expect(subscription, &["subscribed", "event 5"]).await;
        }
    }
    subscription.next().await.unwrap()
}

/// Fails unless a subscription takes `step` when it is ended so.
async fn check(step: Step, moment: Moment, status: Status, client: Option<Client>) {
    let told = format!("{moment:?} {status:?}");
    let mut server = FakeServer::start().await;
    let client = client.unwrap_or_else(|| server.client());
    let mut subscription = client.subscribe(options().resume_after(at(4)).client_id("me"));
    let update = end(&mut server, &mut subscription, moment, status).await;
    match step {
        Resume => {
            assert!(
                matches!(update, Ok(Update::Reconnecting { .. })),
                "{told}: {update:?}"
            );
            let second = call(&mut server, &mut subscription).await;
            let expected = match moment {
                Moment::Refused => at(4),
                Moment::Streaming => at(5),
            };
            assert_eq!(second.resume_after(), Some(expected), "{told}");
        }
        Renew => unreachable!("tested apart"),
        GiveUp(expected) => {
            let error = update.expect_err(&told);
            assert_eq!(variant(&error), expected, "{told}: {error}");
            assert!(subscription.next().await.is_none());
            assert!(!server.has_subscribe_call());
        }
    }
}

fn without_token(step: Step) -> Step {
    match step {
        Renew => GiveUp(Variant::Unauthenticated),
        other => other,
    }
}

#[test]
fn every_documented_reason_is_tested() {
    let document = include_str!("../../../docs/protocol.md");
    let words = document
        .lines()
        .skip_while(|line| *line != "| Reason | meaning |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('`').nth(1).unwrap());
    let mut documented: Vec<_> = words.collect();
    let mut tested = REASONS.map(|row| row.0);
    documented.sort_unstable();
    tested.sort_unstable();
    assert_eq!(documented, tested);
}

#[tokio::test]
async fn every_reason_is_followed() {
    for (reason, code, step, _) in REASONS {
        for form in [Form::Details, Form::Trailer] {
            for moment in [Moment::Refused, Moment::Streaming] {
                let status = with_reason(code, reason, form);
                check(without_token(step), moment, status, None).await;
            }
        }
    }
}

#[tokio::test]
async fn reason_decides_before_the_code() {
    for (reason, _, step, _) in REASONS {
        // A code whose own step is another one.
        let code = match step {
            Resume => Code::Aborted,
            Renew | GiveUp(_) => Code::Unavailable,
        };
        let status = with_reason(code, reason, Form::Details);
        check(without_token(step), Moment::Streaming, status, None).await;
    }
}

#[tokio::test]
async fn every_error_says_what_to_do_about_its_reason() {
    for (reason, code, _, words) in REASONS {
        let mut server = FakeServer::start().await;
        let options = options().resume_after(at(4)).no_reconnect();
        let mut subscription = server.client().subscribe(options);
        let status = with_reason(code, reason, Form::Details);
        let error = end(&mut server, &mut subscription, Moment::Streaming, status).await;
        let error = error.expect_err(reason);
        assert_eq!(error.reason().as_deref(), Some(reason));
        let message = error.to_string();
        assert!(message.contains(words), "{reason}: {message}");
        assert!(message.ends_with("why"), "{reason}: {message}");
    }
}

fn token_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[tokio::test]
async fn ended_credentials_are_renewed_once() {
    for (reason, code, ..) in REASONS.into_iter().filter(|row| row.2 == Renew) {
        let path = token_file(reason);
        fs::write(&path, "first").unwrap();
        let mut server = FakeServer::start().await;
        let builder = Client::builder(format!("http://{}", server.address));
        let client = builder.token_file(&path).connect_lazy().unwrap();
        let mut subscription = client.subscribe(options().resume_after(at(4)));
        let status = || with_reason(code, reason, Form::Details);
        let update = end(&mut server, &mut subscription, Moment::Streaming, status()).await;
        assert!(
            matches!(update, Ok(Update::Reconnecting { .. })),
            "{reason}: {update:?}"
        );
        fs::write(&path, "second").unwrap();
        let second = call(&mut server, &mut subscription).await;
        assert_eq!(second.credentials.as_deref(), Some("Bearer second"));
        assert_eq!(second.resume_after(), Some(at(5)));
        second.refuse(status());
        let error = subscription.next().await.unwrap().unwrap_err();
        assert!(
            matches!(error, Error::Unauthenticated(_)),
            "{reason}: {error:?}"
        );
    }
}

#[tokio::test]
async fn unavailable_keys_ask_for_no_new_token() {
    let mut server = FakeServer::start().await;
    let builder = Client::builder(format!("http://{}", server.address));
    let client = builder.token("fixed").connect_lazy().unwrap();
    let mut subscription = client.subscribe(options());
    for _ in 0..3 {
        let refused = call(&mut server, &mut subscription).await;
        assert_eq!(refused.credentials.as_deref(), Some("Bearer fixed"));
        refused.refuse(with_reason(
            Code::Unavailable,
            "KEYS_UNAVAILABLE",
            Form::Details,
        ));
        expect(&mut subscription, &["reconnecting"]).await;
    }
}

#[tokio::test]
async fn position_ahead_is_forgotten_by_policy() {
    for (policy, expected) in [
        (OutOfRange::StartLive, None),
        (OutOfRange::StartFromHistory, Some(at(0))),
    ] {
        for moment in [Moment::Refused, Moment::Streaming] {
            let mut server = FakeServer::start().await;
            let options = options().resume_after(at(4)).out_of_range(policy);
            let mut subscription = server.client().subscribe(options);
            let status = with_reason(Code::OutOfRange, "POSITION_AHEAD", Form::Trailer);
            let update = end(&mut server, &mut subscription, moment, status).await;
            assert!(
                matches!(update, Ok(Update::Reconnecting { .. })),
                "{update:?}"
            );
            let second = call(&mut server, &mut subscription).await;
            assert_eq!(second.resume_after(), expected);
        }
    }
}

/// Each code without a reason that is known, before and after the stream has begun.
const CODES: [(Code, Step, Step); 16] = [
    (Code::Cancelled, Resume, Resume),
    (Code::Unknown, Resume, Resume),
    (
        Code::InvalidArgument,
        GiveUp(Variant::Refused),
        GiveUp(Variant::Refused),
    ),
    (Code::DeadlineExceeded, Resume, Resume),
    (
        Code::NotFound,
        GiveUp(Variant::Failed),
        GiveUp(Variant::Failed),
    ),
    (
        Code::AlreadyExists,
        GiveUp(Variant::IdInUse),
        GiveUp(Variant::IdInUse),
    ),
    (
        Code::PermissionDenied,
        GiveUp(Variant::NotAllowed),
        GiveUp(Variant::NotAllowed),
    ),
    (Code::ResourceExhausted, Resume, Resume),
    (
        Code::FailedPrecondition,
        GiveUp(Variant::Failed),
        GiveUp(Variant::Failed),
    ),
    (
        Code::Aborted,
        GiveUp(Variant::Superseded),
        GiveUp(Variant::Superseded),
    ),
    // A stream that has begun has accepted the position.
    (
        Code::OutOfRange,
        GiveUp(Variant::Ahead),
        GiveUp(Variant::Failed),
    ),
    (
        Code::Unimplemented,
        GiveUp(Variant::Failed),
        GiveUp(Variant::Failed),
    ),
    (Code::Internal, Resume, Resume),
    (Code::Unavailable, Resume, Resume),
    (
        Code::DataLoss,
        GiveUp(Variant::Failed),
        GiveUp(Variant::Failed),
    ),
    (
        Code::Unauthenticated,
        GiveUp(Variant::Unauthenticated),
        GiveUp(Variant::Unauthenticated),
    ),
];

#[tokio::test]
async fn status_without_a_reason_follows_its_code() {
    for (code, refused, streaming) in CODES {
        check(refused, Moment::Refused, Status::new(code, "why"), None).await;
        check(streaming, Moment::Streaming, Status::new(code, "why"), None).await;
    }
}

#[tokio::test]
async fn unknown_reason_follows_the_code() {
    for (code, refused, streaming) in CODES {
        let status = || with_reason(code, "FROM_A_NEWER_SERVER", Form::Details);
        check(refused, Moment::Refused, status(), None).await;
        check(streaming, Moment::Streaming, status(), None).await;
        let details = ErrorDetails::with_error_info("TAKEN_OVER", "proxy.example", HashMap::new());
        let foreign = Status::with_error_details(code, "why", details);
        check(streaming, Moment::Streaming, foreign, None).await;
    }
}

// ===== Delays =====

async fn delay_after(status: Status) -> Duration {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options());
    call(&mut server, &mut subscription).await.refuse(status);
    delay(&mut subscription).await
}

async fn delay(subscription: &mut Subscription) -> Duration {
    match subscription.next().await.unwrap().unwrap() {
        Update::Reconnecting { retry_in, .. } => retry_in,
        other => panic!("{other:?}"),
    }
}

fn with_delays(details: Option<u64>, trailer: Option<&str>) -> Status {
    let mut status = match details.map(Duration::from_millis) {
        Some(delay) => {
            let details = ErrorDetails::with_retry_info(Some(delay));
            Status::with_error_details(Code::ResourceExhausted, "why", details)
        }
        None => Status::resource_exhausted("why"),
    };
    if let Some(trailer) = trailer {
        let metadata = status.metadata_mut();
        metadata.insert("tidegate-retry-after-ms", trailer.parse().unwrap());
    }
    status
}

#[tokio::test]
async fn delay_is_read_from_the_details_or_else_from_the_trailer() {
    // The most that `options` adds of its own.
    let own = Duration::from_millis(5);
    for (details, trailer, expected) in [
        (None, None, 0),
        (Some(300), None, 300),
        (None, Some("200"), 200),
        (Some(300), Some("200"), 300),
        (Some(100), Some("200"), 100),
        (None, Some("soon"), 0),
        (None, Some("-5"), 0),
        (None, Some("18446744073709551615"), 3_600_000),
    ] {
        let waited = delay_after(with_delays(details, trailer)).await;
        let expected = Duration::from_millis(expected);
        assert!(
            (expected..=expected + own).contains(&waited),
            "{details:?} {trailer:?}: {waited:?}"
        );
    }
}

#[tokio::test]
async fn longer_of_the_two_delays_is_waited_for() {
    for (going_away_ms, details) in [(300, 200), (200, 300)] {
        let mut server = FakeServer::start().await;
        let mut subscription = server.client().subscribe(options());
        let responses = call(&mut server, &mut subscription).await.begin(10).await;
        let after = Duration::from_millis(going_away_ms);
        responses.send(Ok(going_away(10, after))).await.unwrap();
        let status = with_delays(Some(details), None);
        responses.send(Err(status)).await.unwrap();
        expect(&mut subscription, &["subscribed", "going away"]).await;
        assert!(delay(&mut subscription).await >= Duration::from_millis(300));
    }
}

// ===== Endings without a position =====

fn unpositioned(kind: Kind) -> SubscribeResponse {
    SubscribeResponse {
        response: Some(kind),
    }
}

#[tokio::test]
async fn replay_that_settled_nothing_is_asked_for_again() {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options().replay_last(5));
    // No position, and what a server without this rule says instead: before the first event.
    for stated in [None, Some(at(0).into())] {
        let responses = call(&mut server, &mut subscription).await.begin(10).await;
        let heartbeat = Heartbeat { position: stated };
        let going_away = GoingAway {
            resume_after: stated,
            ..Default::default()
        };
        for kind in [Kind::Heartbeat(heartbeat), Kind::GoingAway(going_away)] {
            responses.send(Ok(unpositioned(kind))).await.unwrap();
        }
        let status = with_reason(Code::Unavailable, "SHUTTING_DOWN", Form::Details);
        responses.send(Err(status)).await.unwrap();
        expect(
            &mut subscription,
            &["subscribed", "going away", "reconnecting"],
        )
        .await;
        assert_eq!(subscription.position(), None);
    }
    let again = call(&mut server, &mut subscription).await;
    assert_eq!(again.resume_after(), None);
    assert_eq!(again.request.replay_last, 5);
}

#[tokio::test]
async fn position_outlives_an_ending_that_has_none_or_an_older_one() {
    for stated in [None, Some(at(2).into()), Some(at(0).into())] {
        let mut server = FakeServer::start().await;
        let mut subscription = server.client().subscribe(options().replay_last(5));
        let responses = call(&mut server, &mut subscription).await.begin(10).await;
        responses.send(Ok(batch(0, &[7, 8]))).await.unwrap();
        let going_away = GoingAway {
            resume_after: stated,
            ..Default::default()
        };
        let going_away = unpositioned(Kind::GoingAway(going_away));
        responses.send(Ok(going_away)).await.unwrap();
        drop(responses);
        expect(
            &mut subscription,
            &[
                "subscribed",
                "event 7",
                "event 8",
                "going away",
                "reconnecting",
            ],
        )
        .await;
        let again = call(&mut server, &mut subscription).await;
        assert_eq!(again.resume_after(), Some(at(8)), "{stated:?}");
        assert_eq!(again.request.replay_last, 0);
    }
}

// ===== Responses from a newer server =====

#[tokio::test]
async fn unknown_gap_reasons_and_responses_are_no_errors() {
    let mut server = RawServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let mut stream = server.call(&mut subscription).await.open();
    stream.send(&subscribed(10));
    for (first, last, count, first_index) in [(11, 15, 3, 0), (16, 17, 0, 0), (18, 19, 2, 3)] {
        let SubscribeResponse {
            response: Some(Kind::Gap(mut gap)),
        } = gap(GapReason::Unspecified, first, last, count)
        else {
            unreachable!()
        };
        gap.reason = 99;
        gap.first_index = first_index;
        stream.send(&unpositioned(Kind::Gap(gap)));
    }
    // A kind of response with field number 15, which has 2 bytes.
    stream.bytes(framed(&[15 << 3 | 2, 2, 8, 1]));
    stream.send(&batch(5, &[20]));
    assert_eq!(next(&mut subscription).await, "subscribed");
    for (count, last) in [(3, 15), (0, 17), (2, 19)] {
        let update = subscription.next().await.unwrap().unwrap();
        let Update::Gap(gap) = update else {
            panic!("{update:?}")
        };
        assert_eq!((gap.count, gap.reason), (count, 99));
        assert_eq!(gap.reason(), GapReason::Unspecified);
        assert_eq!(subscription.position(), Some(at(last)));
    }
    expect(&mut subscription, &["event 20"]).await;
}

#[tokio::test]
async fn uncounted_backplane_gap_takes_no_index() {
    let mut server = FakeServer::start().await;
    let mut subscription = server.client().subscribe(options());
    let responses = call(&mut server, &mut subscription).await.begin(10).await;
    responses.send(Ok(batch(0, &[11]))).await.unwrap();
    let lost = gap(GapReason::Backplane, 12, 14, 0);
    responses.send(Ok(lost)).await.unwrap();
    responses.send(Ok(batch(1, &[15]))).await.unwrap();
    expect(
        &mut subscription,
        &[
            "subscribed",
            "event 11",
            "gap GAP_REASON_BACKPLANE 0",
            "event 15",
        ],
    )
    .await;
}

// ===== Endings that no server writes: resets, proxies, garbage =====

/// Lets `script` end the first call, and fails unless the subscription resumes after 4.
async fn resumes_after(told: &str, script: impl AsyncFnOnce(raw_call::Call)) {
    let mut server = RawServer::start().await;
    let mut subscription = server.client().subscribe(options().resume_after(at(4)));
    let call = server.call(&mut subscription).await;
    script(call).await;
    let update = loop {
        match subscription.next().await.unwrap() {
            Ok(Update::Subscribed(_)) => {}
            other => break other,
        }
    };
    assert!(
        matches!(update, Ok(Update::Reconnecting { .. })),
        "{told}: {update:?}"
    );
    let again = server.call(&mut subscription).await;
    let resume_after = again.request.resume_after;
    assert_eq!(resume_after, Some(at(4).into()), "{told}");
}

mod raw_call {
    pub(super) type Call = super::support::raw::RawCall;
}

#[tokio::test]
async fn resets_and_broken_connections_resume() {
    for reason in [
        Reason::NO_ERROR,
        Reason::CANCEL,
        Reason::INTERNAL_ERROR,
        Reason::PROTOCOL_ERROR,
        Reason::REFUSED_STREAM,
        Reason::ENHANCE_YOUR_CALM,
        Reason::INADEQUATE_SECURITY,
    ] {
        resumes_after(&format!("{reason:?}"), async |call| call.reset(reason)).await;
        resumes_after(&format!("{reason:?}"), async |call| {
            let mut stream = call.open();
            stream.send(&subscribed(10));
            stream.reset(reason);
        })
        .await;
    }
    resumes_after("closed", async |call| {
        let mut stream = call.open();
        stream.send(&subscribed(10));
        stream.close_connection().await;
    })
    .await;
}

#[tokio::test]
async fn endings_without_a_status_resume() {
    resumes_after("no trailers", async |call| {
        call.open().end_without_trailers()
    })
    .await;
    resumes_after("OK", async |call| call.open().end(&[("grpc-status", "0")])).await;
    resumes_after("no code", async |call| call.open().end(&[("other", "1")])).await;
    for code in ["17", "99", "-1", "resume"] {
        let trailers = [("grpc-status", code)];
        resumes_after(code, async |call| call.open().end(&trailers)).await;
    }
    for status in [400, 429, 500, 502, 503, 504] {
        resumes_after(&status.to_string(), async |call| call.answer(status, &[])).await;
    }
}

#[tokio::test]
async fn garbage_resumes() {
    let half = {
        let whole = support::raw::message(&batch(0, &[5]));
        whole.slice(..whole.len() / 2)
    };
    for (told, bytes) in [
        ("no protobuf", framed(&[0xff; 40])),
        ("a wrong flag", [7; 40].as_slice().to_vec().into()),
        ("half an event", half),
    ] {
        resumes_after(told, async |call| {
            let mut stream = call.open();
            stream.send(&subscribed(10));
            stream.bytes(bytes);
            stream.end_without_trailers();
        })
        .await;
    }
}

#[tokio::test]
async fn unreadable_details_leave_the_code_and_the_trailers() {
    let details = ("grpc-status-details-bin", "this is not base64!");
    for (trailers, expected) in [
        (vec![("grpc-status", "10"), details], Variant::Superseded),
        (
            vec![
                ("grpc-status", "14"),
                details,
                ("tidegate-reason", "NOT_ALLOWED"),
            ],
            Variant::NotAllowed,
        ),
        (
            vec![
                ("grpc-status", "7"),
                ("grpc-status-details-bin", "/////w=="),
            ],
            Variant::NotAllowed,
        ),
    ] {
        for is_refused in [true, false] {
            let mut server = RawServer::start().await;
            let mut subscription = server.client().subscribe(options());
            let call = server.call(&mut subscription).await;
            match is_refused {
                true => {
                    let mut headers = trailers.clone();
                    headers.push(("content-type", "application/grpc"));
                    call.answer(200, &headers);
                }
                false => call.open().end(&trailers),
            }
            let error = subscription.next().await.unwrap().unwrap_err();
            assert_eq!(variant(&error), expected, "{trailers:?}");
            assert!(subscription.next().await.is_none());
            assert!(!server.has_call());
        }
    }
}

#[tokio::test]
async fn response_that_is_too_large_is_no_position_ahead() {
    let mut server = RawServer::start().await;
    let client = server.builder().max_message_bytes(1000).connect_lazy();
    let options: SubscribeOptions = options()
        .resume_after(at(4))
        .out_of_range(OutOfRange::StartLive);
    let mut subscription = client.unwrap().subscribe(options);
    let mut stream = server.call(&mut subscription).await.open();
    stream.bytes(framed(&[0; 2000]));
    let error = subscription.next().await.unwrap().unwrap_err();
    assert_eq!(variant(&error), Variant::TooLarge, "{error}");
    let words = error.to_string();
    for part in [
        "2000",
        "1000",
        "`max_message_bytes`",
        "`limits.max_event_bytes`",
    ] {
        assert!(words.contains(part), "{words}");
    }
    assert_eq!(subscription.position(), Some(at(4)));
    // It would come again.
    assert!(subscription.next().await.is_none());
    assert!(!server.has_call());
}
