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
//! But the HTTP/2 layer advances a chunk as it writes it. So the transport wraps its bodies as [`Observed`], whose
//! chunks note every byte that leaves.
//!
//! # How the handle travels
//! The transport runs the future of each stream as [`resettable`], which puts the handle into a task-local. A
//! subscription that begins in that future takes the handle from there, [`current`], and leaves it with the hub, whose
//! [`sweep`](crate::Hub::sweep) uses it. The body of the response takes it from there, too.

use std::{
    future::Future,
    io::IoSlice,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
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

pin_project! {
    /// Body of a response whose bytes are noted as they leave for the peer, so that
    /// [`Hub::sweep`](crate::Hub::sweep) can tell a slow peer from a stalled one. It changes nothing else.
    ///
    /// Wrap the bodies of all responses in it, within a future that runs as [`resettable`], as
    /// `tidegate-transport` does. Without it, a peer counts as moving only when it has taken a chunk as a whole.
    #[derive(Debug)]
    pub struct Observed<B> {
        #[pin]
        body: B,
        // `None` outside of a stream that runs as `resettable`.
        stream: Option<Arc<StreamHandle>>,
    }
}

/// Chunk of an [`Observed`] body.
#[derive(Debug)]
pub struct ObservedChunk<D> {
    chunk: D,
    stream: Option<Arc<StreamHandle>>,
}

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

// ===== impl Observed =====

impl<B> Observed<B> {
    /// Wraps the body of a response. Call it while the future of its stream is polled.
    pub fn new(body: B) -> Self {
        let stream = CURRENT.try_with(Arc::clone).ok();
        Self { body, stream }
    }
}

impl<B: Body> Body for Observed<B> {
    type Data = ObservedChunk<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        let this = self.project();
        let observed = |chunk| ObservedChunk {
            chunk,
            stream: this.stream.clone(),
        };
        this.body
            .poll_frame(cx)
            .map_ok(|frame| frame.map_data(observed))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<D: Buf> Buf for ObservedChunk<D> {
    fn remaining(&self) -> usize {
        self.chunk.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.chunk.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.chunk.chunks_vectored(slices)
    }

    fn advance(&mut self, len: usize) {
        self.chunk.advance(len);
        if let Some(stream) = &self.stream {
            stream.taken.fetch_add(len as u64, Ordering::Relaxed);
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        let bytes = self.chunk.copy_to_bytes(len);
        if let Some(stream) = &self.stream {
            stream.taken.fetch_add(len as u64, Ordering::Relaxed);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use http_body_util::{BodyExt as _, Full};

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
    async fn observed_body_notes_bytes_as_they_leave() {
        resettable(async {
            let handle = current().unwrap();
            let mut body = Observed::new(Full::new(Bytes::from_static(b"0123456789")));
            let mut chunk = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(handle.taken(), 0, "handed over is not taken");
            chunk.advance(3);
            assert_eq!((chunk.chunk(), handle.taken()), (&b"3456789"[..], 3));
            assert_eq!(chunk.copy_to_bytes(7), "3456789");
            assert_eq!(handle.taken(), 10);
        })
        .await;
    }
}
