//! One HTTP/2 stream, seen and ended from outside.
//!
//! # Resetting
//! hyper does not poll the body of a response while it holds a chunk that the peer's window has no room for. So a
//! stream whose peer does not read cannot be told anything, not even its end. The way out is to drop the future that
//! serves the stream: h2 then resets the stream, and everything it held is free.
//!
//! # Noting what is taken
//! hyper polls the body of a response when the chunk before has found window to begin with, so on a link of 2 kB/s a
//! chunk of 16 KiB is followed by eight seconds without a poll: seen from the body, slow and stalled are the same.
//! But the HTTP/2 layer advances a chunk as it writes it. So the transport wraps its chunks, which note every
//! byte that leaves as the [`Progress`] of their stream.
//!
//! # How the handle travels
//! The transport runs the future of each stream as [`resettable`], which puts the handle into a task-local. A
//! subscription that begins in that future takes the handle from there, [`current`], and leaves it with the hub, whose
//! [`sweep`](crate::Hub::sweep) uses it. The body of the response takes it from there, too.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;
use tidegate_core::Transport;

tokio::task_local! {
    static CURRENT: Arc<StreamHandle>;
}

/// Handle of one stream.
#[derive(Debug, Default)]
struct StreamHandle {
    /// Whether it is to be reset.
    is_requested: AtomicBool,
    /// The task that runs the stream, to be woken for the request.
    task: AtomicWaker,
    /// Bytes that left for the peer.
    taken: AtomicU64,
}

impl Transport for StreamHandle {
    fn taken(&self) -> u64 {
        // It orders nothing: whoever reads it only compares it with what it was.
        self.taken.load(Ordering::Relaxed)
    }

    fn reset(&self) {
        self.is_requested.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// Progress of one stream: the bytes that have left for its peer. Cheap to clone.
///
/// [`Hub::sweep`](crate::Hub::sweep) tells a slow peer from a stalled one by it. So note what leaves, as
/// `tidegate-transport` does, for the responses of all streams that run as [`resettable`]. Without it, a peer counts as
/// moving only when it has taken a chunk as a whole.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// tidegate::resettable(async {
///     let progress = tidegate::Progress::current();
///     // For each write to the peer:
///     progress.note(1_024);
/// })
/// .await;
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Progress(Option<Arc<StreamHandle>>);

pin_project! {
    /// A stream's future, ready when the stream is done or when it is to be reset.
    struct UntilReset<F> {
        handle: Arc<StreamHandle>,
        #[pin]
        stream: F,
    }
}

impl<F: Future> Future for UntilReset<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        // Registered before the look: a request that comes in between wakes the task, and one that came earlier is
        // seen. The other way round, one in between would find no task to wake.
        this.handle.task.register(cx.waker());
        if this.handle.is_requested.load(Ordering::Acquire) {
            tracing::debug!("stream reset: its peer does not read");
            return Poll::Ready(());
        }
        this.stream.poll(cx).map(|_| ())
    }
}

/// Runs the future of one HTTP/2 stream until it is done, or until a subscription in it is to be reset.
///
/// Wrap every future that hyper hands to its executor in it, as `tidegate-transport` does. Without it,
/// [`Hub::sweep`](crate::Hub::sweep) ends a stalled subscription, and its stream stays for as long as the connection.
///
/// ```
/// # async fn serve_stream() {}
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let task = tokio::spawn(tidegate::resettable(serve_stream()));
/// # task.await.unwrap();
/// # }
/// ```
// Not an `async fn`, which would hold the stream's future three times over, in every idle stream.
pub fn resettable<F: Future>(stream: F) -> impl Future<Output = ()> {
    let handle = Arc::new(StreamHandle::default());
    CURRENT.scope(Arc::clone(&handle), UntilReset { handle, stream })
}

/// Returns the handle of the stream whose future is being polled, if it runs as [`resettable`].
pub(crate) fn current() -> Option<Arc<dyn Transport>> {
    CURRENT.try_with(|handle| Arc::clone(handle) as _).ok()
}

// ===== impl Progress =====

impl Progress {
    /// Returns that of the stream whose future is being polled. Outside of a stream that runs as [`resettable`] it is of
    /// none, and notes nothing.
    #[must_use]
    pub fn current() -> Self {
        Self(CURRENT.try_with(Arc::clone).ok())
    }

    /// Notes that this many bytes have left.
    pub fn note(&self, bytes: usize) {
        if let Some(handle) = &self.0 {
            handle.taken.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[test]
    fn resettable_holds_the_stream_once() {
        let stream = async {
            let held = [0_u8; 1_000];
            pending::<()>().await;
            held
        };
        let alone = size_of_val(&stream);
        assert!(alone >= 1_000);
        assert!(size_of_val(&resettable(stream)) < alone + 100);
    }

    #[tokio::test]
    async fn resettable_ends_with_the_stream() {
        resettable(ready(7)).await;
    }

    #[tokio::test]
    async fn progress_of_a_stream_reaches_its_handle() {
        Progress::current().note(1);
        resettable(async {
            let handle = current().unwrap();
            Progress::current().note(7);
            assert_eq!(handle.taken(), 7);
        })
        .await;
    }
}
