//! The one place where errors and endings become gRPC statuses.
//!
//! Each status carries a `google.rpc.ErrorInfo` with the domain [`DOMAIN`] and the name of a [`Reason`], so
//! that programs need not read messages. Bad input carries a `BadRequest` that names the field, and the end of
//! a stream whose client is to come back a `RetryInfo`. The reason and the delay are also plain trailers,
//! [`REASON_TRAILER`] and [`RETRY_TRAILER`], for languages that cannot read the details without further packages.

use std::{collections::HashMap, time::Duration};

use http::HeaderMap;
use tidegate_core::{CloseReason, NameError, Payload, PublishError, SubscribeError, Subscription};
use tonic::{
    Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::reason::{Advice, DOMAIN, OverQuota, Reason};

/// Trailer with the name of the [`Reason`], beside the details.
const REASON_TRAILER: &str = "tidegate-reason";

/// Trailer with the delay before the next attempt, in whole milliseconds, beside the details.
const RETRY_TRAILER: &str = "tidegate-retry-after-ms";

/// Header of a response that says how requests may be compressed.
pub(crate) const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// Ways in which requests may be compressed.
pub(crate) const ACCEPTED_ENCODINGS: &str = "identity,gzip";

/// Delay that a refusal asks for where all filters hold as much memory as they may. Nobody knows when another subscription
/// ends, so it is a guess, short beside the life of a stream.
const FILTER_MEMORY_RETRY: Duration = Duration::from_secs(10);

impl Reason {
    fn details(self, metadata: HashMap<String, String>) -> ErrorDetails {
        ErrorDetails::with_error_info(self.as_str(), DOMAIN, metadata)
    }

    /// Makes a status with this reason and a message for people.
    #[must_use]
    pub fn status(self, message: impl Into<String>) -> Status {
        self.with_details(message, self.details(HashMap::new()))
    }

    /// Makes a status of details that carry this reason, and the trailers that say the same. Every status is made here, so
    /// that none has the one without the other.
    fn with_details(self, message: impl Into<String>, details: ErrorDetails) -> Status {
        let mut trailers = MetadataMap::with_capacity(2);
        trailers.insert(REASON_TRAILER, MetadataValue::from_static(self.as_str()));
        if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
            trailers.insert(RETRY_TRAILER, whole_milliseconds(delay).into());
        }
        Status::with_error_details_and_metadata(self.code(), message, details, trailers)
    }

    /// Makes the status of bad input: `field` is named in the message and in `google.rpc.BadRequest`.
    #[must_use]
    pub fn in_field(self, field: impl Into<String>, problem: impl Into<String>) -> Status {
        let (field, problem) = (field.into(), problem.into());
        let message = format!("{field}: {problem}");
        let mut details = self.details(HashMap::new());
        details.add_bad_request_violation(field, problem);
        self.with_details(message, details)
    }

    /// Makes a status with facts for programs, which are the metadata of its `ErrorInfo`.
    fn with_facts(
        self,
        message: impl Into<String>,
        facts: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> Status {
        self.with_details(message, self.details(as_metadata(facts)))
    }
}

/// Facts as the metadata of an `ErrorInfo`, which has texts only.
fn as_metadata(facts: impl IntoIterator<Item = (&'static str, u64)>) -> HashMap<String, String> {
    let facts = facts.into_iter();
    facts
        .map(|(name, value)| (name.to_owned(), value.to_string()))
        .collect()
}

/// The number of milliseconds after which at least `delay` has passed.
fn whole_milliseconds(delay: Duration) -> u64 {
    let milliseconds = delay.as_nanos().div_ceil(1_000_000);
    u64::try_from(milliseconds).unwrap_or(u64::MAX)
}

/// Status of a stream that the hub has ended. It tells the position to resume from if there is one, the limits in force
/// and the backlog.
pub(crate) fn ended<P: Payload>(
    reason: CloseReason,
    subscription: &Subscription<P>,
    reconnect_after: Duration,
) -> Status {
    let mut details = end_reason(reason).details(as_metadata(facts_of(subscription)));
    if is_going_away(reason) {
        details.set_retry_info(Some(reconnect_after));
    }
    end_reason(reason).with_details(reason.to_string(), details)
}

/// Status of a stream whose deadline has passed, with the same facts.
pub(crate) fn deadline_exceeded<P: Payload>(subscription: &Subscription<P>) -> Status {
    let message = "the deadline set by the client has passed";
    Reason::DeadlineExceeded.with_facts(message, facts_of(subscription))
}

fn facts_of<P: Payload>(
    subscription: &Subscription<P>,
) -> impl Iterator<Item = (&'static str, u64)> {
    let position = subscription.position();
    let limits = subscription.limits();
    let where_to_resume = position.map(|position| {
        [
            ("resume_after_epoch", position.epoch),
            ("resume_after_sequence", position.sequence),
        ]
    });
    let others = [
        ("max_events", limits.max_events.get()),
        ("max_bytes", limits.max_bytes.get()),
        ("backlog", subscription.backlog()),
    ];
    where_to_resume.into_iter().flatten().chain(others)
}

/// Whether a stream that ends for `reason` sends `GoingAway` first, with a delay after which to come back.
pub(crate) fn is_going_away(reason: CloseReason) -> bool {
    let advice = end_reason(reason).advice();
    matches!(advice, Advice::ResumeAfterDelay | Advice::Authenticate)
}

/// Status of a call that was ended and has no position to resume from: one that is no subscription, or a subscription
/// that had not begun.
pub(crate) fn ended_without_position(reason: CloseReason) -> Status {
    end_reason(reason).status(reason.to_string())
}

/// Delay between zero and `max` after which the client of subscription `id` is told to come back.
///
/// Neighboring ids get delays far apart, so that clients that came together do not return together: the ids are spread
/// as the multiples of the golden ratio are (Knuth, The Art of Computer Programming 3, section 6.4).
pub(crate) fn reconnect_delay(id: u64, max: Duration) -> Duration {
    let fraction = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    max.mul_f64(fraction as f64 / f64::from(u32::MAX))
}

/// Trailers that end a response with `status`.
pub(crate) fn trailers(status: &Status) -> HeaderMap {
    // Code, message, details, reason and delay.
    let mut trailers = HeaderMap::with_capacity(5);
    status
        .add_header(&mut trailers)
        .expect("a status is made of valid header values");
    trailers
}

/// Reason that a client is given for each cause for which the hub ends a stream.
pub(crate) const fn end_reason(reason: CloseReason) -> Reason {
    match reason {
        CloseReason::TakenOver => Reason::TakenOver,
        CloseReason::ShuttingDown => Reason::ShuttingDown,
        CloseReason::MaxConnectionAge => Reason::MaxConnectionAge,
        CloseReason::TooSlow => Reason::TooSlow,
        CloseReason::Stalled => Reason::Stalled,
        CloseReason::EpochChanged => Reason::EpochChanged,
        CloseReason::Disconnected => Reason::Disconnected,
        CloseReason::CredentialsExpired => Reason::CredentialsExpired,
        CloseReason::CredentialsRevoked => Reason::CredentialsRevoked,
        CloseReason::NoLongerAllowed => Reason::NotAllowed,
    }
}

/// Status of a call that would exceed a quota.
pub(crate) fn over_quota(over: OverQuota) -> Status {
    let reason = Reason::QuotaExceeded;
    let facts = HashMap::from([("quota".to_owned(), over.quota.to_owned())]);
    let mut details = reason.details(facts);
    details.set_retry_info(Some(over.retry_after));
    let message = format!(
        "quota on {} exceeded; retry after {:?}",
        over.quota, over.retry_after
    );
    reason.with_details(message, details)
}

impl From<OverQuota> for Status {
    fn from(over: OverQuota) -> Self {
        over_quota(over)
    }
}

/// Returns the status of a call whose request did not arrive in time: `DEADLINE_EXCEEDED`. It is the status that
/// [`EventService`](crate::EventService) gives, for the services that you serve beside it.
#[must_use]
pub fn request_timed_out() -> Status {
    Reason::DeadlineExceeded.status("the request did not arrive in time")
}

/// Status of a call whose message has more bytes than `max`: `bytes`, if they are known.
pub(crate) fn too_large(reason: Reason, bytes: Option<usize>, max: usize) -> Status {
    let problem = match bytes {
        Some(bytes) => format!("the message has {bytes} bytes; at most {max} are allowed"),
        None => format!("the message has more than {max} bytes when it is inflated"),
    };
    match reason {
        Reason::BatchTooLarge => reason.in_field("events", problem),
        _ => reason.status(problem),
    }
}

/// Status of a call whose bytes are no messages of gRPC.
pub(crate) fn malformed(problem: impl Into<String>) -> Status {
    Reason::MalformedMessage.status(problem)
}

/// Status of a call whose messages are compressed in another way than this crate reads. It says which ways those are.
pub(crate) fn unsupported_encoding(encoding: &str) -> Status {
    let mut status = Reason::CompressionUnsupported.status(format!(
        "compression `{encoding}` is not supported; send the request with gzip or without compression"
    ));
    let accepted = MetadataValue::from_static(ACCEPTED_ENCODINGS);
    status.metadata_mut().insert(ACCEPT_ENCODING, accepted);
    status
}

/// Status of a subscription that the hub refused.
pub(crate) fn not_subscribed(error: SubscribeError) -> Status {
    match error {
        SubscribeError::ClientIdTaken => {
            Reason::ClientIdTaken.in_field("client_id", error.to_string())
        }
        SubscribeError::PositionAhead { head } => {
            Reason::PositionAhead.with_facts(error.to_string(), [("head", head)])
        }
        SubscribeError::FiltersTooCostly { .. } => {
            Reason::FiltersTooCostly.in_field("filters", error.to_string())
        }
        SubscribeError::FilterMemoryExceeded { .. } => over_quota(OverQuota {
            quota: "filter_budget",
            retry_after: FILTER_MEMORY_RETRY,
        }),
        SubscribeError::Closed(reason) => end_reason(reason).status(error.to_string()),
        other => Reason::Internal.status(other.to_string()),
    }
}

/// Status of a batch that the hub refused.
pub(crate) fn not_published(error: PublishError) -> Status {
    match error {
        PublishError::Closed(reason) => end_reason(reason).status(error.to_string()),
        other => Reason::Internal.status(other.to_string()),
    }
}

/// Status of a topic, filter or client id that is not valid.
pub(crate) fn bad_name(reason: Reason, field: impl Into<String>, error: &NameError) -> Status {
    reason.in_field(field, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tidegate_core::{ClientId, Filter, Hub, HubConfig, SubscribeOptions};

    use super::*;
    use crate::reason::tests::ALL;

    /// A header of a response that has only a status, and the trailer of one with a body.
    fn sent(status: &Status, name: &str) -> Option<String> {
        let text = |headers: &HeaderMap| Some(headers.get(name)?.to_str().unwrap().to_owned());
        let response = status.clone().into_http::<()>();
        let sent = text(response.headers());
        assert_eq!(text(&trailers(status)), sent);
        sent
    }

    /// Asserts that the trailers of a status say what its details do.
    fn assert_told_twice(status: &Status, reason: Reason, delay: Option<&str>) {
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, reason.as_str());
        assert_eq!(
            sent(status, "tidegate-reason").as_deref(),
            Some(reason.as_str())
        );
        assert_eq!(sent(status, "tidegate-retry-after-ms").as_deref(), delay);
        let has_delay = status.get_details_retry_info().is_some();
        assert_eq!(has_delay, delay.is_some(), "{reason:?}");
    }

    #[test]
    fn reason_and_delay_are_plain_trailers_too() {
        for reason in ALL {
            assert_told_twice(&reason.status("why"), reason, None);
            assert_told_twice(&reason.in_field("field", "why"), reason, None);
            assert_told_twice(&reason.with_facts("why", [("head", 1)]), reason, None);
        }
        for (delay, milliseconds) in [
            (Duration::ZERO, "0"),
            (Duration::from_millis(250), "250"),
            // Not less than the delay, which a client that comes back would find not yet over.
            (Duration::from_nanos(1_000_001), "2"),
            (Duration::from_secs(3_600), "3600000"),
        ] {
            let over = over_quota(OverQuota {
                quota: "filters",
                retry_after: delay,
            });
            assert_told_twice(&over, Reason::QuotaExceeded, Some(milliseconds));
        }
        // As the details have it, which cannot hold more.
        let over = over_quota(OverQuota {
            quota: "filters",
            retry_after: Duration::MAX,
        });
        let told: u64 = sent(&over, RETRY_TRAILER).unwrap().parse().unwrap();
        let detailed = over.get_details_retry_info().unwrap().retry_delay.unwrap();
        assert_eq!(u128::from(told), detailed.as_nanos().div_ceil(1_000_000));
    }

    #[test]
    fn end_of_a_stream_has_its_reason_and_delay_as_trailers() {
        let hub = Hub::<crate::Encoded>::new(HubConfig::new(1));
        let filters = vec![Filter::new("a").unwrap()];
        let options = SubscribeOptions::new(ClientId::new("ann").unwrap(), filters);
        let subscription = hub.subscribe(options, Instant::now()).unwrap();
        let delay = Duration::from_millis(1_500);
        for cause in [
            CloseReason::TakenOver,
            CloseReason::ShuttingDown,
            CloseReason::MaxConnectionAge,
            CloseReason::TooSlow,
            CloseReason::Stalled,
            CloseReason::EpochChanged,
            CloseReason::Disconnected,
            CloseReason::CredentialsExpired,
            CloseReason::CredentialsRevoked,
            CloseReason::NoLongerAllowed,
        ] {
            let told = is_going_away(cause).then_some("1500");
            let status = ended(cause, &subscription, delay);
            assert_told_twice(&status, end_reason(cause), told);
            let status = ended_without_position(cause);
            assert_told_twice(&status, end_reason(cause), None);
        }
        assert_told_twice(
            &deadline_exceeded(&subscription),
            Reason::DeadlineExceeded,
            None,
        );
    }
}
