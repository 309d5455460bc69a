//! Resetting one HTTP/2 stream from outside.
//!
//! hyper does not poll the body of a response while it holds a chunk that the peer's window has no room
//! for, so a stream whose peer does not read cannot be told anything, its end included. What can be done
//! is to drop the task that serves the stream; h2 then resets it, and everything it held is free.
//!
//! The server spawns the future of each stream as [`resettable`]; [`EventService`](crate::EventService) finds the
//! handle to it there and leaves it with the hub, for [`Hub::sweep`](crate::Hub::sweep) to use.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

tokio::task_local! {
    static CURRENT: Arc<Reset>;
}

/// Whether one stream is to be reset, and who has to know.
#[derive(Debug, Default)]
struct Reset {
    is_asked: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Reset {
    fn wake(self: Arc<Self>) {
        self.is_asked.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// Serves one HTTP/2 stream, until it is done or is reset. Spawn the futures that hyper gives to its
/// executor through this.
pub async fn resettable<F: Future>(stream: F) {
    let reset = Arc::new(Reset::default());
    let until_reset = async {
        let mut stream = pin!(stream);
        poll_fn(|cx| {
            // Registered first: a reset that comes now is seen by the look that follows or by the wake.
            reset.task.register(cx.waker());
            if reset.is_asked.load(Ordering::Acquire) {
                tracing::debug!("stream reset: its peer did not take notice of its end");
                return Poll::Ready(());
            }
            stream.as_mut().poll(cx).map(|_| ())
        })
        .await;
    };
    CURRENT.scope(Arc::clone(&reset), until_reset).await;
}

/// The handle that resets the stream which is being served here, if it was spawned as [`resettable`].
pub(crate) fn current() -> Option<Waker> {
    CURRENT
        .try_with(|reset| Waker::from(Arc::clone(reset)))
        .ok()
}
