//! A subscription that outlives its streams.

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
use tonic::{Code, Status, Streaming};

use crate::{
    Backoff, Client, Error, Event, Gap, GoingAway, OutOfRange, Position, SubscribeOptions,
    Subscribed, Violation,
    backoff::Attempts,
    error::{is_transient, retry_hint, with_cause},
    options::Start,
    tracker::Tracker,
};

/// A stream that is silent for so many heartbeat intervals is broken.
const SILENT_INTERVALS: u32 = 3;

/// What happened in a subscription, in order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Update {
    /// A stream has begun: the first, or one after [`Reconnecting`](Self::Reconnecting). It has a position.
    Subscribed(Subscribed),
    /// An event.
    Event(Event),
    /// Events that will not be delivered. `count` 0 means that nobody knows how many.
    ///
    /// After [`Reconnecting`](Self::Reconnecting) a gap `EXPIRED` says that the client was away for longer than
    /// history reaches back, and `EPOCH_CHANGED` that the server counts anew: what came before is lost, and the
    /// whole history of the new epoch follows.
    Gap(Gap),
    /// Nothing happened for a while, and everything up to this position has been yielded.
    Heartbeat(Position),
    /// The replay has ended; what follows is live.
    CaughtUp(Position),
    /// The server is about to end the stream. [`Reconnecting`](Self::Reconnecting) follows.
    GoingAway(GoingAway),
    /// The stream broke, or an attempt to open one failed. The next attempt resumes after
    /// [`Subscription::position`].
    Reconnecting {
        /// Why.
        status: Status,
        /// The time until the next attempt.
        retry_in: Duration,
        /// Failures in a row, this one included.
        attempt: u32,
    },
}

/// Events that match some filters, through as many streams as it takes.
///
/// It is a [`Stream`] of the same items that [`next`](Self::next) returns. It works only while it is polled: a
/// program that stops reading lets the server's limits apply, and learns of what it missed by a gap. Dropping
/// it closes the stream and its connection.
#[must_use = "a subscription connects when it is polled"]
pub struct Subscription {
    client: Client,
    options: SubscribeOptions,
    tracker: Tracker,
    /// `None`: a broken stream ends the subscription.
    attempts: Option<Attempts>,
    /// What this stream's `GoingAway` asked to wait for.
    reconnect_after: Option<Duration>,
    /// The end of the wait in [`State::Waiting`], the moment of giving up on silence in the other states.
    timer: Pin<Box<Sleep>>,
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
        /// The rest of the batch that is being yielded.
        events: vec::IntoIter<Event>,
    },
    Ended,
}

impl Subscription {
    pub(crate) fn new(client: Client, options: SubscribeOptions) -> Self {
        let position = match options.start {
            Start::ResumeAfter(position) => Some(position),
            Start::Live | Start::ReplayLast(_) => None,
        };
        let attempts = |backoff: Backoff| Attempts::new(backoff, fastrand::Rng::new());
        Self {
            client,
            tracker: Tracker::new(position),
            attempts: options.reconnect.map(attempts),
            reconnect_after: None,
            timer: Box::pin(sleep(Duration::ZERO)),
            state: State::Waiting,
            options,
        }
    }

    /// The next update. `None` after an error, forever: only then has the subscription ended.
    ///
    /// # Errors
    /// Whatever ends the subscription, once. See [`Error`].
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Update, Error>> {
        poll_fn(|cx| self.poll_update(cx)).await
    }

    /// What a reconnect would resume after: everything up to here was yielded, as an event or in a gap.
    ///
    /// `None` as long as there is nothing to resume after: before [`Update::Subscribed`], and in a replay before
    /// its first event. Also right after the subscription has ended.
    pub fn position(&self) -> Option<Position> {
        self.tracker.position()
    }

    /// The client id: the chosen one or, once subscribed, the one that the server made. Empty before.
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
                    if let Some(event) = events.next() {
                        return Poll::Ready(self.event(event));
                    }
                    match Pin::new(responses).poll_next(cx) {
                        Poll::Ready(Some(Ok(response))) => {
                            self.restart_silence_timer();
                            if let Some(update) = self.receive(response).transpose() {
                                return Poll::Ready(update);
                            }
                        }
                        Poll::Ready(Some(Err(status))) => {
                            return Poll::Ready(self.stream_failed(status));
                        }
                        Poll::Ready(None) => {
                            return Poll::Ready(self.stream_failed(ended_without_status()));
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
        self.state = State::Connecting(Box::pin(self.client.open(request)));
        self.restart_silence_timer();
    }

    /// Takes one response in. `None` if there is nothing to yield for it, or not yet.
    fn receive(&mut self, response: SubscribeResponse) -> Result<Option<Update>, Error> {
        // A response of a kind that is newer than this client is no error, only a sign of life.
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
                Update::Heartbeat(position)
            }
            Response::CaughtUp(caught_up) => {
                Update::CaughtUp(self.tracker.position_stated(caught_up.position)?)
            }
            Response::GoingAway(going_away) => {
                self.tracker.position_stated(going_away.resume_after)?;
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
        // An id that the server made is kept, so that events for this client find it after a reconnect.
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

    /// The stream or the attempt at one has failed: waits and tries again, or ends.
    fn stream_failed(&mut self, status: Status) -> Result<Update, Error> {
        let status = with_cause(status);
        let began = self.tracker.is_subscribed();
        self.tracker.end_stream();
        let going_away = self.reconnect_after.take();
        let ahead = self
            .tracker
            .position()
            .filter(|_| !began && status.code() == Code::OutOfRange);
        let retry = match ahead {
            Some(position) => self.abandon_position(position),
            // A token that was renewed meanwhile is tried, once: if it is refused, the stream never begins.
            None if began && status.code() == Code::Unauthenticated => {
                self.client.may_have_new_token()
            }
            None => is_transient(&status),
        };
        let Some(attempts) = self.attempts.as_mut().filter(|_| retry) else {
            return Err(match ahead {
                Some(position) => Error::PositionAhead { position, status },
                None => Error::from_status(status),
            });
        };
        let retry_in = attempts.record_failure(going_away.max(retry_hint(&status)));
        let attempt = attempts.failures();
        self.timer.as_mut().reset(instant_after(retry_in));
        self.state = State::Waiting;
        Ok(Update::Reconnecting {
            status,
            retry_in,
            attempt,
        })
    }

    /// Gives up a position that is ahead of the server, if the options say so. `false` if they do not.
    fn abandon_position(&mut self, position: Position) -> bool {
        let position = match self.options.out_of_range {
            OutOfRange::Fail => return false,
            OutOfRange::StartLive => None,
            OutOfRange::StartFromHistory => Some(Position {
                sequence: 0,
                ..position
            }),
        };
        self.options.start = Start::Live;
        self.tracker = Tracker::new(position);
        true
    }

    /// A response has come, or an attempt begins: silence is counted from here.
    fn restart_silence_timer(&mut self) {
        let limit = self.silence_limit();
        self.timer.as_mut().reset(instant_after(limit));
    }

    fn silence_limit(&self) -> Duration {
        self.options
            .heartbeat_interval
            .saturating_mul(SILENT_INTERVALS)
    }

    /// Nothing is ready. The stream was asked first: a program that was busy elsewhere for longer than the
    /// limit finds what arrived meanwhile, and is not taken for a silent server.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Result<Update, Error>> {
        ready!(self.timer.as_mut().poll(cx));
        let limit = self.silence_limit();
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

/// The server always ends with a status; OK is what a proxy, or a task that died, looks like.
fn ended_without_status() -> Status {
    Status::unavailable("the stream ended without a reason")
}

/// The moment in `wait` from now, or as late as a timer goes.
fn instant_after(wait: Duration) -> Instant {
    const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + wait.min(FOREVER)
}
