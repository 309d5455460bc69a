//! Resetting one HTTP/2 stream from outside.
//!
//! hyper does not poll the body of a response while it holds a chunk that the peer's window has no room
//! for, so a stream whose peer does not read cannot be told anything, its end included. What can be done
//! is to drop the future that serves the stream; h2 then resets it, and everything it held is free.
//!
//! The server polls the future of each stream as [`resettable`]; [`EventService`](crate::EventService) finds the
//! handle to it there and leaves it with the hub, for [`Hub::sweep`](crate::Hub::sweep) to use.

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

/// Whether one stream is to be reset, and who has to know.
#[derive(Debug, Default)]
struct Reset {
    is_requested: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Reset {
    fn wake(self: Arc<Self>) {
        self.is_requested.store(true, Ordering::Release);
        self.task.wake();
    }
}

pin_project! {
    /// A stream's future, done when the stream is or when it is reset.
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
        // Registered first: a reset that comes now is seen by the look that follows or by the wake.
        this.reset.task.register(cx.waker());
        if this.reset.is_requested.load(Ordering::Acquire) {
            tracing::debug!("stream reset: its peer did not take notice of its end");
            return Poll::Ready(());
        }
        this.stream.poll(cx).map(|_| ())
    }
}

/// Serves one HTTP/2 stream, until it is done or is reset. Spawn the futures that hyper gives to its
/// executor through this.
// Not an `async fn`, which would hold the stream's future three times over, in every idle stream.
pub fn resettable<F: Future>(stream: F) -> impl Future<Output = ()> {
    let reset = Arc::new(Reset::default());
    CURRENT.scope(Arc::clone(&reset), UntilReset { reset, stream })
}

/// The handle that resets the stream which is being served here, if it was spawned as [`resettable`].
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
