//! A publisher of many events on one stream, with an exact account at the end.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use futures_core::Stream;
use futures_util::stream;
use prost::Message as _;
use tidegate_proto::v1::{PublishRequest, PublishResponse};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tonic::Status;

use crate::{Error, NewEvent, Violation, connector::EventService};

/// Limits of a [`Publisher`]. Keep a batch below the server's limits, by default 1,000 events and 4 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublisherOptions {
    /// The most events in one request; at least 1. Default: 1,000.
    pub max_batch_events: usize,
    /// The most bytes of events in one request. A larger event is sent alone. Default: 256 KiB.
    pub max_batch_bytes: usize,
    /// The most unanswered requests; at least 1. Default: 8.
    pub max_in_flight: usize,
    /// The most bytes of events that [`send`](Publisher::send) has taken and the server has not acknowledged. A larger
    /// event waits until all others are acknowledged. Default: 4 MiB.
    pub max_unacknowledged_bytes: u32,
}

/// Publishes events in order on one `PublishStream`.
///
/// Events that are ready together share a request, and no event waits for others to arrive. The server applies each
/// request as a whole or not at all. The publisher retries nothing: the first failure ends it. Dropping it without
/// [`finish`](Self::finish) cancels the stream; events that were not acknowledged may or may not be published.
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

/// The counts of a [`Publisher`]. They can be read while it is sending or finishing, and after it was dropped. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Shared>);

/// The publisher has failed, and gives the event back. [`Publisher::finish`] returns the reason.
#[derive(Debug, thiserror::Error)]
#[error("the publisher has failed")]
pub struct Closed(pub NewEvent);

/// The server has not acknowledged every event.
///
/// The first `acknowledged` events are published. The `unacknowledged` events after them are not published if the
/// server refused them. After a broken connection it is unknown: they are published up to some request, and not after.
#[derive(Debug, thiserror::Error)]
#[error("{acknowledged} events were acknowledged, {unacknowledged} were not")]
pub struct PublishFailure {
    /// Events that the server has accepted.
    pub acknowledged: u64,
    /// Events that [`Publisher::send`] took and the server has not accepted.
    pub unacknowledged: u64,
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
    /// Whether `send` has given an event back.
    has_refused: AtomicBool,
    /// The bytes that `send` may still take, as permits. Closed when the task has ended.
    budget: Semaphore,
}

/// An event, with the bytes of the budget that it holds until it is acknowledged.
#[derive(Debug)]
struct Queued {
    event: NewEvent,
    charge: usize,
}

/// A request that is not answered yet.
#[derive(Debug)]
struct InFlight {
    events: u64,
    charge: usize,
}

/// Makes requests of the events that are ready.
#[derive(Debug)]
struct Batcher {
    events: mpsc::Receiver<Queued>,
    /// An event that was taken from `events` and did not fit into the batch.
    next: Option<Queued>,
    /// The unanswered requests. Its capacity is the most that may be in flight.
    in_flight: mpsc::Sender<InFlight>,
    options: PublisherOptions,
}

#[derive(Debug)]
struct AbortOnDrop(JoinHandle<Result<(), Error>>);

// ===== impl PublisherOptions =====

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            max_batch_events: 1000,
            max_batch_bytes: 256 * 1024,
            max_in_flight: 8,
            max_unacknowledged_bytes: 4 * 1024 * 1024,
        }
    }
}

// ===== impl Publisher =====

impl Publisher {
    pub(crate) fn new(service: EventService, options: PublisherOptions) -> Self {
        let (events, queue) = mpsc::channel(options.max_batch_events.max(1));
        let (in_flight, unanswered) = mpsc::channel(options.max_in_flight.max(1));
        let shared = Arc::new(Shared {
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            has_refused: AtomicBool::new(false),
            budget: Semaphore::new(budget_bytes(options)),
        });
        let batcher = Batcher {
            events: queue,
            next: None,
            in_flight,
            options,
        };
        let task = run(service, batcher, unanswered, Arc::clone(&shared));
        Self {
            events,
            shared,
            options,
            task: AbortOnDrop(tokio::spawn(task)),
        }
    }

    /// Takes one event, to be published after all events taken before it. Waits while more than
    /// [`max_unacknowledged_bytes`](PublisherOptions::max_unacknowledged_bytes) are unacknowledged.
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
            return Err(self.shared.refuse(event));
        };
        let Ok(slot) = self.events.reserve().await else {
            return Err(self.shared.refuse(event));
        };
        // Both are reserved, so nothing below waits: a dropped future has taken neither the event nor the budget. The
        // task returns the permits when the server acknowledges the event.
        permits.forget();
        self.shared.sent.fetch_add(1, Ordering::Relaxed);
        slot.send(Queued { event, charge });
        Ok(())
    }

    /// Returns a view of this publisher's counts.
    pub fn progress(&self) -> Progress {
        Progress(Arc::clone(&self.shared))
    }

    /// Publishes the remaining events, waits until the server has acknowledged every event, and returns their number.
    ///
    /// # Errors
    /// [`PublishFailure`] if the server has not acknowledged every event, with the counts and the reason.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropping the future cancels the stream.
    pub async fn finish(self) -> Result<u64, PublishFailure> {
        let Self {
            events,
            shared,
            mut task,
            ..
        } = self;
        // The batcher ends when the queue is empty and has no sender, and its end half-closes the stream.
        drop(events);
        let outcome = (&mut task.0).await;
        let has_refused = shared.has_refused.load(Ordering::Relaxed);
        let progress = Progress(shared);
        let (sent, acknowledged) = (progress.sent(), progress.acknowledged());
        let error = match outcome {
            // An event that was given back is one that the program wanted to publish: no success without it.
            Ok(Ok(())) if acknowledged == sent && !has_refused => return Ok(acknowledged),
            Ok(Ok(())) => Error::Unavailable(Status::unavailable(
                "the server ended the stream without a reason",
            )),
            Ok(Err(error)) => error,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        Err(PublishFailure {
            acknowledged,
            unacknowledged: sent.saturating_sub(acknowledged),
            error,
        })
    }
}

impl Shared {
    /// Notes that an event is given back.
    fn refuse(&self, event: NewEvent) -> Closed {
        self.has_refused.store(true, Ordering::Relaxed);
        Closed(event)
    }
}

impl Progress {
    /// Returns the number of events that [`Publisher::send`] has taken.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Returns the number of events that the server has acknowledged: the first of those sent.
    pub fn acknowledged(&self) -> u64 {
        self.0.acknowledged.load(Ordering::Relaxed)
    }
}

/// Runs the stream to its end. Then closes the budget, so that `send` fails instead of waiting forever.
async fn run(
    service: EventService,
    batcher: Batcher,
    unanswered: mpsc::Receiver<InFlight>,
    shared: Arc<Shared>,
) -> Result<(), Error> {
    let outcome = exchange(service, batcher, unanswered, &shared).await;
    shared.budget.close();
    outcome
}

async fn exchange(
    mut service: EventService,
    batcher: Batcher,
    mut unanswered: mpsc::Receiver<InFlight>,
    shared: &Shared,
) -> Result<(), Error> {
    let mut responses = service
        .publish_stream(batcher.into_stream())
        .await
        .map_err(Error::from_status)?
        .into_inner();
    // Responses come in the order of the requests, one for each, so the oldest unanswered request is the one answered.
    while let Some(response) = responses.message().await.map_err(Error::from_status)? {
        let batch = match_response(&response, unanswered.try_recv().ok())?;
        shared
            .acknowledged
            .fetch_add(batch.events, Ordering::Relaxed);
        shared.budget.add_permits(batch.charge);
    }
    Ok(())
}

fn match_response(
    response: &PublishResponse,
    oldest: Option<InFlight>,
) -> Result<InFlight, Violation> {
    let found = u64::from(response.count);
    match oldest {
        Some(batch) if batch.events == found => Ok(batch),
        other => Err(Violation::Acknowledgment {
            expected: other.map_or(0, |batch| batch.events),
            found,
        }),
    }
}

fn budget_bytes(options: PublisherOptions) -> usize {
    (options.max_unacknowledged_bytes as usize).clamp(1, Semaphore::MAX_PERMITS)
}

// ===== impl Batcher =====

impl Batcher {
    fn into_stream(self) -> impl Stream<Item = PublishRequest> + Send + 'static {
        stream::unfold(self, |mut batcher| async move {
            let request = batcher.batch().await?;
            Some((request, batcher))
        })
    }

    /// Returns the next request, once fewer than the most are in flight and an event is ready. `None` at the end.
    async fn batch(&mut self) -> Option<PublishRequest> {
        // The slot first: events that arrive while all slots are taken then share one larger request.
        let slot = self.in_flight.reserve().await.ok()?;
        let first = match self.next.take() {
            Some(first) => first,
            None => self.events.recv().await?,
        };
        let mut bytes = first.event.encoded_len();
        let mut charge = first.charge;
        let mut events = vec![first.event];
        while events.len() < self.options.max_batch_events {
            let Ok(next) = self.events.try_recv() else {
                break;
            };
            bytes += next.event.encoded_len();
            if bytes > self.options.max_batch_bytes {
                self.next = Some(next);
                break;
            }
            charge += next.charge;
            events.push(next.event);
        }
        slot.send(InFlight {
            events: events.len() as u64,
            charge,
        });
        Some(PublishRequest { events })
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(topic: &str, payload: usize) -> Queued {
        let event = NewEvent {
            topic: topic.into(),
            payload: vec![0; payload].into(),
            ..Default::default()
        };
        let charge = event.encoded_len();
        Queued { event, charge }
    }

    fn batcher(
        options: PublisherOptions,
    ) -> (mpsc::Sender<Queued>, Batcher, mpsc::Receiver<InFlight>) {
        let (sender, events) = mpsc::channel(100);
        let (in_flight, unanswered) = mpsc::channel(options.max_in_flight);
        let batcher = Batcher {
            events,
            next: None,
            in_flight,
            options,
        };
        (sender, batcher, unanswered)
    }

    #[tokio::test]
    async fn a_batch_is_what_is_ready_up_to_its_limits() {
        let options = PublisherOptions {
            max_batch_events: 3,
            max_batch_bytes: 100,
            ..Default::default()
        };
        let (sender, mut batcher, mut unanswered) = batcher(options);
        for payload in [1, 1, 1, 1, 60, 60, 500, 1] {
            sender.send(queued("a", payload)).await.unwrap();
        }
        drop(sender);
        let mut sizes = Vec::new();
        while let Some(request) = batcher.batch().await {
            let answer = unanswered.recv().await.unwrap();
            assert_eq!(answer.events, request.events.len() as u64);
            let bytes: usize = request.events.iter().map(NewEvent::encoded_len).sum();
            assert_eq!(answer.charge, bytes);
            sizes.push(request.events.len());
        }
        assert_eq!(sizes, [3, 2, 1, 1, 1]);
    }

    #[tokio::test]
    async fn requests_in_flight_are_bounded() {
        use futures_util::FutureExt as _;

        let options = PublisherOptions {
            max_in_flight: 1,
            ..Default::default()
        };
        let (sender, mut batcher, mut unanswered) = batcher(options);
        sender.send(queued("a", 1)).await.unwrap();
        assert!(batcher.batch().await.is_some());
        sender.send(queued("a", 1)).await.unwrap();
        assert!(batcher.batch().now_or_never().is_none());
        unanswered.recv().await.unwrap();
        assert!(batcher.batch().await.is_some());
    }

    #[test]
    fn a_response_must_match_the_oldest_request() {
        let response = |count| PublishResponse {
            count,
            ..Default::default()
        };
        let batch = || {
            Some(InFlight {
                events: 3,
                charge: 9,
            })
        };
        assert!(match_response(&response(3), batch()).is_ok());
        for (count, oldest, expected) in [(2, batch(), 3), (3, None, 0)] {
            assert_eq!(
                match_response(&response(count), oldest).unwrap_err(),
                Violation::Acknowledgment {
                    expected,
                    found: count.into()
                }
            );
        }
    }
}
