//! One call: what is polled for it, its waker, and its request's body.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tidegate_http2::{Code, StreamControl, StreamId, StreamState};

use super::wakes::{Wakes, Woken};

/// A call, as its connection keeps it.
pub(super) struct Call<W, F, B> {
    pub(super) phase: Phase<W, F, B>,
    pub(super) shared: Arc<Shared>,
    /// Whether more of the request may come, or was not read yet.
    pub(super) has_inbox: bool,
}

/// The part of a call that is polled. In boxes of their own: the future of a response is large, and gone when the response
/// begins.
pub(super) enum Phase<W, F, B> {
    /// The service is not ready for it yet.
    Waiting(Box<W>),
    Called(Pin<Box<F>>),
    Body(Pin<Box<B>>),
    /// It is being polled, or there is nothing left to poll.
    Empty,
}

/// State that a call shares with its waker, its request's body and its handle.
#[derive(Debug)]
pub(super) struct Shared {
    stream: StreamId,
    wakes: Arc<Wakes>,
    woken: Woken,
    is_reset: AtomicBool,
    taken: AtomicU64,
    /// Bytes that the windows have room for, in the poll that is under way.
    room: AtomicUsize,
    inbox: Mutex<Inbox>,
}

/// The part of a request's body that nobody has read yet.
#[derive(Debug, Default)]
struct Inbox {
    data: Vec<u8>,
    /// In a box, because few requests have some.
    trailers: Option<Box<HeaderMap>>,
    end: Option<End>,
    reader: Option<Waker>,
    /// Number of bytes that were read since the connection last asked.
    read: usize,
    /// Number of bytes that nobody is going to read, since then.
    discarded: usize,
    /// Whether its call is being polled: then the connection asks right after.
    is_polled: bool,
    /// Whether nobody reads it any more.
    is_dropped: bool,
}

/// How a body ended.
#[derive(Debug, Clone, Copy)]
enum End {
    Complete,
    Reset(Code),
}

/// The body of a request.
#[derive(Debug)]
pub(crate) struct Incoming(Arc<Shared>);

/// The end of a request's body before it was complete.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut(Code);

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the stream ended before its request was complete: {}",
            self.0
        )
    }
}

impl std::error::Error for Cut {}

impl Shared {
    pub(super) fn new(stream: StreamId, wakes: Arc<Wakes>) -> Self {
        Self {
            stream,
            wakes,
            // It is polled at once.
            woken: Woken::listed(),
            is_reset: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            room: AtomicUsize::new(0),
            inbox: Mutex::default(),
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn schedule(&self) {
        self.woken.wake(self.stream, &self.wakes);
    }

    /// Begins a poll of the call: whatever wakes it from here on has it polled again. If it was taken from the list of those
    /// that were woken, it may have been polled since then: returns whether it is to be polled.
    pub(super) fn begin_poll(&self, is_from_list: bool) -> bool {
        if is_from_list {
            return self.woken.take();
        }
        self.woken.begin_poll();
        true
    }

    /// Whether its handle asked to reset it.
    pub(super) fn is_reset(&self) -> bool {
        self.is_reset.load(Acquire)
    }

    /// Sets the room for a poll of its body.
    pub(super) fn set_room(&self, room: usize) {
        // Only its own polls look at it, which come after this.
        self.room.store(room, Relaxed);
    }

    /// Has the connection ask for what was read after the poll, without being woken for it.
    pub(super) fn begin_reading(&self) {
        self.inbox().is_polled = true;
    }

    /// Returns how many bytes were read, and how many are never going to be, since the last time. And whether nothing is left:
    /// the body is complete, and was read or is read by nobody.
    pub(super) fn end_reading(&self) -> (usize, usize, bool) {
        let mut inbox = self.inbox();
        inbox.is_polled = false;
        let is_read = inbox.end.is_some()
            && (inbox.is_dropped || (inbox.data.is_empty() && inbox.trailers.is_none()));
        let read = std::mem::take(&mut inbox.read);
        (read, std::mem::take(&mut inbox.discarded), is_read)
    }

    /// Adds a piece of the body. Returns whether somebody is going to read it.
    pub(super) fn push(&self, data: &[u8], ends: bool) -> bool {
        let mut inbox = self.inbox();
        if !inbox.is_dropped {
            append(&mut inbox.data, data);
        }
        if ends {
            inbox.end = Some(End::Complete);
        }
        let is_read = !inbox.is_dropped;
        wake(inbox);
        is_read
    }

    pub(super) fn push_trailers(&self, trailers: HeaderMap) {
        let mut inbox = self.inbox();
        inbox.trailers = Some(Box::new(trailers));
        inbox.end = Some(End::Complete);
        wake(inbox);
    }

    /// Ends a body that is not complete.
    pub(super) fn cut(&self, code: Code) {
        let mut inbox = self.inbox();
        if inbox.end.is_none() {
            inbox.end = Some(End::Reset(code));
        }
        wake(inbox);
    }
}

/// Appends to what waits to be read, whose room grows by a quarter: a vector would double it, for as long as a service takes to
/// read.
fn append(waiting: &mut Vec<u8>, data: &[u8]) {
    if waiting.capacity() - waiting.len() < data.len() {
        waiting.reserve_exact(data.len().max(waiting.len() / 4));
    }
    waiting.extend_from_slice(data);
}

/// Wakes the reader of a body, with the lock given back.
fn wake(mut inbox: MutexGuard<'_, Inbox>) {
    let reader = inbox.reader.take();
    drop(inbox);
    if let Some(reader) = reader {
        reader.wake();
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.schedule();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.schedule();
    }
}

impl StreamControl for Shared {
    fn taken(&self) -> u64 {
        // It orders nothing: whoever reads it only compares it with what it was.
        self.taken.load(Relaxed)
    }

    fn reset(&self) {
        self.is_reset.store(true, Release);
        self.schedule();
    }

    fn room(&self) -> Option<usize> {
        Some(self.room.load(Relaxed))
    }
}

impl<W, F, B> StreamState for Call<W, F, B> {
    fn sent(&mut self, bytes: usize) {
        self.shared.taken.fetch_add(bytes as u64, Relaxed);
    }
}

impl<W, F, B> Drop for Call<W, F, B> {
    /// Ends the body of the request: whoever reads it elsewhere would wait for more of it forever.
    fn drop(&mut self) {
        self.shared.cut(Code::NO_ERROR);
    }
}

// ===== impl Incoming =====

impl Incoming {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut inbox = self.0.inbox();
        if !inbox.data.is_empty() {
            let data = Bytes::from(std::mem::take(&mut inbox.data));
            inbox.read += data.len();
            let is_polled = inbox.is_polled;
            drop(inbox);
            if !is_polled {
                self.0.schedule();
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(trailers) = inbox.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(*trailers))));
        }
        match inbox.end {
            Some(End::Complete) => Poll::Ready(None),
            Some(End::Reset(code)) => Poll::Ready(Some(Err(Cut(code)))),
            None => {
                inbox.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let inbox = self.0.inbox();
        matches!(inbox.end, Some(End::Complete))
            && inbox.data.is_empty()
            && inbox.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let inbox = self.0.inbox();
        let mut hint = SizeHint::new();
        hint.set_lower(inbox.data.len() as u64);
        if inbox.end.is_some() {
            hint.set_upper(inbox.data.len() as u64);
        }
        hint
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let mut inbox = self.0.inbox();
        inbox.is_dropped = true;
        let data = std::mem::take(&mut inbox.data);
        inbox.trailers = None;
        inbox.reader = None;
        inbox.discarded += data.len();
        let is_due = !data.is_empty() && !inbox.is_polled;
        drop(inbox);
        if is_due {
            self.0.schedule();
        }
    }
}
