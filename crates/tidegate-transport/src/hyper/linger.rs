//! Bodies of requests that nobody reads any more.
//!
//! A service may answer before it has read a request to its end: a call that is refused, one that was too slow, a
//! stream whose last message was invalid. The rest of the body is under way then. If it were dropped, h2 would reset the
//! stream, and keep a note of it for a second or not even that; to frames that come later it answers one by
//! one, and it charges the connection for those that it ignores. So the rest is read and thrown away, until it ends:
//!
//! * up to [`BYTES`] of it, and for [`PATIENCE`];
//! * of half of the streams of a connection at once. The others are dropped, since a stream counts as open as long as it
//!   is read.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::driver::StreamExecutor;

/// Number of bytes of a body that are thrown away. More than a stream's window: what was under way when the response
/// went out fits, and an upload that goes on is told to stop.
const BYTES: usize = 1 << 20;

/// Time for which a body may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// The bodies of one connection that nobody reads any more. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lingering {
    streams: StreamExecutor,
    count: Arc<AtomicUsize>,
    max: usize,
}

/// Counts one lingering body until it is dropped.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

// ===== impl Lingering =====

impl Lingering {
    /// Of a connection with at most `max_streams` streams, whose futures go to `streams`.
    pub(crate) fn new(streams: StreamExecutor, max_streams: u32) -> Self {
        Self {
            streams,
            count: Arc::default(),
            max: (max_streams / 2) as usize,
        }
    }

    /// Wraps the body of a request.
    pub(crate) fn body(&self, incoming: Incoming) -> LingeringBody {
        LingeringBody {
            incoming: Some(incoming),
            lingering: self.clone(),
        }
    }

    /// Reads the rest of a body in the task of the connection.
    fn read_rest(&self, incoming: Incoming) {
        // Nobody else adds one meanwhile: services drop the bodies of a connection in its task, mostly. If one does not, the
        // count is a little above the maximum.
        if self.count.load(Relaxed) >= self.max {
            return;
        }
        self.count.fetch_add(1, Relaxed);
        let counted = Counted(Arc::clone(&self.count));
        // It must not hold the executor, which holds it.
        self.streams.execute_aside(async move {
            let _counted = counted;
            let _ = timeout(PATIENCE, throw_away(incoming)).await;
        });
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Reads a body to its end, or up to [`BYTES`].
async fn throw_away(mut incoming: Incoming) {
    let mut left = BYTES;
    while let Some(Ok(frame)) = incoming.frame().await {
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else {
            return;
        };
        left = rest;
    }
}

/// Body of a request on hyper. If it is dropped before its end, the rest is read and thrown away, within bounds.
#[derive(Debug)]
pub(crate) struct LingeringBody {
    /// Empty once it has failed, and in the drop.
    incoming: Option<Incoming>,
    lingering: Lingering,
}

impl Drop for LingeringBody {
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take()
            && !incoming.is_end_stream()
        {
            self.lingering.read_rest(incoming);
        }
    }
}

impl Body for LingeringBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(incoming).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.incoming = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let incoming = self.incoming.as_ref();
        incoming.map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
