//! The handle of one stream on hyper.
//!
//! hyper calls a service first, and only then gives the future of the stream to the executor, in the same poll. So the call
//! leaves its handle with the driver, and the next future is that of its stream.

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
use tidegate_http2::StreamControl;

/// State that a stream shares with its handle.
#[derive(Debug, Default)]
pub(crate) struct HyperStream {
    /// Whether it is to be reset.
    is_requested: AtomicBool,
    /// The task that runs the stream, to be woken for the request.
    task: AtomicWaker,
    /// Bytes that left for the peer.
    taken: AtomicU64,
}

impl HyperStream {
    /// Notes that this many bytes have left.
    pub(crate) fn note(&self, bytes: usize) {
        // It orders nothing: whoever reads it only compares it with what it was.
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl StreamControl for HyperStream {
    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn reset(&self) {
        self.is_requested.store(true, Ordering::Release);
        self.task.wake();
    }
}

pin_project! {
    /// A stream's future, ready when the stream is done or when it is to be reset: h2 resets a stream whose future is
    /// dropped.
    pub(crate) struct UntilReset<F> {
        handle: Arc<HyperStream>,
        #[pin]
        stream: F,
    }
}

impl<F: Future> UntilReset<F> {
    pub(crate) fn new(handle: Arc<HyperStream>, stream: F) -> Self {
        Self { handle, stream }
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

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn stream_ends_by_itself_or_by_its_handle() {
        let handle = Arc::<HyperStream>::default();
        UntilReset::new(Arc::clone(&handle), ready(7)).await;
        handle.note(7);
        assert_eq!(handle.taken(), 7);
        let stream = tokio::spawn(UntilReset::new(Arc::clone(&handle), pending::<()>()));
        handle.reset();
        stream.await.unwrap();
    }
}
