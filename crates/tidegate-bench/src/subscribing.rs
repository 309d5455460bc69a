//! The threads that subscribe.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{mpsc, watch};

use crate::{
    Error, Latencies,
    plan::StreamPlan,
    stream::{Meter, RunShared, Stream, ThreadShared},
    target::Target,
    thread::{TIMEOUT, run_local, spawn, with_timeout},
};

/// Connections that one thread opens concurrently.
pub(crate) const OPENING: usize = 32;

/// The streams of one connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionPlan {
    pub(crate) streams: Vec<StreamPlan>,
    pub(crate) stalled: bool,
}

/// A message from a subscriber thread.
#[derive(Debug)]
pub(crate) enum Message {
    /// All connections of the thread are open and subscribed.
    Ready,
    /// The thread has ended. This is its last message.
    Ended(Result<Outcome, Error>),
}

/// The counts of a subscriber thread.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) latencies: Latencies,
    /// Events missing on the stream with the most.
    pub(crate) most_missed: u64,
    /// Streams with at least one event missing.
    pub(crate) streams_with_gaps: usize,
}

/// The number of events that each publisher has sent, once all have ended.
pub(crate) type Goal = Option<Arc<[u64]>>;

/// The assignment of a subscriber thread.
#[derive(Debug)]
pub(crate) struct Assignment<T> {
    pub(crate) target: T,
    pub(crate) connections: Vec<ConnectionPlan>,
    pub(crate) shared: Arc<RunShared>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) goal: watch::Receiver<Goal>,
    pub(crate) messages: mpsc::Sender<Message>,
    /// Whether the thread never sleeps.
    pub(crate) awake: bool,
}

// ===== impl Assignment =====

impl<T: Target> Assignment<T> {
    /// Starts the thread.
    pub(crate) fn start(self) -> Result<(), Error> {
        spawn("subscribers", move || {
            let messages = self.messages.clone();
            let outcome = match self.awake {
                true => give_way_to_publishers().and_then(|()| run_local(self.run())),
                false => run_local(self.run()),
            };
            // When the run has failed already, nobody receives this.
            let _ = messages.blocking_send(Message::Ended(outcome));
        })
    }

    async fn run(mut self) -> Result<Outcome, Error> {
        let thread = Rc::new(ThreadShared::new(self.shared.clone(), self.meter.clone()));
        let mut healthy = Vec::new();
        let mut opening = Vec::new();
        for connection in std::mem::take(&mut self.connections) {
            let stalled = connection.stalled;
            let new = |plan| Rc::new(Stream::new(thread.clone(), plan, stalled));
            let streams: Vec<_> = connection.streams.into_iter().map(new).collect();
            if !stalled {
                healthy.extend(streams.iter().cloned());
            }
            opening.push(with_timeout(
                "subscribing",
                self.target.subscribe(streams, stalled),
            ));
        }
        let opened = stream::iter(opening).buffer_unordered(OPENING);
        let connections: Vec<T::Connection> = opened.try_collect().await?;
        let _ = self.messages.send(Message::Ready).await;
        if self.awake {
            // It ends with the runtime.
            drop(tokio::task::spawn_local(never_sleep()));
        }

        let goal = tokio::select! {
            goal = self.goal.wait_for(Option::is_some) => goal.ok().and_then(|goal| goal.clone()),
            error = failed(&thread) => return Err(error),
        };
        if let Some(goal) = goal {
            settle(&thread, &healthy, &goal).await?;
        }
        drop(connections);
        Ok(outcome(&thread, &healthy))
    }
}

/// Gives this thread the lowest priority: on a core that it shares with publishers, theirs are the moments that count.
fn give_way_to_publishers() -> Result<(), Error> {
    let thread = Some(rustix::thread::gettid());
    rustix::process::setpriority_process(thread, 19)
        .map_err(|errno| Error::system("cannot lower the priority of a thread")(errno.into()))
}

/// Keeps the runtime from sleeping: it looks at the sockets again and again.
async fn never_sleep() {
    loop {
        tokio::task::yield_now().await;
    }
}

/// Waits for the first failure of a stream.
async fn failed(thread: &ThreadShared) -> Error {
    loop {
        if let Some(error) = thread.take_failure() {
            return error;
        }
        thread.changed.notified().await;
    }
}

/// Waits until every stream has reached its goal, and verifies that none is beyond it.
async fn settle(
    thread: &ThreadShared,
    streams: &[Rc<Stream>],
    published: &[u64],
) -> Result<(), Error> {
    let mut unsettled = 0;
    for stream in streams {
        if !stream.set_goal(stream.matching(published)) {
            unsettled += 1;
        }
    }
    thread.unsettled.set(unsettled);
    let mut before = u64::MAX;
    while thread.unsettled.get() > 0 {
        tokio::select! {
            () = thread.changed.notified() => {}
            // Not a deadline for the whole: a loaded server may take long, as long as something arrives.
            () = tokio::time::sleep(TIMEOUT) => {
                let now = thread.meter.delivered.load(Relaxed) + thread.meter.missed.load(Relaxed);
                if now == before {
                    break;
                }
                before = now;
            }
        }
        if let Some(error) = thread.take_failure() {
            return Err(error);
        }
    }
    verify(streams, published)
}

fn verify(streams: &[Rc<Stream>], published: &[u64]) -> Result<(), Error> {
    let wrong = |stream: &&Rc<Stream>| stream.settled() != stream.matching(published);
    let wrongs: Vec<_> = streams.iter().filter(wrong).collect();
    let Some(first) = wrongs.first() else {
        return Ok(());
    };
    Err(Error::Lost(format!(
        "{} of {} streams have not settled; stream {} has {} of {} events, {} of them counted as missing",
        wrongs.len(),
        streams.len(),
        first.number(),
        first.settled(),
        first.matching(published),
        first.missed(),
    )))
}

fn outcome(thread: &ThreadShared, streams: &[Rc<Stream>]) -> Outcome {
    let missed = || streams.iter().map(|stream| stream.missed());
    Outcome {
        latencies: thread.latencies.take(),
        most_missed: missed().max().unwrap_or(0),
        streams_with_gaps: missed().filter(|&missed| missed > 0).count(),
    }
}
