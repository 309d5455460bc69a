//! From the messages of the wire to the types of the core, with every rule checked.
//!
//! Nothing here changes anything: a request that is refused leaves no trace.

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

/// What a client may ask for as heartbeat interval.
const HEARTBEAT_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3_600);

/// The longest interval between releases that a client may ask for.
const MAX_MIN_INTERVAL: Duration = Duration::from_secs(3_600);

/// The seconds of `google.protobuf.Timestamp`: from 0001-01-01T00:00:00Z to 9999-12-31T23:59:59Z.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The most tokens that the filters of one subscription may have together. The hub keeps a node for each,
/// and may have to look at all of them for each event: eight tokens in each of 1,024 filters.
const MAX_FILTER_TOKENS: usize = 8_192;

/// A subscribe request that keeps all rules.
#[derive(Debug)]
pub(super) struct SubscribeParameters {
    pub(super) options: SubscribeOptions,
    pub(super) heartbeat_interval: Duration,
    pub(super) min_interval: Option<Duration>,
}

// ===== subscribing =====

pub(super) fn subscribe_request(
    request: &proto::SubscribeRequest,
    config: &ServiceConfig,
) -> Result<SubscribeParameters, Status> {
    if request.filters.len() > config.max_filters {
        let problem = format!(
            "{} filters; at most {} are taken",
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
            "{tokens} tokens in all filters together; at most {MAX_FILTER_TOKENS} are taken"
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
        reset: None,
    };
    let heartbeat_interval =
        heartbeat_interval(request.heartbeat_interval, config.heartbeat_interval)?;
    let min_interval = min_interval(request.min_interval)?;
    Ok(SubscribeParameters {
        options,
        heartbeat_interval,
        min_interval,
    })
}

fn client_id(id: &str) -> Result<ClientId, Status> {
    if id.is_empty() {
        return anonymous().map_err(|e| Reason::Internal.status(format!("no randomness: {e}")));
    }
    ClientId::new(id).map_err(|e| bad_name(Reason::InvalidClientId, "client_id", &e))
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
        (Some(_), 1..) => Err(Reason::InvalidRequest
            .in_field("replay_last", "cannot stand together with resume_after")),
        (Some(proto::Position { epoch: 0, .. }), 0) => Err(Reason::InvalidPosition.in_field(
            "resume_after.epoch",
            "no epoch is 0; use a position that a server gave",
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

/// Zero is as good as none.
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

/// Checks a whole batch and encodes its events, or says what is wrong with the first bad one.
pub(super) fn publish_request(
    request: proto::PublishRequest,
    limits: &PublishLimits,
) -> Result<Vec<NewEvent<Encoded>>, Status> {
    let count = request.events.len();
    if count == 0 {
        return Err(
            Reason::InvalidRequest.in_field("events", "a batch must have at least one event")
        );
    }
    if count > limits.max_events {
        let problem = format!(
            "{count} events; at most {} are taken in one batch",
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
                "{size} bytes encoded; at most {} are taken",
                limits.max_event_bytes
            );
            return Err(Reason::EventTooLarge.in_field(format!("events[{i}]"), problem));
        }
        bytes += size;
        if bytes > limits.max_batch_bytes {
            let problem = format!(
                "more than {} bytes encoded, which is the most for a batch",
                limits.max_batch_bytes
            );
            return Err(Reason::BatchTooLarge.in_field("events", problem));
        }
        events.push(event);
    }
    Ok(events)
}

/// Encodes an event, once for all who will be sent it. Its time is now, if it has none.
///
/// # Errors
/// When the topic is not valid, or the time is not: see [`EncodeError`].
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

/// Why an event could not be encoded.
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

impl EncodeError {
    fn in_event(&self, i: usize) -> Status {
        match self {
            Self::Topic(e) => bad_name(Reason::InvalidTopic, format!("events[{i}].topic"), e),
            Self::Time => {
                Reason::InvalidRequest.in_field(format!("events[{i}].time"), self.to_string())
            }
        }
    }
}

// ===== answering =====

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

/// Limits as the wire contract has them.
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
