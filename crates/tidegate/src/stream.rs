//! The stream of a call, seen and ended from outside.
//!
//! # Why
//! A transport does not poll the body of a response while the peer's window has no room for what it has. So from the body,
//! slow and stalled are the same, and a stream whose peer does not read cannot be told anything. The way out is a
//! [`StreamHandle`]: it knows what left for the peer, and resets the stream, whereupon everything it held is free.
//!
//! # How the handle travels
//! The server of the connection leaves it in the extensions of the request, as `tidegate-transport` does. A service takes it
//! from there and leaves it with the hub, whose [`sweep`](crate::Hub::sweep) uses it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_core::Transport;
use tidegate_http2::StreamHandle;

use crate::framing::CHUNK_BYTES;

/// A stream, as a hub knows it.
#[derive(Debug)]
struct Stream(StreamHandle);

/// The stream of a subscription that may get one later.
#[derive(Debug, Default)]
pub(crate) struct LateStream(Mutex<Late>);

#[derive(Debug, Default)]
struct Late {
    handle: Option<StreamHandle>,
    is_reset: bool,
}

/// Returns the stream with this handle, for a hub.
pub(crate) fn transport(handle: StreamHandle) -> Arc<dyn Transport> {
    Arc::new(Stream(handle))
}

/// Returns how much the chunk of a stream may have: what its peer's windows admit, and [`CHUNK_BYTES`] where the transport
/// does not tell.
pub(crate) fn room(stream: Option<&StreamHandle>) -> usize {
    let room = stream.and_then(StreamHandle::room);
    room.map_or(CHUNK_BYTES, |room| room.min(CHUNK_BYTES))
}

impl Transport for Stream {
    fn taken(&self) -> u64 {
        self.0.taken()
    }

    fn reset(&self) {
        self.0.reset();
    }
}

impl LateStream {
    fn lock(&self) -> MutexGuard<'_, Late> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it the stream with this handle, in place of an earlier one.
    pub(crate) fn attach(&self, handle: &StreamHandle) {
        let mut late = self.lock();
        let is_reset = late.is_reset;
        late.handle = Some(StreamHandle::clone(handle));
        // The handle is code of others.
        drop(late);
        // The hub asks for it once, and may have done so before.
        if is_reset {
            handle.reset();
        }
    }
}

impl Transport for LateStream {
    fn taken(&self) -> u64 {
        let handle = self.lock().handle.clone();
        handle.map_or(0, |handle| handle.taken())
    }

    fn reset(&self) {
        let mut late = self.lock();
        late.is_reset = true;
        let handle = late.handle.clone();
        drop(late);
        if let Some(handle) = handle {
            handle.reset();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

    use tidegate_http2::StreamControl;

    use super::*;

    /// A stream that is nowhere sent.
    #[derive(Debug, Default)]
    pub(crate) struct Recorded {
        pub(crate) taken: AtomicU64,
        pub(crate) resets: AtomicUsize,
    }

    impl Recorded {
        pub(crate) fn new() -> (Arc<Self>, StreamHandle) {
            let recorded = Arc::new(Self::default());
            (Arc::clone(&recorded), StreamHandle::new(recorded))
        }
    }

    impl StreamControl for Recorded {
        fn taken(&self) -> u64 {
            self.taken.load(Relaxed)
        }

        fn reset(&self) {
            self.resets.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn stream_that_comes_late_is_reset_if_it_was_to_be() {
        let late = LateStream::default();
        assert_eq!(late.taken(), 0);
        late.reset();
        let (recorded, handle) = Recorded::new();
        late.attach(&handle);
        assert_eq!(recorded.resets.load(Relaxed), 1);
        recorded.taken.store(7, Relaxed);
        assert_eq!(late.taken(), 7);
    }

    #[test]
    fn hub_sees_and_resets_the_stream_of_a_handle() {
        let (recorded, handle) = Recorded::new();
        let transport = transport(handle);
        recorded.taken.store(7, Relaxed);
        assert_eq!(transport.taken(), 7);
        transport.reset();
        assert_eq!(recorded.resets.load(Relaxed), 1);
    }
}
