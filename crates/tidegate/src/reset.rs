//! Resetting one HTTP/2 stream from outside.
//!
//! hyper does not poll the body of a response while it holds a chunk that the peer's window has no room for. So a
//! stream whose peer does not read cannot be told anything, not even its end. The way out is to drop the future that
//! serves the stream: h2 then resets the stream, and everything it held is free.
//!
//! # How the handle travels
//! The transport runs the future of each stream as [`resettable`], which puts the handle into a task-local. A
//! subscription that begins in that future takes the handle from there, [`current`], and leaves it with the hub, whose
//! [`sweep`](crate::Hub::sweep) wakes it. The handle is a [`Waker`] because the core knows no other way to signal.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;

tokio::task_local! {
    static CURRENT: Arc<Reset>;
}

/// Request to reset one stream. Waking it makes the request.
#[derive(Debug, Default)]
struct Reset {
    is_requested: AtomicBool,
    /// The task that runs the stream, to be woken for the request.
    task: AtomicWaker,
}

impl Wake for Reset {
    fn wake(self: Arc<Self>) {
        self.is_requested.store(true, Ordering::Release);
        self.task.wake();
    }
}

pin_project! {
    /// A stream's future, ready when the stream is done or when it is to be reset.
    struct UntilReset<F> {
        reset: Arc<Reset>,
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
        this.reset.task.register(cx.waker());
        if this.reset.is_requested.load(Ordering::Acquire) {
            tracing::debug!("stream reset: its peer did not read its status");
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
    let reset = Arc::new(Reset::default());
    CURRENT.scope(Arc::clone(&reset), UntilReset { reset, stream })
}

/// Returns the handle that resets the stream whose future is being polled, if it runs as [`resettable`].
pub(crate) fn current() -> Option<Waker> {
    CURRENT
        .try_with(|reset| Waker::from(Arc::clone(reset)))
        .ok()
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
}
