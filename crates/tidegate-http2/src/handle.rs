//! One stream, as whoever serves it may see it and end it.

use std::{fmt, sync::Arc};

/// The questions and wishes of a [`StreamHandle`] to the connection that made it.
pub trait StreamControl: fmt::Debug + Send + Sync {
    /// Number of bytes of the response's body that were put behind what waits for the socket.
    fn taken(&self) -> u64;

    /// Resets the stream, soon and from any thread.
    fn reset(&self);

    /// Number of bytes that the windows of the peer have room for, as of the poll of the body that is under way. `None`, the
    /// default, where that is not known.
    fn room(&self) -> Option<usize> {
        None
    }
}

/// Handle of one stream, in the extensions of its request. Cheap to clone.
///
/// A service that streams to a peer for long finds out with it whether the peer takes anything, and can give up a peer that
/// does not, while its response waits for a window and is not polled.
///
/// ```
/// use tidegate_http2::StreamHandle;
///
/// /// Resets a stream that had something to send and whose peer has taken nothing since it was last looked at. Returns what it
/// /// has taken.
/// fn look_at(stream: &StreamHandle, taken_before: u64, had_something: bool) -> u64 {
///     let taken = stream.taken();
///     if had_something && taken == taken_before {
///         stream.reset();
///     }
///     taken
/// }
///
/// fn handle_of<B>(request: &http::Request<B>) -> Option<&StreamHandle> {
///     request.extensions().get()
/// }
/// ```
#[derive(Debug, Clone)]
pub struct StreamHandle(Arc<dyn StreamControl>);

impl StreamHandle {
    /// Makes one, for the extensions of a request.
    #[must_use]
    pub fn new(control: Arc<dyn StreamControl>) -> Self {
        Self(control)
    }

    /// Number of bytes of the response's body that the peer has taken so far. What waits for a window is not among them. They
    /// are counted when they are put behind what waits for the socket, 64 KiB by default, so a peer that reads nothing may have
    /// taken that much.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.0.taken()
    }

    /// Resets the stream: what serves it is dropped, and what it held is free. It is done with the next turn of the
    /// connection, whatever the peer does. Nothing happens if the stream is over.
    pub fn reset(&self) {
        self.0.reset();
    }

    /// Number of bytes that the body of the response may return in the poll that is under way and that leave at once: of more,
    /// the rest waits for a window, and cannot be taken back. Of 0 a body does best to return no data; it may end, and its
    /// trailers go out at once. `None` where whoever serves the connection does not tell.
    #[must_use]
    pub fn room(&self) -> Option<usize> {
        self.0.room()
    }
}
