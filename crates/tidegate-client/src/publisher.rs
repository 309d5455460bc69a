//! A publisher of many events on one stream at a time, with an exact account at the end.

use std::{
    collections::VecDeque,
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use prost::Message as _;
use tidegate_proto::v1::PublishRequest;
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tonic::{Code, Status};

use crate::{
    Backoff, Error, NewEvent, Violation,
    advice::Advice,
    backoff::Attempts,
    connector::{Connection, Connector},
    error::with_cause,
    options::PublisherOptions,
    outbox::{Outbox, Queued, Refused},
    reason,
};

/// Time that a server has for the headers of its response, from the moment at which it can read the call. It sends them
/// at once, before any event: so a call that is refused has taken none. A proxy may hold headers back until there is a
/// response, so an older stream takes one event without them, and the others once they have come: it may as well be a proxy
/// without a server, which takes what it gets and answers with a page later.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(3);

/// Refusals that a program has not taken yet, at most. Those beyond it are only counted.
const MAX_REFUSALS: usize = 100;

/// Publishes events in order, on one `PublishStream` at a time.
///
/// Events that are ready together share a request, and no event waits for others to arrive. The server applies each
/// request as a whole or not at all. Where it refuses a request of several events as invalid, its events go in smaller
/// requests, so that all before the invalid one are published.
///
/// # Failures
/// Without [`reconnect`](PublisherOptions::reconnect) the first failure ends the publisher. With it, the publisher opens
/// another stream, after a back-off, when the connection broke or the server asked for it, and sends what the server has
/// certainly not stored: events that no stream has taken, and those in a stream that the server itself ended with a
/// reason, since a server answers what it has stored before it does so. What was sent and not answered when a connection
/// broke may be stored. It ends the publisher, unless [`resend`](PublisherOptions::resend) is set. A failure that a retry
/// would not change ends it too.
///
/// Dropping it without [`finish`](Self::finish) cancels the stream; what is in flight then may or may not be published.
///
/// It waits for as long as the connection lives, on a slow link too, and has no deadline of its own. The connection ends
/// when nothing moves on it for the time of [`keep_alive`](crate::ClientBuilder::keep_alive), and up to 16 s more after
/// much was sent.
#[derive(Debug)]
#[must_use = "call finish to know what was accepted"]
pub struct Publisher {
    events: mpsc::Sender<Queued>,
    shared: Arc<Shared>,
    options: PublisherOptions,
    task: AbortOnDrop,
}

/// The counts and the state of a [`Publisher`]. They can be read while it is sending or finishing, and after it was
/// dropped. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Progress {
    shared: Arc<Shared>,
    state: watch::Receiver<PublisherState>,
}

/// The state of a [`Publisher`]'s stream.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PublisherState {
    /// The first stream is being opened.
    Connecting,
    /// The server has accepted the call.
    Open,
    /// A stream broke, or an attempt to open one failed.
    Reconnecting {
        /// The reason of the failure.
        status: Status,
        /// The time until the next attempt.
        retry_in: Duration,
        /// Failures in a row, this one included.
        attempt: u32,
    },
    /// The publisher has failed, or has published everything.
    Ended,
}

/// An event that the server refused as invalid, and that was left out.
#[derive(Debug)]
#[non_exhaustive]
pub struct Refusal {
    /// The number of events that were sent before it.
    pub index: u64,
    /// The reason of the server.
    pub error: Error,
}

/// The publisher has failed, and gives the event back. [`Publisher::finish`] returns the reason.
#[derive(Debug, thiserror::Error)]
#[error("the publisher has failed")]
pub struct Closed(pub NewEvent);

/// The server has not acknowledged every event.
///
/// The events that were sent are those acknowledged, then those in `unknown`, then those in `unpublished`, in this order,
/// without those that were [left out](PublisherOptions::skip_refused).
#[derive(Debug, thiserror::Error)]
#[error("{acknowledged} events were acknowledged, {unacknowledged} were not")]
#[non_exhaustive]
pub struct PublishFailure {
    /// Events that the server has accepted.
    pub acknowledged: u64,
    /// Events that [`Publisher::send`] took and the server has not accepted: `unknown` and `unpublished` together.
    pub unacknowledged: u64,
    /// Events that were sent and not answered. They are published up to some request, and not after.
    pub unknown: Vec<NewEvent>,
    /// Events that are certainly not published. If the server refused one as invalid, it is the first, unless it was sent
    /// before on a stream that broke: then it is the first in `unknown`.
    pub unpublished: Vec<NewEvent>,
    /// The reason of the failure.
    #[source]
    pub error: Error,
}

/// State that the publisher shares with its task.
#[derive(Debug)]
struct Shared {
    /// Events taken by `send`.
    sent: AtomicU64,
    /// Events that the server has accepted.
    acknowledged: AtomicU64,
    /// Events that the server has refused, and that were left out.
    refused: AtomicU64,
    /// Whether `send` has given an event back.
    has_given_back: AtomicBool,
    /// The bytes that `send` may still take, as permits. Closed when the task has ended.
    budget: Semaphore,
    outbox: Outbox,
    refusals: Mutex<VecDeque<Refusal>>,
    state: watch::Sender<PublisherState>,
    /// Told when the transport first asks for a request, and so can send the call.
    is_asked: Notify,
}

/// The requests of one stream.
struct Requests {
    shared: Arc<Shared>,
    stream: u64,
}

/// The streams of a publisher, one after the other.
struct Streams {
    connector: Connector,
    shared: Arc<Shared>,
    options: PublisherOptions,
    /// `None`: the first failure ends the publisher.
    attempts: Option<Attempts>,
    /// When the current stream was accepted.
    opened: Option<Instant>,
}

/// The next step after the end of a stream.
enum Next {
    /// Another stream on the same connection.
    Again,
    /// Another stream on a new connection, after a wait.
    Reconnect(PublisherState, Duration),
    Fail(Error),
}

/// The task of the streams.
#[derive(Debug)]
struct AbortOnDrop {
    task: JoinHandle<Result<(), Error>>,
    shared: Arc<Shared>,
}

// ===== impl Publisher =====

impl Publisher {
    pub(crate) fn new(connector: Connector, options: PublisherOptions) -> Self {
        let (events, queue) = mpsc::channel(options.max_batch_events.max(1));
        let shared = Arc::new(Shared {
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            has_given_back: AtomicBool::new(false),
            budget: Semaphore::new(budget_bytes(options)),
            outbox: Outbox::new(queue, options),
            refusals: Mutex::default(),
            state: watch::Sender::new(PublisherState::Connecting),
            is_asked: Notify::new(),
        });
        let attempts = |backoff| Attempts::new(backoff, fastrand::Rng::new());
        let streams = Streams {
            connector,
            shared: Arc::clone(&shared),
            options,
            attempts: options.reconnect.map(attempts),
            opened: None,
        };
        Self {
            events,
            options,
            task: AbortOnDrop {
                task: tokio::spawn(streams.run()),
                shared: Arc::clone(&shared),
            },
            shared,
        }
    }

    /// Takes one event, to be published after all events taken before it. Waits while more than
    /// [`max_unacknowledged_bytes`](PublisherOptions::max_unacknowledged_bytes) are unacknowledged. While the publisher
    /// reconnects, it takes what fits: to wait for a stream first, see [`Progress::opened`].
    ///
    /// # Errors
    /// [`Closed`], with the event, if the publisher has failed. The event was not taken.
    ///
    /// # Cancel safety
    /// Cancel safe: if the future is dropped, the event was not taken.
    pub async fn send(&mut self, event: NewEvent) -> Result<(), Closed> {
        let charge = event.encoded_len().clamp(1, budget_bytes(self.options));
        // At most `u32::MAX`, which is what `max_unacknowledged_bytes` can hold.
        let Ok(permits) = self.shared.budget.acquire_many(charge as u32).await else {
            return Err(self.shared.give_back(event));
        };
        let Ok(slot) = self.events.reserve().await else {
            return Err(self.shared.give_back(event));
        };
        // Both are reserved, so nothing below waits: a dropped future has taken neither the event nor the budget. The
        // task returns the permits when the server acknowledges the event.
        permits.forget();
        let index = self.shared.sent.fetch_add(1, Ordering::Relaxed);
        slot.send(Queued {
            event,
            charge,
            index,
            is_unanswered: false,
        });
        Ok(())
    }

    /// Waits until the publisher has failed. [`finish`](Self::finish) returns the reason. A program that waits for
    /// something to publish learns so that there is nobody to send it to, before it takes it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn closed(&self) {
        self.events.closed().await;
    }

    /// Returns a view of this publisher's counts and state.
    pub fn progress(&self) -> Progress {
        Progress {
            shared: Arc::clone(&self.shared),
            state: self.shared.state.subscribe(),
        }
    }

    /// Publishes the remaining events, waits until the server has answered every event, and returns the number of those
    /// that it has accepted.
    ///
    /// # Errors
    /// [`PublishFailure`] if the server has not answered every event, with the counts, the events and the reason.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropping the future cancels the stream. [`Progress`] has the counts then.
    pub async fn finish(self) -> Result<u64, PublishFailure> {
        let Self {
            events,
            shared,
            mut task,
            ..
        } = self;
        // The stream takes the last event when the queue is empty and has no sender, and half-closes then.
        drop(events);
        let outcome = (&mut task.task).await;
        let has_given_back = shared.has_given_back.load(Ordering::Relaxed);
        let acknowledged = shared.acknowledged.load(Ordering::Relaxed);
        let (unknown, unpublished) = shared.outbox.drain();
        let error = match outcome {
            // An event that was given back is one that the program wanted to publish: no success without it.
            Ok(Ok(())) if !has_given_back => return Ok(acknowledged),
            Ok(Ok(())) => Error::Unavailable(ended_with_ok()),
            Ok(Err(error)) => error,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        Err(PublishFailure {
            acknowledged,
            unacknowledged: (unknown.len() + unpublished.len()) as u64,
            unknown,
            unpublished,
            error,
        })
    }
}

impl Shared {
    /// Notes that an event is given back.
    fn give_back(&self, event: NewEvent) -> Closed {
        self.has_given_back.store(true, Ordering::Relaxed);
        Closed(event)
    }

    /// Notes that the first of the events to be sent again is left out.
    fn skip(&self, error: Error) {
        let Some(queued) = self.outbox.skip() else {
            return;
        };
        self.budget.add_permits(queued.charge);
        let mut refusals = self.refusals();
        if refusals.len() < MAX_REFUSALS {
            refusals.push_back(Refusal {
                index: queued.index,
                error,
            });
        }
        // Under the lock, and after the refusal is there: whoever sees the count finds it.
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn refusals(&self) -> MutexGuard<'_, VecDeque<Refusal>> {
        // Each change is whole before anything could panic.
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// Returns the number of events that [`Publisher::send`] has taken.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Returns the number of events that the server has acknowledged: the first of those sent.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Returns the number of events that were sent to the server, and that it has not answered, those included that are
    /// to be [sent again](PublisherOptions::resend). Once the publisher was dropped, or has failed, they may or may not be
    /// published.
    pub fn in_flight(&self) -> u64 {
        self.shared.outbox.unanswered()
    }

    /// Returns the number of events that were [left out](PublisherOptions::skip_refused).
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Takes the refusals since the last call, oldest first. Up to 100 wait to be taken: those beyond them are only
    /// counted, by [`refused`](Self::refused).
    pub fn take_refusals(&self) -> Vec<Refusal> {
        mem::take(&mut *self.shared.refusals()).into()
    }

    /// Returns the state of the publisher.
    pub fn state(&self) -> PublisherState {
        self.state.borrow().clone()
    }

    /// Waits until the state of the publisher is another than this view has returned before, and returns it. `None` once
    /// nothing can change.
    ///
    /// # Cancel safety
    /// Cancel safe. Where the state changes several times in between, only the last is seen.
    pub async fn changed(&mut self) -> Option<PublisherState> {
        if matches!(*self.state.borrow(), PublisherState::Ended) && !self.has_changed() {
            return None;
        }
        self.state.changed().await.ok()?;
        Some(self.state.borrow_and_update().clone())
    }

    /// Waits until a stream is open, or the publisher has ended. Returns whether a stream is open.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn opened(&self) -> bool {
        let mut state = self.state.clone();
        let settled =
            |state: &PublisherState| matches!(state, PublisherState::Open | PublisherState::Ended);
        let state = state.wait_for(settled).await;
        state.is_ok_and(|state| matches!(*state, PublisherState::Open))
    }

    fn has_changed(&self) -> bool {
        self.state.has_changed().unwrap_or(false)
    }
}

// ===== impl Streams =====

impl Streams {
    /// Opens streams until every event is answered, or a failure cannot be mended.
    async fn run(mut self) -> Result<(), Error> {
        let mut connection = self.connector.connect_lazy();
        loop {
            self.opened = None;
            let outcome = self.exchange(&connection).await;
            let is_done = self.shared.outbox.is_done();
            self.shared.outbox.close_stream();
            let error = match outcome {
                // Whatever the ending says, each event was answered. Without any, only the ending tells whether they
                // could have been published.
                Ok(()) if is_done => return Ok(()),
                Err(_) if is_done && self.shared.sent.load(Ordering::Relaxed) > 0 => return Ok(()),
                Ok(()) => Ended::Status(ended_with_ok()),
                Err(ended) => ended,
            };
            match self.next(error) {
                Next::Again => {}
                Next::Reconnect(state, wait) => {
                    self.shared.state.send_replace(state);
                    sleep(wait).await;
                    // With a new connection the name is resolved again.
                    connection = self.connector.connect_lazy();
                }
                Next::Fail(error) => return Err(error),
            }
        }
    }

    /// Runs one stream to its end.
    async fn exchange(&mut self, connection: &Connection) -> Result<(), Ended> {
        let requests = Requests {
            stream: self.shared.outbox.begin_stream(),
            shared: Arc::clone(&self.shared),
        };
        let mut service = self.connector.event_service(connection.clone());
        let mut call = pin!(service.publish_stream(requests));
        let response = tokio::select! {
            biased;
            response = &mut call => response,
            () = headers_overdue(&self.shared, connection) => {
                self.shared.outbox.open_on_trial();
                self.opened();
                call.await
            }
        };
        let response = response?;
        // Headers that are trailers, too: the stream has ended before it was open.
        if response.metadata().contains_key("grpc-status") {
            return Ok(());
        }
        let mut responses = response.into_inner();
        self.shared.outbox.open();
        self.opened();
        // Responses come in the order of the requests, one for each.
        while let Some(response) = responses.message().await? {
            let batch = self.shared.outbox.acknowledge(&response)?;
            let charge = batch.iter().map(|queued| queued.charge).sum();
            let shared = &self.shared;
            shared
                .acknowledged
                .fetch_add(batch.len() as u64, Ordering::Relaxed);
            shared.budget.add_permits(charge);
            if let Some(attempts) = &mut self.attempts {
                attempts.reset();
            }
        }
        Ok(())
    }

    /// Notes that the stream may take events.
    fn opened(&mut self) {
        self.opened.get_or_insert_with(Instant::now);
        self.shared.state.send_if_modified(|state| {
            let is_news = !matches!(state, PublisherState::Open);
            *state = PublisherState::Open;
            is_news
        });
    }

    /// Settles the events of a stream that has ended, and decides how to go on.
    fn next(&mut self, ended: Ended) -> Next {
        let status = match ended {
            Ended::Status(status) => with_cause(status),
            Ended::Violation(violation) => return Next::Fail(violation.into()),
        };
        let (code, advice) = reason::meaning(&status);
        if code == Code::InvalidArgument {
            return self.refused(status);
        }
        // The server answers each request that it stored before it ends the stream with a reason. `INTERNAL` may be the
        // end of a task in the middle of a request.
        let is_certain = reason::reason(&status).is_some() && code != Code::Internal;
        let may_resend = self.options.resend && self.attempts.is_some();
        if is_certain || may_resend {
            self.shared.outbox.take_back(is_certain);
        }
        let is_unknown = self.shared.outbox.in_flight() > 0;
        let retry = match advice {
            Advice::Resume => true,
            // The token may have been renewed while the stream was open, and one attempt finds out.
            Advice::Authenticate => self.opened.is_some() && self.connector.may_have_new_token(),
            Advice::Correct | Advice::Stop | Advice::StartAnew => false,
        };
        match &mut self.attempts {
            Some(attempts) if retry && !is_unknown => {
                // A stream that lived for long was no failure of the attempt to open it.
                let Backoff { max, .. } = self.options.reconnect.unwrap_or_default();
                if self.opened.is_some_and(|opened| opened.elapsed() > max) {
                    attempts.reset();
                }
                let retry_in = attempts.record_failure(reason::retry_delay(&status));
                let attempt = attempts.failures();
                let state = PublisherState::Reconnecting {
                    status,
                    retry_in,
                    attempt,
                };
                Next::Reconnect(state, retry_in)
            }
            _ => Next::Fail(Error::from_status(status)),
        }
    }

    /// The server refused a request as invalid: neither it nor anything after it was stored.
    fn refused(&self, status: Status) -> Next {
        let reason = reason::reason(&status);
        let too_many = matches!(
            reason.as_deref(),
            Some("TOO_MANY_EVENTS" | "BATCH_TOO_LARGE")
        );
        match self.shared.outbox.refuse(too_many) {
            Refused::Batch => Next::Again,
            Refused::Event if self.options.skip_refused => {
                self.shared.skip(Error::from_status(status));
                Next::Again
            }
            Refused::Event | Refused::Call => Next::Fail(Error::from_status(status)),
        }
    }
}

/// Waits until a server that is there has sent no headers for too long.
async fn headers_overdue(shared: &Shared, connection: &Connection) {
    shared.is_asked.notified().await;
    loop {
        sleep(HEADERS_TIMEOUT).await;
        // A peer that never said a word may be no server at all, or one that is stopped.
        if connection.has_heard() {
            return;
        }
    }
}

impl Stream for Requests {
    type Item = PublishRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PublishRequest>> {
        self.shared.is_asked.notify_one();
        self.shared.outbox.poll_request(self.stream, cx)
    }
}

/// The end of a stream other than one in good order.
enum Ended {
    Status(Status),
    Violation(Violation),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Violation> for Ended {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// The status for a stream that ended with OK although there was more to publish.
fn ended_with_ok() -> Status {
    Status::unavailable("the server ended the stream without a reason")
}

fn budget_bytes(options: PublisherOptions) -> usize {
    (options.max_unacknowledged_bytes as usize).clamp(1, Semaphore::MAX_PERMITS)
}

/// Closes the budget and the queue, so that `send` fails instead of waiting forever, whatever ended the task: a panic in a
/// credential of the application, too.
impl Drop for Streams {
    fn drop(&mut self) {
        self.shared.outbox.close_stream();
        self.shared.outbox.close();
        self.shared.budget.close();
        self.shared.state.send_replace(PublisherState::Ended);
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.task.abort();
        // The transport may drop the requests later, and must take no event after the counts were read.
        self.shared.outbox.close_stream();
    }
}
