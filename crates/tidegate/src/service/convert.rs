//! Conversion between the messages of the wire and the types of the core.
//!
//! On the way in every rule is checked, and the status of a refusal names the first field that breaks one. Nothing here
//! changes anything: a request that is refused leaves no trace.

use std::{
    num::NonZeroU64,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use prost::Message as _;
use tidegate_core::{
    ClientId, Filter, Gap, GapReason, Limits, NewEvent, Overflow, Position, Start,
    SubscribeOptions, Topic,
};
use tidegate_proto::v1 as proto;
use tonic::Status;

use super::{
    config::{PublishLimits, ServiceConfig},
    wire::Encoded,
};
use crate::{client_ids::anonymous, reason::Reason, status::bad_name};

/// Heartbeat intervals that a client may ask for.
const HEARTBEAT_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3_600);

/// Longest interval between releases that a client may ask for.
const MAX_MIN_INTERVAL: Duration = Duration::from_secs(3_600);

/// Seconds that a `google.protobuf.Timestamp` may have: from 0001-01-01T00:00:00Z to 9999-12-31T23:59:59Z.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Maximum number of tokens that the filters of one subscription have together: eight in each of 1,024 filters. The hub
/// keeps a node for each token, and may visit all of them for each event.
const MAX_FILTER_TOKENS: usize = 8_192;

/// Parameters of a subscribe request that keeps all rules.
#[derive(Debug)]
pub(super) struct SubscribeParameters {
    /// For the hub.
    pub(super) options: SubscribeOptions,
    /// Whether the client gave its id, which was made here otherwise.
    pub(super) gives_id: bool,
    /// For the stream.
    pub(super) intervals: Intervals,
}

/// Intervals between the messages of a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Intervals {
    /// Silence after which a heartbeat is sent.
    pub(super) heartbeat: Duration,
    /// Shortest time between two releases of live events. `None` for no limit.
    pub(super) min_release: Option<Duration>,
}

/// Rule that an event breaks, so that it cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The topic is not valid.
    #[error("topic: {0}")]
    Topic(tidegate_core::NameError),
    /// The time is not valid.
    #[error("time: must be in the years 1 to 9999, with nanoseconds from 0 to 999,999,999")]
    Time,
}

// ===== subscribing =====

/// Checks a subscribe request.
pub(super) fn subscribe_request(
    request: &proto::SubscribeRequest,
    config: &ServiceConfig,
) -> Result<SubscribeParameters, Status> {
    if request.filters.len() > config.max_filters {
        let problem = format!(
            "{} filters; at most {} are allowed",
            request.filters.len(),
            config.max_filters
        );
        return Err(Reason::TooManyFilters.in_field("filters", problem));
    }
    let tokens: usize = request
        .filters
        .iter()
        .map(|filter| filter.split('.').count())
        .sum();
    if tokens > MAX_FILTER_TOKENS {
        let problem = format!(
            "{tokens} tokens in all filters together; at most {MAX_FILTER_TOKENS} are allowed"
        );
        return Err(Reason::TooManyFilters.in_field("filters", problem));
    }
    let mut filters = Vec::with_capacity(request.filters.len());
    for (i, filter) in request.filters.iter().enumerate() {
        let filter = Filter::new(filter);
        filters.push(
            filter.map_err(|e| bad_name(Reason::InvalidFilter, format!("filters[{i}]"), &e))?,
        );
    }
    let options = SubscribeOptions {
        client_id: client_id(&request.client_id)?,
        principal: None,
        filters,
        limits: limits(request.limits.as_ref())?,
        start: start(request.resume_after, request.replay_last)?,
        transport: None,
    };
    let intervals = Intervals {
        heartbeat: heartbeat_interval(request.heartbeat_interval, config.heartbeat_interval)?,
        min_release: min_interval(request.min_interval)?,
    };
    Ok(SubscribeParameters {
        options,
        gives_id: !request.client_id.is_empty(),
        intervals,
    })
}

fn client_id(id: &str) -> Result<ClientId, Status> {
    if id.is_empty() {
        return anonymous().map_err(no_randomness);
    }
    ClientId::new(id).map_err(|e| bad_name(Reason::InvalidClientId, "client_id", &e))
}

/// Status of a request for which no client id could be made.
pub(super) fn no_randomness(error: getrandom::Error) -> Status {
    Reason::Internal.status(format!("no randomness for a client id: {error}"))
}

fn limits(limits: Option<&proto::Limits>) -> Result<Limits, Status> {
    let asked = limits.copied().unwrap_or_default();
    let default = Limits::default();
    let overflow = match proto::Overflow::try_from(asked.overflow) {
        Ok(proto::Overflow::Unspecified | proto::Overflow::DropOldest) => Overflow::DropOldest,
        Ok(proto::Overflow::Disconnect) => Overflow::Disconnect,
        Ok(proto::Overflow::Conflate) => Overflow::Conflate,
        Err(unknown) => {
            return Err(Reason::InvalidLimits.in_field("limits.overflow", unknown.to_string()));
        }
    };
    Ok(Limits {
        max_events: NonZeroU64::new(asked.max_events.into()).unwrap_or(default.max_events),
        max_bytes: NonZeroU64::new(asked.max_bytes).unwrap_or(default.max_bytes),
        overflow,
    })
}

fn start(resume_after: Option<proto::Position>, replay_last: u32) -> Result<Start, Status> {
    match (resume_after, replay_last) {
        (None, 0) => Ok(Start::Live),
        (None, events) => Ok(Start::Last(events)),
        (Some(_), 1..) => {
            Err(Reason::InvalidRequest
                .in_field("replay_last", "cannot be combined with resume_after"))
        }
        (Some(proto::Position { epoch: 0, .. }), 0) => Err(Reason::InvalidPosition.in_field(
            "resume_after.epoch",
            "0 is no epoch; use a position that a server sent",
        )),
        (Some(proto::Position { epoch, sequence }), 0) => {
            Ok(Start::After(Position { epoch, sequence }))
        }
    }
}

fn heartbeat_interval(
    asked: Option<prost_types::Duration>,
    default: Duration,
) -> Result<Duration, Status> {
    let Some(asked) = asked else {
        return Ok(default);
    };
    Duration::try_from(asked)
        .ok()
        .filter(|interval| HEARTBEAT_RANGE.contains(interval))
        .ok_or_else(|| {
            Reason::InvalidRequest.in_field("heartbeat_interval", "must be from 1 s to 1 h")
        })
}

/// Interval between releases. Zero means no limit, as if it were not set.
fn min_interval(asked: Option<prost_types::Duration>) -> Result<Option<Duration>, Status> {
    let Some(asked) = asked else { return Ok(None) };
    let interval = Duration::try_from(asked)
        .ok()
        .filter(|interval| *interval <= MAX_MIN_INTERVAL);
    let interval = interval
        .ok_or_else(|| Reason::InvalidRequest.in_field("min_interval", "must be from 0 to 1 h"))?;
    Ok((!interval.is_zero()).then_some(interval))
}

// ===== publishing =====

/// Checks a whole batch and encodes its events. The status names the first event that breaks a rule.
pub(super) fn publish_request(
    request: proto::PublishRequest,
    limits: &PublishLimits,
) -> Result<Vec<NewEvent<Encoded>>, Status> {
    let count = request.events.len();
    if count == 0 {
        return Err(Reason::InvalidRequest.in_field("events", "a batch needs at least one event"));
    }
    if count > limits.max_events {
        let problem = format!(
            "{count} events; at most {} are allowed in one batch",
            limits.max_events
        );
        return Err(Reason::TooManyEvents.in_field("events", problem));
    }
    let mut bytes = 0;
    let mut events = Vec::with_capacity(count);
    for (i, event) in request.events.into_iter().enumerate() {
        let event = encode(event).map_err(|e| e.in_event(i))?;
        let size = event.payload.as_bytes().len();
        if size > limits.max_event_bytes {
            let problem = format!(
                "{size} bytes encoded; at most {} are allowed",
                limits.max_event_bytes
            );
            return Err(Reason::EventTooLarge.in_field(format!("events[{i}]"), problem));
        }
        bytes += size;
        if bytes > limits.max_batch_bytes {
            let problem = format!(
                "more than {} bytes encoded, the limit of a batch",
                limits.max_batch_bytes
            );
            return Err(Reason::BatchTooLarge.in_field("events", problem));
        }
        events.push(event);
    }
    Ok(events)
}

/// Encodes an event for [`Hub::publish`](crate::Hub::publish), once for all subscribers. An event without a
/// time gets the present one. Sizes are not checked: [`PublishLimits`] are the service's.
///
/// # Errors
/// [`EncodeError`] when the topic is not valid, or the time is not.
pub fn encode(event: proto::NewEvent) -> Result<NewEvent<Encoded>, EncodeError> {
    let topic = Topic::new(&event.topic).map_err(EncodeError::Topic)?;
    let time = event.time.unwrap_or_else(|| SystemTime::now().into());
    if !(0..1_000_000_000).contains(&time.nanos) || !SECONDS.contains(&time.seconds) {
        return Err(EncodeError::Time);
    }
    let key = (!event.key.is_empty()).then(|| event.key.as_str().into());
    let encoded = proto::Event {
        sequence: 0,
        topic: event.topic,
        payload: event.payload,
        key: event.key,
        attributes: event.attributes,
        time: Some(time),
    };
    let payload = Encoded::new(Bytes::from(encoded.encode_to_vec()));
    Ok(NewEvent {
        topic,
        key,
        payload,
    })
}

impl EncodeError {
    /// The status for event number `i` of a batch.
    fn in_event(&self, i: usize) -> Status {
        match self {
            Self::Topic(e) => bad_name(Reason::InvalidTopic, format!("events[{i}].topic"), e),
            Self::Time => {
                Reason::InvalidRequest.in_field(format!("events[{i}].time"), self.to_string())
            }
        }
    }
}

// ===== responding =====

pub(super) const fn position(position: Position) -> proto::Position {
    proto::Position {
        epoch: position.epoch,
        sequence: position.sequence,
    }
}

pub(super) fn gap(gap: &Gap) -> proto::Gap {
    let reason = match gap.reason {
        GapReason::Overflow => proto::GapReason::Overflow,
        GapReason::Expired => proto::GapReason::Expired,
        GapReason::EpochChanged => proto::GapReason::EpochChanged,
        GapReason::Backplane => proto::GapReason::Backplane,
        GapReason::Conflated => proto::GapReason::Conflated,
        GapReason::Evicted => proto::GapReason::Evicted,
    };
    proto::Gap {
        first_sequence: gap.first_sequence,
        last_sequence: gap.last_sequence,
        count: gap.count,
        reason: reason.into(),
        first_index: gap.first_index,
    }
}

/// Converts limits to the message of the wire contract. More events than a `uint32` holds become its maximum.
#[must_use]
pub fn limits_in_force(limits: &Limits) -> proto::Limits {
    let overflow = match limits.overflow {
        Overflow::DropOldest => proto::Overflow::DropOldest,
        Overflow::Conflate => proto::Overflow::Conflate,
        Overflow::Disconnect => proto::Overflow::Disconnect,
    };
    proto::Limits {
        max_events: u32::try_from(limits.max_events.get()).unwrap_or(u32::MAX),
        max_bytes: limits.max_bytes.get(),
        overflow: overflow.into(),
    }
}
