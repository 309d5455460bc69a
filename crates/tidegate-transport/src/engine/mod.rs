//! One connection on `tidegate-http2`, in one task with its streams.
//!
//! # A turn
//! It reads, polls the streams that were woken or have room again, and writes what they had in one system call. A few rounds
//! of that, and other connections have theirs.
//!
//! # Pull
//! The body of a response is polled while its stream's window, the connection's window and the output have room, and when it
//! was woken without a window: then it is told that it has room for 0 bytes, and may end. What it returns all the same is
//! held, one frame a stream, and it is not polled before that has gone. So a stream whose peer does not read holds its place,
//! and nothing else if its body asks for its room.
//!
//! # Panics
//! A call that panics is reset. The connection and the other calls go on.

mod call;
mod date;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod tests;
mod turn;
mod wakes;

use std::{
    collections::VecDeque,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tidegate_http2::{Config, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::{coop::has_budget_remaining, yield_now},
    time::{Instant, Sleep, sleep_until},
};

pub(crate) use self::call::{Cut, Incoming};
use self::{call::Call, wakes::Wakes};
use crate::service::{BoxError, Http2Service, Serve};

/// A clone of a service, and the request that it is not ready for.
type Waiting<S> = (S, http::Request<crate::RequestBody>);

/// A call of a service.
type CallOf<S> = Call<
    Waiting<S>,
    <S as tower::Service<http::Request<crate::RequestBody>>>::Future,
    <S as Http2Service>::Body,
>;

/// A connection on `tidegate-http2`.
pub(crate) struct Engine<T, S: Http2Service> {
    // First, because fields are dropped in order: a peer that sees the connection close finds its streams gone.
    http2: Connection<CallOf<S>>,
    transport: T,
    service: S,
    wakes: Arc<Wakes>,
    /// Waker for the transport's input and the timer: that of `wakes`.
    waker: Waker,
    /// Whether the transport may have something to read.
    may_read: bool,
    /// Calls that are to be polled in this round.
    woken: VecDeque<tidegate_http2::StreamId>,
    /// Whether those that have room again are polled before them: the last round did not come to these.
    are_turns_first: bool,
    /// Bytes that were read and are left for another turn.
    unread: Vec<u8>,
    /// Never later than what is due, often earlier.
    timer: Pin<Box<Sleep>>,
    /// Whether the transport may hold bytes that it has taken and not passed on, as TLS does.
    is_unflushed: bool,
    /// When the transport last had no room.
    blocked: Option<Instant>,
    /// Its end, once it is no longer served.
    end: Option<Box<End<S>>>,
}

/// The end of a connection.
struct End<S: Http2Service> {
    /// Calls that are still to be dropped.
    calls: VecDeque<CallOf<S>>,
    /// Why it is no longer served.
    reason: Result<(), BoxError>,
    /// Whether nobody is there to be told anything.
    is_gone: bool,
    /// Whether the peer was told everything, and that nothing follows.
    is_shut: bool,
    /// Bytes that came after it was no longer served.
    thrown_away: usize,
    /// The time that the peer has, once all calls are dropped.
    linger: Option<Linger>,
}

/// The time in which a peer may receive what it was told last.
struct Linger {
    /// How long it may be silent.
    time: Duration,
    /// When it has no more.
    until: Instant,
}

// Nothing of it is pinned in place: calls and bodies are in boxes, and the transport can be moved.
impl<T, S: Http2Service> Unpin for Engine<T, S> {}

impl<T, S> Engine<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Http2Service,
{
    pub(crate) fn new(transport: T, service: S, config: Arc<Config>) -> Self {
        let now = Instant::now();
        let wakes = Arc::<Wakes>::default();
        Self {
            // The first turn sets it.
            timer: Box::pin(sleep_until(now)),
            http2: Connection::new(config, now.into_std()),
            transport,
            service,
            waker: Waker::from(Arc::clone(&wakes)),
            wakes,
            may_read: true,
            woken: VecDeque::new(),
            are_turns_first: false,
            unread: Vec::new(),
            is_unflushed: false,
            blocked: None,
            end: None,
        }
    }
}

impl<S: Http2Service> End<S> {
    /// Drops the calls one by one and in as many turns as it takes: each may have much to leave. Ready when none is left.
    fn poll_drop(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(call) = self.calls.pop_front() {
            drop_call(call);
            if !has_budget_remaining() {
                let _ = pin!(yield_now()).poll(cx);
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}

/// Drops a call, which may panic: the panic hook has reported it.
fn drop_call<W, F, B>(call: Call<W, F, B>) {
    call.shared.cut(tidegate_http2::Code::CANCEL);
    let _ = catch_unwind(AssertUnwindSafe(|| drop(call)));
}

impl<T, S> Serve for Engine<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Http2Service,
{
    fn poll_turn(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.get_mut().poll(cx)
    }

    fn graceful_shutdown(self: Pin<&mut Self>) {
        let this = self.get_mut();
        this.http2.set_now(Instant::now().into_std());
        this.http2.end();
        this.wakes.wake_connection();
    }
}

impl<T, S: Http2Service> Drop for Engine<T, S> {
    /// Drops the calls one by one: one that panics must not keep the others.
    fn drop(&mut self) {
        let ending = self.end.take().map(|end| end.calls).unwrap_or_default();
        for call in ending.into_iter().chain(self.http2.take_streams()) {
            drop_call(call);
        }
        self.wakes.close();
    }
}
