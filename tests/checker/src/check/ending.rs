//! Checks that streams end honestly.

use tidegate_proto::v1::Position;
use tonic::Code;

use crate::{
    record::{Client, Ending},
    violation::{Fault, Violation},
};

/// The codes and reasons with which the protocol lets a stream end, or be refused.
const DOCUMENTED: [(Code, &str); 24] = [
    (Code::InvalidArgument, "INVALID_FILTER"),
    (Code::InvalidArgument, "INVALID_TOPIC"),
    (Code::InvalidArgument, "INVALID_CLIENT_ID"),
    (Code::InvalidArgument, "INVALID_LIMITS"),
    (Code::InvalidArgument, "INVALID_POSITION"),
    (Code::InvalidArgument, "INVALID_REQUEST"),
    (Code::InvalidArgument, "TOO_MANY_FILTERS"),
    (Code::InvalidArgument, "FILTERS_TOO_COSTLY"),
    (Code::InvalidArgument, "TOO_MANY_EVENTS"),
    (Code::InvalidArgument, "EVENT_TOO_LARGE"),
    (Code::InvalidArgument, "BATCH_TOO_LARGE"),
    (Code::Unimplemented, "COMPRESSION_UNSUPPORTED"),
    (Code::Internal, "MALFORMED_MESSAGE"),
    (Code::OutOfRange, "POSITION_AHEAD"),
    (Code::AlreadyExists, "CLIENT_ID_TAKEN"),
    (Code::Aborted, TAKEN_OVER),
    (Code::Aborted, DISCONNECTED),
    (Code::ResourceExhausted, TOO_SLOW),
    (Code::ResourceExhausted, STALLED),
    (Code::Unavailable, SHUTTING_DOWN),
    (Code::Unavailable, MAX_CONNECTION_AGE),
    (Code::Unavailable, EPOCH_CHANGED),
    (Code::DeadlineExceeded, DEADLINE_EXCEEDED),
    (Code::Internal, "INTERNAL"),
];

const TAKEN_OVER: &str = "TAKEN_OVER";
const DISCONNECTED: &str = "DISCONNECTED";
const TOO_SLOW: &str = "TOO_SLOW";
const STALLED: &str = "STALLED";
const SHUTTING_DOWN: &str = "SHUTTING_DOWN";
const MAX_CONNECTION_AGE: &str = "MAX_CONNECTION_AGE";
const DEADLINE_EXCEEDED: &str = "DEADLINE_EXCEEDED";
const EPOCH_CHANGED: &str = "EPOCH_CHANGED";

/// The reasons with which the server ends a stream that has begun. The status must have the position to resume after.
const ENDED_BY_SERVER: [&str; 7] = [
    TAKEN_OVER,
    DISCONNECTED,
    TOO_SLOW,
    STALLED,
    SHUTTING_DOWN,
    MAX_CONNECTION_AGE,
    DEADLINE_EXCEEDED,
];

/// Checks the end of a stream. `going_away`: the position of its `GoingAway`, if the stream had begun. `is_unsettled`:
/// whether nothing was settled, so that there is no position. Returns the position to resume after, if the status has
/// one.
pub(super) fn check_ending(
    client: &Client,
    number: usize,
    going_away: Option<Option<Position>>,
    is_unsettled: bool,
) -> Result<Option<Position>, Violation> {
    let stream = &client.streams[number];
    let dishonest = |problem: &str| {
        let location = client.location(number, stream.items.len());
        let problem = format!("{problem} ({:?})", stream.ending);
        Err(Violation::HonestEnding(Fault::new(location, problem, 0, 0)))
    };
    let (code, reason, position) = match &stream.ending {
        None | Some(Ending::Cancelled) => return Ok(None),
        Some(Ending::Finished) => return dishonest("it ended as if all were well"),
        Some(Ending::Status {
            code,
            reason,
            position,
        }) => (*code, reason.as_deref(), *position),
    };
    let Some(reason) = reason else {
        let is_broken = matches!(
            code,
            Code::Unavailable | Code::Internal | Code::Unknown | Code::Cancelled
        );
        return match client.is_disturbed && is_broken {
            true => Ok(None),
            false => dishonest("it broke off without a reason, on a connection without faults"),
        };
    };
    if !DOCUMENTED.contains(&(code, reason)) {
        return dishonest("code and reason are not documented together");
    }
    if code == Code::Internal {
        return dishonest("the server reports a fault of its own");
    }
    let Some(going_away) = going_away else {
        return Ok(None);
    };
    if position.is_none() && !is_unsettled && ENDED_BY_SERVER.contains(&reason) {
        return dishonest("it does not say where to resume");
    }
    if [SHUTTING_DOWN, MAX_CONNECTION_AGE].contains(&reason) && going_away != position {
        return dishonest("`going_away` did not come, or names another position than the status");
    }
    Ok(position)
}
