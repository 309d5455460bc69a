//! A thread that holds connections.

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

/// Connections that are being opened at once, by one thread.
pub(crate) const OPENING: usize = 32;

/// What one connection has to open.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionPlan {
    pub(crate) streams: Vec<StreamPlan>,
    pub(crate) stalled: bool,
}

/// What a thread tells.
#[derive(Debug)]
pub(crate) enum Message {
    /// All its connections are open and subscribed.
    Ready,
    /// It has ended; nothing else comes.
    Ended(Result<Outcome, Error>),
}

/// What a thread has counted.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) latencies: Latencies,
    /// Events missed by the stream that missed most.
    pub(crate) most_missed: u64,
    /// Streams that missed any.
    pub(crate) streams_with_gaps: usize,
}

/// How many events each publisher has sent, once all have ended.
pub(crate) type Goal = Option<Arc<[u64]>>;

/// What a thread is given.
#[derive(Debug)]
pub(crate) struct Assignment<T> {
    pub(crate) target: T,
    pub(crate) connections: Vec<ConnectionPlan>,
    pub(crate) shared: Arc<RunShared>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) goal: watch::Receiver<Goal>,
    pub(crate) messages: mpsc::Sender<Message>,
}

// ===== impl Assignment =====

impl<T: Target> Assignment<T> {
    /// Starts the thread.
    pub(crate) fn start(self) -> Result<(), Error> {
        spawn("subscribers", move || {
            let messages = self.messages.clone();
            let outcome = run_local(self.run());
            // Nobody listens when the run has failed already.
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

/// Waits for the first failure.
async fn failed(thread: &ThreadShared) -> Error {
    loop {
        if let Some(error) = thread.take_failure() {
            return error;
        }
        thread.changed.notified().await;
    }
}

/// Waits until every stream has settled where it must.
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
        "{} of {} streams are not settled; stream {} has {} of {} events, of which {} were counted as missing",
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
