//! A small client that follows docs/protocol.md, and breaks one rule of it on demand.
#![allow(
    unreachable_pub,
    reason = "each test file is a crate and uses its part"
)]

mod call;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde_json::json;
use tidegate_conformance::{Output, OutputSender, Start};
use tidegate_proto::v1::{
    Batch, Gap, GapReason, Position, SubscribeRequest, Subscribed, subscribe_response::Response,
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use self::call::{Ended, Kind, Responses};

/// Bounds of the first wait and of every wait.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    // Positions.
    TakesHeadOfReplay,
    KeepsPositionAtBatch,
    KeepsPositionAtGap,
    MovesPositionAtConflated,
    KeepsEpochAtGap,
    KeepsPositionAtCaughtUp,
    KeepsPositionAtHeartbeat,
    TakesOlderHeartbeat,
    TakesPositionWhileUnsettled,
    KeepsPositionAtGoingAway,
    TakesOlderGoingAway,
    TakesGoingAwayOfAnotherEpoch,
    ResumesAfterZero,
    SkipsAnEventAfterABreak,
    CutsSequences,
    // Index.
    IgnoresIndex,
    CarriesIndexOver,
    CountsUnknownAsOne,
    SubtractsSequences,
    // Gaps and responses.
    SwallowsGaps,
    TellsGapsLate,
    IgnoresUnknownReasons,
    StopsAtUnknownReasons,
    StopsAtUnknownResponses,
    CountsUnknownResponses,
    DropsKeys,
    MangledPayloads,
    TellsTwice,
    // The request.
    ForgetsFilters,
    ForgetsChosenId,
    ForgetsAssignedId,
    OpensTwoStreams,
    // Silence.
    NeverTires,
    TiresAfterTwoIntervals,
    TiresOfSlowEvents,
    TiresOfHeartbeats,
    // Endings.
    StopsAtUnavailable,
    StopsAtCalm,
    StopsAtResets,
    StopsAtOk,
    StopsAtBrokenConnections,
    DecidesByCode,
    NeverStops,
    ReconnectsAfterAborted,
    StopsWithoutAWord,
    StopsWithSuccess,
    IgnoresTrailers,
    IgnoresDetails,
    IgnoresDomains,
    StopsAtUnreadableDetails,
    StopsAtUnreadableDelays,
    KeepsPositionAhead,
    // Waits.
    IgnoresDelays,
    IgnoresGoingAwayDelay,
    TakesShorterDelay,
    NeverGrows,
    GrowsOnlyWhileRefused,
    HasNoJitter,
    // Credentials.
    ReadsTokenOnce,
    InsistsOnCredentials,
    DropsToken,
}

use Fault::*;

/// Next step after a stream.
enum Next {
    Resume,
    Anew,
    Stop,
}

pub struct Client {
    address: SocketAddr,
    start: Start,
    token_file: Option<PathBuf>,
    fault: Option<Fault>,
    output: OutputSender,
    client_id: String,
    token: Option<String>,
    position: Option<Position>,
    starts_live: bool,
    epoch: u64,
    next_index: u64,
    failures: u32,
    going_away: Option<Duration>,
    late_gap: Option<String>,
}

/// Rules that a server broke.
struct Violation(String);

impl Client {
    pub fn new(
        address: SocketAddr,
        start: &Start,
        token_file: Option<PathBuf>,
        fault: Option<Fault>,
        output: OutputSender,
    ) -> Self {
        let position = start.resume_after.on_the_wire();
        Self {
            address,
            client_id: start.client_id.clone(),
            starts_live: position.is_none() && start.replay_last == 0,
            start: start.clone(),
            token_file,
            fault,
            output,
            token: None,
            position,
            epoch: 0,
            next_index: 0,
            failures: 0,
            going_away: None,
            late_gap: None,
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Runs until it must stop, and then says why.
    pub async fn run(mut self) {
        let code = match self.follow().await {
            Ok(status) => {
                if !self.has(StopsWithoutAWord) {
                    let words = format!("{:?}: {}", status.code(), status.message());
                    self.output.send(Output::Words(words)).await;
                }
                i32::from(!self.has(StopsWithSuccess))
            }
            Err(Violation(words)) => {
                self.output.send(Output::Words(words)).await;
                9
            }
        };
        self.output.send(Output::Exit(Some(code))).await;
    }

    async fn follow(&mut self) -> Result<Status, Violation> {
        let mut streams = 0;
        loop {
            streams += 1;
            let mut began = false;
            let request = self.request(streams);
            self.going_away = None;
            let _second = match self.has(OpensTwoStreams) && streams == 1 {
                true => Some(self.open(request.clone()).await),
                false => None,
            };
            let ended = match self.open(request).await {
                Ok(responses) => match self.read(responses, &mut began).await? {
                    Some(ended) => ended,
                    None if self.has(StopsAtOk) => return Ok(Status::ok("the end")),
                    None => Ended::broken("the end"),
                },
                Err(ended) => ended,
            };
            if self.has(SkipsAnEventAfterABreak) {
                self.position.iter_mut().for_each(|at| at.sequence += 1);
            }
            match self.next(&ended, began) {
                Next::Stop => return Ok(ended.status),
                Next::Anew if self.has(KeepsPositionAhead) => {}
                Next::Anew => self.position = None,
                Next::Resume => {}
            }
            let wait = self.wait(&ended.status);
            sleep(wait).await;
        }
    }

    fn request(&self, streams: u32) -> SubscribeRequest {
        let mut filters = self.start.filters.clone();
        if self.has(ForgetsFilters) && streams > 1 {
            filters.truncate(1);
        }
        let mut resume_after = self.position;
        if self.has(ResumesAfterZero)
            && resume_after.is_none()
            && self.start.replay_last > 0
            && streams > 1
        {
            resume_after = Some(Position {
                epoch: self.epoch,
                sequence: 0,
            });
        }
        if self.has(CutsSequences) {
            resume_after
                .iter_mut()
                .for_each(|at| at.sequence &= 0xffff_ffff);
        }
        let interval = self.start.heartbeat_s.map(|seconds| prost_types::Duration {
            seconds: seconds.into(),
            nanos: 0,
        });
        let client_id = match self.has(ForgetsChosenId) && streams > 1 {
            true => String::new(),
            false => self.client_id.clone(),
        };
        SubscribeRequest {
            client_id,
            filters,
            replay_last: match resume_after {
                None => self.start.replay_last,
                Some(_) => 0,
            },
            resume_after,
            heartbeat_interval: interval,
            ..Default::default()
        }
    }

    async fn open(&mut self, request: SubscribeRequest) -> Result<Responses, Ended> {
        let mut authorization = None;
        if let Some(path) = &self.token_file {
            let is_first = self.token.is_none();
            if is_first || !self.has(ReadsTokenOnce) {
                self.token = Some(std::fs::read_to_string(path).unwrap().trim().to_owned());
            }
            if is_first || !self.has(DropsToken) {
                authorization = self.token.clone();
            }
        }
        let call = Responses::open(self.address, &request, authorization);
        timeout(self.silence(), call)
            .await
            .unwrap_or_else(|_| Err(Ended::broken("silence")))
    }

    fn silence(&self) -> Duration {
        let interval = Duration::from_secs(self.start.heartbeat_s.unwrap_or(15).into());
        match self.fault {
            Some(NeverTires) => Duration::from_secs(3600),
            Some(TiresAfterTwoIntervals) => interval * 2,
            _ => interval * 3,
        }
    }

    /// Reads a stream to its end. None: it ended with OK.
    async fn read(
        &mut self,
        mut responses: Responses,
        began: &mut bool,
    ) -> Result<Option<Ended>, Violation> {
        let mut quiet_since = tokio::time::Instant::now();
        loop {
            let limit = match self.has(TiresOfHeartbeats) {
                true => self.silence().saturating_sub(quiet_since.elapsed()),
                false => self.silence(),
            };
            let response = if self.has(TiresOfSlowEvents) || self.has(TiresOfHeartbeats) {
                let message = responses.message(Duration::from_secs(3600));
                timeout(limit, message)
                    .await
                    .unwrap_or_else(|_| Err(Ended::broken("silence")))
            } else {
                responses.message(limit).await
            };
            let response = match response {
                Err(ended) => return Ok(Some(ended)),
                Ok(None) => return Ok(None),
                Ok(Some(response)) => response,
            };
            if !matches!(response.response, Some(Response::Heartbeat(_))) {
                quiet_since = tokio::time::Instant::now();
            }
            match response.response {
                None if self.has(StopsAtUnknownResponses) => {
                    return Err(Violation("an unknown response".into()));
                }
                None if self.has(CountsUnknownResponses) => self.next_index += 1,
                None => {}
                Some(Response::Subscribed(subscribed)) => {
                    *began = true;
                    self.subscribed(subscribed);
                }
                Some(Response::Batch(batch)) => self.batch(batch).await?,
                Some(Response::Gap(gap)) => self.gap(gap).await?,
                Some(Response::Heartbeat(heartbeat)) => {
                    self.failures = 0;
                    if !self.has(KeepsPositionAtHeartbeat) {
                        let takes_older = self.has(TakesOlderHeartbeat);
                        self.stated(heartbeat.position, takes_older);
                    }
                }
                Some(Response::CaughtUp(_)) if self.has(KeepsPositionAtCaughtUp) => {}
                Some(Response::CaughtUp(caught_up)) => {
                    self.settle(caught_up.position.unwrap(), false);
                }
                Some(Response::GoingAway(going_away)) => {
                    self.going_away = going_away
                        .reconnect_after
                        .map(|after| after.try_into().unwrap());
                    if !self.has(KeepsPositionAtGoingAway) {
                        let takes_older = self.has(TakesOlderGoingAway);
                        self.stated(going_away.resume_after, takes_older);
                    }
                }
            }
        }
    }

    fn subscribed(&mut self, subscribed: Subscribed) {
        let head = subscribed.position.unwrap();
        self.epoch = head.epoch;
        if !self.has(CarriesIndexOver) || self.next_index == 0 {
            self.next_index = subscribed.next_index;
        }
        if !self.has(ForgetsAssignedId) {
            self.client_id = subscribed.client_id;
        }
        if self.has(TakesHeadOfReplay) || (self.position.is_none() && self.starts_live) {
            self.position = Some(head);
        }
        if self.has(GrowsOnlyWhileRefused) {
            self.failures = 0;
        }
    }

    async fn batch(&mut self, batch: Batch) -> Result<(), Violation> {
        self.count(batch.first_index, batch.events.len() as u64)?;
        self.failures = 0;
        for event in batch.events {
            let mut line = json!({
                "type": "event",
                "sequence": event.sequence,
                "topic": event.topic,
            });
            match str::from_utf8(&event.payload) {
                Ok(text) => line["payload"] = text.into(),
                Err(_) if self.has(MangledPayloads) => {
                    line["payload"] = String::from_utf8_lossy(&event.payload).into();
                }
                Err(_) => {
                    use base64::{Engine as _, prelude::BASE64_STANDARD};
                    line["payload_base64"] = BASE64_STANDARD.encode(&event.payload).into();
                }
            }
            if !event.key.is_empty() && !self.has(DropsKeys) {
                line["key"] = event.key.into();
            }
            let attributes: BTreeMap<_, _> = event.attributes.into_iter().collect();
            if !attributes.is_empty() {
                line["attributes"] = json!(attributes);
            }
            self.line(line.to_string()).await;
            if self.has(TellsTwice) {
                self.line(line.to_string()).await;
            }
            if !self.has(KeepsPositionAtBatch) {
                self.settle(self.here(event.sequence), false);
            }
        }
        if let Some(gap) = self.late_gap.take() {
            self.line(gap).await;
        }
        Ok(())
    }

    async fn gap(&mut self, gap: Gap) -> Result<(), Violation> {
        let is_known = GapReason::try_from(gap.reason).is_ok();
        if !is_known && self.has(StopsAtUnknownReasons) {
            return Err(Violation("an unknown reason".into()));
        }
        let by_subtraction = gap.last_sequence + 1 - gap.first_sequence;
        let takes = match gap.count {
            _ if self.has(SubtractsSequences) => by_subtraction,
            0 if self.has(CountsUnknownAsOne) => 1,
            count => count,
        };
        match takes {
            0 => {}
            takes if gap.count == 0 => self.next_index += takes,
            takes => self.count(gap.first_index, takes)?,
        }
        self.failures = 0;
        let name = match GapReason::try_from(gap.reason) {
            Ok(reason) => reason
                .as_str_name()
                .replace("GAP_REASON_", "")
                .to_lowercase(),
            Err(_) => format!("unknown_{}", gap.reason),
        };
        let line = json!({
            "type": "gap",
            "first_sequence": gap.first_sequence,
            "last_sequence": gap.last_sequence,
            "count": gap.count,
            "reason": name,
        });
        match self.fault {
            Some(SwallowsGaps) => {}
            Some(IgnoresUnknownReasons) if !is_known => return Ok(()),
            Some(TellsGapsLate) => self.late_gap = Some(line.to_string()),
            _ => self.line(line.to_string()).await,
        }
        let moves = gap.reason() != GapReason::Conflated || self.has(MovesPositionAtConflated);
        if moves && !self.has(KeepsPositionAtGap) {
            let is_new_epoch =
                gap.reason() == GapReason::EpochChanged && !self.has(KeepsEpochAtGap);
            let mut to = self.here(gap.last_sequence);
            if self.has(KeepsEpochAtGap) {
                to.epoch = self.position.map_or(to.epoch, |at| at.epoch);
            }
            self.settle(to, is_new_epoch);
        }
        Ok(())
    }

    fn count(&mut self, first: u64, count: u64) -> Result<(), Violation> {
        if first != self.next_index && !self.has(IgnoresIndex) {
            let expected = self.next_index;
            return Err(Violation(format!(
                "index {expected} must come next, but {first} came"
            )));
        }
        self.next_index = first + count;
        Ok(())
    }

    fn here(&self, sequence: u64) -> Position {
        Position {
            epoch: self.epoch,
            sequence,
        }
    }

    /// Takes the position of a heartbeat or of the end of a stream.
    fn stated(&mut self, position: Option<Position>, takes_older: bool) {
        let Some(to) = position else { return };
        match self.position {
            None if !self.has(TakesPositionWhileUnsettled) => {}
            Some(at) if at.epoch != to.epoch && !self.has(TakesGoingAwayOfAnotherEpoch) => {}
            _ if takes_older => self.position = Some(to),
            _ => self.settle(to, true),
        }
    }

    fn settle(&mut self, to: Position, is_new_epoch: bool) {
        match self.position {
            Some(at) if at.epoch == to.epoch && at.sequence > to.sequence => {}
            Some(at) if at.epoch != to.epoch && !is_new_epoch => {}
            _ => self.position = Some(to),
        }
    }

    async fn line(&self, line: String) {
        self.output.send(Output::Line(line)).await;
    }

    // ===== Endings =====

    fn next(&self, ended: &Ended, began: bool) -> Next {
        let status = &ended.status;
        match ended.kind {
            Kind::Broken if self.has(StopsAtBrokenConnections) => return Next::Stop,
            Kind::Reset if self.has(StopsAtResets) => return Next::Stop,
            Kind::Broken | Kind::Reset => return Next::Resume,
            Kind::Status => {}
        }
        if self.has(StopsAtUnreadableDetails)
            && !status.details().is_empty()
            && status.get_error_details_vec().is_empty()
        {
            return Next::Stop;
        }
        let trailer = status.metadata().get("tidegate-retry-after-ms");
        let is_unreadable = |value: &str| value.parse::<u64>().is_err();
        if self.has(StopsAtUnreadableDelays)
            && trailer.is_some_and(|value| is_unreadable(value.to_str().unwrap()))
        {
            return Next::Stop;
        }
        let code = status.code();
        match self.fault {
            Some(NeverStops) => return Next::Resume,
            Some(ReconnectsAfterAborted) if code == Code::Aborted => return Next::Resume,
            Some(StopsAtUnavailable) if code == Code::Unavailable => return Next::Stop,
            Some(StopsAtCalm) if code == Code::ResourceExhausted => return Next::Stop,
            Some(StopsAtResets)
                if matches!(
                    code,
                    Code::Cancelled | Code::Internal | Code::Unknown | Code::DeadlineExceeded
                ) =>
            {
                return Next::Stop;
            }
            _ => {}
        }
        let reason = self.reason(status).filter(|_| !self.has(DecidesByCode));
        let by_reason = match reason.as_deref().unwrap_or_default() {
            "TOO_SLOW" | "STALLED" | "QUOTA_EXCEEDED" | "SHUTTING_DOWN" | "MAX_CONNECTION_AGE"
            | "EPOCH_CHANGED" | "KEYS_UNAVAILABLE" | "INTERNAL" | "DEADLINE_EXCEEDED" => {
                Code::Unavailable
            }
            "POSITION_AHEAD" => Code::OutOfRange,
            "OF_A_NEWER_SERVER" | "" => code,
            word if word.starts_with("CREDENTIALS_") => Code::Unauthenticated,
            _ => Code::Aborted,
        };
        match by_reason {
            Code::Unavailable
            | Code::ResourceExhausted
            | Code::Internal
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded => Next::Resume,
            Code::OutOfRange => Next::Anew,
            Code::Unauthenticated if began || self.has(InsistsOnCredentials) => Next::Resume,
            _ => Next::Stop,
        }
    }

    fn reason(&self, status: &Status) -> Option<String> {
        let details = status.get_details_error_info();
        let details = details.filter(|info| info.domain == "tidegate" || self.has(IgnoresDomains));
        let details = details.filter(|_| !self.has(IgnoresDetails));
        details.map(|info| info.reason).or_else(|| {
            let trailer = status.metadata().get("tidegate-reason")?;
            (!self.has(IgnoresTrailers)).then(|| trailer.to_str().unwrap().to_owned())
        })
    }

    fn wait(&mut self, status: &Status) -> Duration {
        let details = status
            .get_details_retry_info()
            .and_then(|info| info.retry_delay);
        let trailer = || {
            let trailer = status.metadata().get("tidegate-retry-after-ms")?;
            trailer
                .to_str()
                .ok()?
                .parse()
                .ok()
                .map(Duration::from_millis)
        };
        let details = details.filter(|_| !self.has(IgnoresDetails));
        let delay = details.or_else(|| trailer().filter(|_| !self.has(IgnoresTrailers)));
        let delay = delay.filter(|_| !self.has(IgnoresDelays));
        let going_away = self.going_away.filter(|_| !self.has(IgnoresGoingAwayDelay));
        let asked = match (delay, going_away) {
            (Some(one), Some(other)) if self.has(TakesShorterDelay) => one.min(other),
            (delay, going_away) => delay.max(going_away).unwrap_or_default(),
        };
        let (base, most) = BACKOFF;
        let bound = match self.has(NeverGrows) {
            true => base,
            false => base.saturating_mul(1 << self.failures.min(16)).min(most),
        };
        self.failures += 1;
        let share = match self.has(HasNoJitter) {
            true => 1.0,
            false => fastrand::f64(),
        };
        asked + bound.mul_f64(share)
    }
}
