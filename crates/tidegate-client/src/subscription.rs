//! A subscription, which outlives its streams.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
    vec,
};

use futures_core::Stream;
use tidegate_proto::v1::{Batch, SubscribeResponse, subscribe_response::Response};
use tokio::time::{Instant, Sleep, sleep};
use tonic::{Status, Streaming};

use crate::{
    Backoff, Error, Event, Gap, GoingAway, OutOfRange, Position, SubscribeOptions, Subscribed,
    Violation, advice::Advice, backoff::Attempts, connector::Connector, error::with_cause,
    liveness::Activity, options::Start, reason, tracker::Tracker,
};

/// Heartbeat intervals of silence after which a stream counts as broken. At three, two heartbeats in a row may be late.
const SILENT_INTERVALS: u32 = 3;

/// An event or a change of a [`Subscription`], in the order in which the user must see them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Update {
    /// A stream has begun: the first one, or one after [`Reconnecting`](Self::Reconnecting). Its `position` is always
    /// set.
    Subscribed(Subscribed),
    /// An event that matches a filter.
    Event(Event),
    /// Events that will not be delivered, in their place. A `count` of 0 stands for an unknown number.
    ///
    /// After [`Reconnecting`](Self::Reconnecting), a gap `EXPIRED` says that the client was away for longer than
    /// history reaches back. A gap `EPOCH_CHANGED` says that the server counts anew: the events before are lost, and
    /// the whole history of the new epoch follows.
    ///
    /// A newer server may have reasons that this crate does not know. Such a gap is a loss like any other: its `reason`
    /// is the number that the server sent, and [`Gap::reason`] returns [`Unspecified`](crate::GapReason::Unspecified).
    Gap(Gap),
    /// Nothing was sent for a heartbeat interval. Everything up to this position has been yielded.
    Heartbeat(Position),
    /// The replay has ended. The events that follow are live.
    CaughtUp(Position),
    /// The server is about to end the stream. [`Reconnecting`](Self::Reconnecting) follows, or the end if reconnecting
    /// is off. Its `resume_after` is not set while nothing was settled; [`Subscription::position`] is what counts.
    GoingAway(GoingAway),
    /// The stream broke, or an attempt to open one failed. The next attempt resumes after
    /// [`Subscription::position`].
    Reconnecting {
        /// The reason of the failure.
        status: Status,
        /// The time until the next attempt.
        retry_in: Duration,
        /// Failures in a row, this one included.
        attempt: u32,
    },
}

/// The events that match some filters, over as many streams as it takes.
/// [`Client::subscribe`](crate::Client::subscribe) makes it.
///
/// It is a [`Stream`] of the same items that [`next`](Self::next) returns. It works only while it is polled: it has no
/// task. If your program stops reading, the server's limits apply, and a gap counts the events that were dropped.
/// Dropping the subscription closes its stream and its connection.
#[must_use = "a subscription connects when it is polled"]
pub struct Subscription {
    connector: Connector,
    options: SubscribeOptions,
    tracker: Tracker,
    /// The failures so far. `None`: a broken stream ends the subscription.
    attempts: Option<Attempts>,
    /// The delay that this stream's `GoingAway` asked for.
    reconnect_after: Option<Duration>,
    /// In [`State::Waiting`] the end of the wait, in the other states the moment at which silence breaks the stream,
    /// unless bytes have moved by then.
    timer: Pin<Box<Sleep>>,
    /// The movement of bytes on the connection of the latest attempt.
    activity: Activity,
    state: State,
}

/// ```text
/// Waiting --timer--> Connecting --stream--> Streaming
///    ^                   |                      |
///    +---- transient ----+----------------------+---- anything else ---> Ended
/// ```
enum State {
    Waiting,
    Connecting(Pin<Box<dyn Future<Output = Result<Streaming<SubscribeResponse>, Status>> + Send>>),
    Streaming {
        responses: Box<Streaming<SubscribeResponse>>,
        /// The rest of the batch in progress.
        events: vec::IntoIter<Event>,
    },
    Ended,
}

impl Subscription {
    pub(crate) fn new(connector: Connector, options: SubscribeOptions) -> Self {
        let position = match options.start {
            Start::ResumeAfter(position) => Some(position),
            Start::Live | Start::ReplayLast(_) => None,
        };
        let attempts = |backoff: Backoff| Attempts::new(backoff, fastrand::Rng::new());
        Self {
            connector,
            tracker: Tracker::new(position),
            attempts: options.reconnect.map(attempts),
            reconnect_after: None,
            timer: Box::pin(sleep(Duration::ZERO)),
            activity: Activity::new(0),
            state: State::Waiting,
            options,
        }
    }

    /// Waits for the next update. Returns `None` only after an error, and then forever.
    ///
    /// Updates come in the order of the stream: events in sequence order, none twice, and each gap in the place of the
    /// events that it counts.
    ///
    /// # Errors
    /// The [`Error`] that ends the subscription, once.
    ///
    /// # Cancel safety
    /// Cancel safe: no update is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Update, Error>> {
        poll_fn(|cx| self.poll_update(cx)).await
    }

    /// Returns the position that a reconnect would resume after. Everything up to it was yielded, as an event or in a
    /// gap.
    ///
    /// `None` while there is no such position: before [`Update::Subscribed`], and in a replay before its first event.
    /// It stays valid after the subscription has ended.
    pub fn position(&self) -> Option<Position> {
        self.tracker.position()
    }

    /// Returns the client id: the one of the options or, once subscribed, the one that the server assigned. Empty
    /// before.
    pub fn client_id(&self) -> &str {
        &self.options.client_id
    }

    fn poll_update(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Update, Error>>> {
        if matches!(self.state, State::Ended) {
            return Poll::Ready(None);
        }
        let update = ready!(self.poll_state(cx));
        if update.is_err() {
            self.state = State::Ended;
        }
        Poll::Ready(Some(update))
    }

    fn poll_state(&mut self, cx: &mut Context<'_>) -> Poll<Result<Update, Error>> {
        loop {
            match &mut self.state {
                State::Waiting => {
                    ready!(self.timer.as_mut().poll(cx));
                    self.connect();
                }
                State::Connecting(call) => match call.as_mut().poll(cx) {
                    Poll::Ready(Ok(responses)) => {
                        self.state = State::Streaming {
                            responses: Box::new(responses),
                            events: Vec::new().into_iter(),
                        };
                    }
                    Poll::Ready(Err(status)) => return Poll::Ready(self.stream_failed(status)),
                    Poll::Pending => return self.poll_silence(cx),
                },
                State::Streaming { responses, events } => {
                    // The batch first, even if the stream has failed by now: its events have arrived, and the position
                    // to resume after must not lie before them.
                    if let Some(event) = events.next() {
                        return Poll::Ready(self.event(event));
                    }
                    match Pin::new(responses).poll_next(cx) {
                        Poll::Ready(Some(Ok(response))) => {
                            if let Some(update) = self.receive(response).transpose() {
                                return Poll::Ready(update);
                            }
                        }
                        Poll::Ready(Some(Err(status))) => {
                            return Poll::Ready(self.stream_failed(status));
                        }
                        Poll::Ready(None) => {
                            return Poll::Ready(self.stream_failed(ended_with_ok()));
                        }
                        Poll::Pending => return self.poll_silence(cx),
                    }
                }
                State::Ended => unreachable!("checked before, and only set after, by the caller"),
            }
        }
    }

    fn connect(&mut self) {
        let request = self.options.request(self.tracker.position());
        let (activity, call) = self.connector.subscribe(request, self.silence_limit());
        self.activity = activity;
        self.state = State::Connecting(Box::pin(call));
        let deadline = instant_after(Instant::now(), self.silence_limit());
        self.timer.as_mut().reset(deadline);
    }

    /// Takes one response. Returns `None` if it yields no update, or not yet.
    fn receive(&mut self, response: SubscribeResponse) -> Result<Option<Update>, Error> {
        // A kind of response that is newer than this client is no error; it only shows that the server is alive.
        let Some(response) = response.response else {
            return Ok(None);
        };
        let update = match response {
            Response::Subscribed(subscribed) => self.subscribed(subscribed)?,
            Response::Batch(batch) => {
                self.batch(batch)?;
                return Ok(None);
            }
            Response::Gap(gap) => {
                self.tracker.gap(&gap)?;
                self.reset_attempts();
                Update::Gap(gap)
            }
            Response::Heartbeat(heartbeat) => {
                let position = self.tracker.position_stated(heartbeat.position)?;
                self.reset_attempts();
                // Without a position it only shows that the server is alive.
                let Some(position) = position else {
                    return Ok(None);
                };
                Update::Heartbeat(position)
            }
            Response::CaughtUp(caught_up) => {
                Update::CaughtUp(self.tracker.caught_up(caught_up.position)?)
            }
            Response::GoingAway(going_away) => {
                self.tracker.going_away(going_away.resume_after)?;
                self.reconnect_after = going_away
                    .reconnect_after
                    .and_then(|after| after.try_into().ok());
                Update::GoingAway(going_away)
            }
        };
        Ok(Some(update))
    }

    fn subscribed(&mut self, subscribed: Subscribed) -> Result<Update, Violation> {
        let starts_live = self.tracker.position().is_none() && self.options.start == Start::Live;
        self.tracker.subscribed(&subscribed, starts_live)?;
        // Keep an id that the server assigned, so that events for this client reach it after a reconnect.
        self.options.client_id.clone_from(&subscribed.client_id);
        Ok(Update::Subscribed(subscribed))
    }

    fn batch(&mut self, batch: Batch) -> Result<(), Violation> {
        self.tracker.batch(batch.first_index, batch.events.len())?;
        if let State::Streaming { events, .. } = &mut self.state {
            *events = batch.events.into_iter();
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<Update, Error> {
        self.tracker.event(event.sequence)?;
        self.reset_attempts();
        Ok(Update::Event(event))
    }

    fn reset_attempts(&mut self) {
        if let Some(attempts) = &mut self.attempts {
            attempts.reset();
        }
    }

    /// The stream, or the attempt to open one, has failed: waits and tries again, or ends the subscription.
    fn stream_failed(&mut self, status: Status) -> Result<Update, Error> {
        let status = with_cause(status);
        let began = self.tracker.is_subscribed();
        let was_refused = matches!(self.state, State::Connecting(_));
        self.tracker.end_stream();
        let going_away = self.reconnect_after.take();
        let (_, advice) = reason::meaning(&status);
        let is_named = reason::reason(&status).as_deref() == Some("POSITION_AHEAD");
        let ahead = match advice {
            // Without that very reason, only a refused call says so.
            Advice::StartAnew if was_refused || is_named => self.tracker.position(),
            _ => None,
        };
        let retry = match (advice, ahead) {
            (Advice::Resume, _) => true,
            (Advice::StartAnew, Some(position)) => self.abandon_position(position),
            // The token may have been renewed while the stream was open. One attempt finds out: if the server refuses
            // the new token, that stream has not begun, and the next failure ends the subscription.
            (Advice::Authenticate, _) => began && self.connector.may_have_new_token(),
            (Advice::Correct | Advice::Stop | Advice::StartAnew, _) => false,
        };
        let Some(attempts) = self.attempts.as_mut().filter(|_| retry) else {
            return Err(match ahead {
                Some(position) => Error::PositionAhead { position, status },
                None => Error::from_status(status),
            });
        };
        let retry_in = attempts.record_failure(going_away.max(reason::retry_delay(&status)));
        let attempt = attempts.failures();
        let deadline = instant_after(Instant::now(), retry_in);
        self.timer.as_mut().reset(deadline);
        self.state = State::Waiting;
        Ok(Update::Reconnecting {
            status,
            retry_in,
            attempt,
        })
    }

    /// Drops a position that is ahead of the server, if the options allow it. Returns whether they do.
    fn abandon_position(&mut self, position: Position) -> bool {
        let position = match self.options.out_of_range {
            OutOfRange::Fail => return false,
            OutOfRange::StartLive => None,
            OutOfRange::StartFromHistory => Some(Position {
                sequence: 0,
                ..position
            }),
        };
        // Without a position the next request starts as the options say, which must not be the position again.
        self.options.start = Start::Live;
        self.tracker = Tracker::new(position);
        true
    }

    fn silence_limit(&self) -> Duration {
        // A server refuses a shorter interval, and that answer must have the time to arrive.
        self.options
            .heartbeat_interval
            .max(Duration::from_secs(1))
            .saturating_mul(SILENT_INTERVALS)
    }

    /// Checks for silence, when nothing is ready. Call it after polling the stream: a program that was busy elsewhere
    /// for longer than the limit must find the responses that arrived meanwhile, and not take the server for silent.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Result<Update, Error>> {
        let limit = self.silence_limit();
        loop {
            ready!(self.timer.as_mut().poll(cx));
            // Moved only when it fires, and not by whole responses: the parts of a large one are no silence.
            let deadline = instant_after(self.activity.last_progress(), limit);
            if deadline <= Instant::now() {
                break;
            }
            self.timer.as_mut().reset(deadline);
        }
        let message = format!("no response from the server for {limit:?}");
        Poll::Ready(self.stream_failed(Status::unavailable(message)))
    }
}

impl Stream for Subscription {
    type Item = Result<Update, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_update(cx)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting => "waiting",
            State::Connecting(_) => "connecting",
            State::Streaming { .. } => "streaming",
            State::Ended => "ended",
        };
        f.debug_struct("Subscription")
            .field("options", &self.options)
            .field("position", &self.tracker.position())
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

/// The status for a stream that ended with OK. A server always ends a stream with an error status, so OK comes from a
/// proxy, or from a task that died.
fn ended_with_ok() -> Status {
    Status::unavailable("the stream ended without a reason")
}

/// Returns the moment `wait` after `begin`, or a year after it: a timer cannot hold every duration.
fn instant_after(begin: Instant, wait: Duration) -> Instant {
    const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
    begin + wait.min(FOREVER)
}
