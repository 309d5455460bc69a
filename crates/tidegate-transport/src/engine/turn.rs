//! A turn of a connection.

use std::{
    cell::Cell,
    future::Future,
    io::{self, IoSlice},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Buf as _;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use tidegate_http2::{Code, Event, Room, StreamHandle, StreamId};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::{
        coop::{has_budget_remaining, unconstrained},
        yield_now,
    },
    time::Instant,
};

use super::{
    End, Engine, Linger, Waiting,
    call::{Call, Incoming, Phase, Shared},
    date, drop_call,
};
use crate::{
    RequestBody,
    service::{BoxError, Http2Service},
};

/// Bytes that a connection reads at once.
const READ_BYTES: usize = 64 << 10;

/// Slices of one system call: as many as 64 KiB of chunks take, with the heads between them.
const SLICES: usize = 64;

/// Rounds of one turn, after which other connections have theirs. Four made the kept chunks of the server useless: 27 % more
/// processor time for each delivery.
const ROUNDS: usize = 2;

/// Calls that may begin in a round: each may take as long as a service takes to answer it.
const CALLS: usize = 64;

/// Time in which a peer may receive what it was told last and close its end. One whose connection ended in good order has it
/// again whenever something of it comes: it opens windows as it receives.
const LINGER: Duration = Duration::from_secs(1);

/// Time after which such a peer has no more. It may be silent for all of it if the transport had no room as shortly before the
/// end: a slow peer opens its windows seldom, and the kernel still has much for it.
const LONGEST_LINGER: Duration = Duration::from_secs(20);

/// Number of bytes of a peer that are thrown away in that time: what was under way when it was told.
const LINGER_BYTES: usize = 1 << 20;

thread_local! {
    /// Buffer that the connections of this thread read into.
    static READ: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl<T, S> Engine<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Http2Service,
{
    /// Runs one turn. Ready when the connection has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.may_read |= self.wakes.begin_turn(cx.waker());
        let now = Instant::now();
        self.http2.set_now(now.into_std());
        let mut end = match self.end.take() {
            Some(end) => end,
            None => {
                let (is_gone, reason) = ready!(self.poll_rounds(now, cx));
                Box::new(End {
                    calls: self.http2.take_streams().collect(),
                    reason,
                    is_gone,
                    is_shut: false,
                    thrown_away: 0,
                    linger: None,
                })
            }
        };
        let polled = self.poll_end(&mut end, cx);
        self.end = Some(end);
        polled
    }

    /// Runs the rounds of a turn. Ready when the connection is no longer served, with whether nobody is there to be told
    /// anything, and why it ended.
    fn poll_rounds(
        &mut self,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<(bool, Result<(), BoxError>)> {
        let mut has_more = false;
        for round in 0..ROUNDS {
            let wanted_input = self.http2.wants_input();
            let read = self.poll_read();
            // Behind a look at what has come: the process may have stood still, and not the peer.
            if round == 0
                && !matches!(read, Poll::Ready(Err(_) | Ok(false)))
                && let Err(error) = self.check_timer(now)
            {
                return Poll::Ready((true, Err(error)));
            }
            let has_read = matches!(read, Poll::Ready(Ok(true)));
            let is_left = self.poll_calls();
            let written = self.poll_write(cx);
            match (read, written) {
                (Poll::Ready(Err(error)), _) => return Poll::Ready((false, Err(error))),
                (_, Poll::Ready(Err(error))) => return Poll::Ready((true, Err(error))),
                (Poll::Ready(Ok(false)), _) => return Poll::Ready((true, Ok(()))),
                // What waits for a slow peer has as long as it has otherwise.
                (_, Poll::Ready(Ok(()))) if self.http2.is_over() => {
                    return Poll::Ready((false, Ok(())));
                }
                _ => {}
            }
            // What was written made room, of which its streams learn only here. So does the look at what has come: without
            // it nobody would be woken for that.
            let reads_again = !wanted_input && self.http2.wants_input();
            has_more = has_read || reads_again || is_left || self.http2.has_turns();
            if !has_more {
                break;
            }
        }
        if self.wakes.end_turn(has_more) {
            let is_long = !has_budget_remaining() || !self.unread.is_empty();
            if is_long {
                // Behind the other tasks, and behind a look at the sockets: the runtime looks at them only every 61 turns as
                // long as some task wakes itself at once. A flood of calls would take all of them.
                let _ = pin!(yield_now()).poll(cx);
            } else {
                cx.waker().wake_by_ref();
            }
        }
        let due = self.http2.timeout().into();
        if due < self.timer.deadline() {
            self.set_timer(due);
        }
        Poll::Pending
    }

    fn set_timer(&mut self, due: Instant) {
        self.timer.as_mut().reset(due);
        // It is asked here alone, so it has to be whatever is left of the task's budget.
        let timer = pin!(unconstrained(self.timer.as_mut()));
        if timer.poll(&mut Context::from_waker(&self.waker)).is_ready() {
            // Due by a later time than that of this turn.
            self.waker.wake_by_ref();
        }
    }

    /// Does what is due. The timer itself is not asked: its time has come, or it is still to wake the connection.
    fn check_timer(&mut self, now: Instant) -> Result<(), BoxError> {
        if now >= self.timer.deadline() {
            self.http2.on_timeout()?;
            self.set_timer(self.http2.timeout().into());
        }
        Ok(())
    }

    /// Reads what is there, and takes the calls and bodies in it. Ready with whether the peer may send more.
    fn poll_read(&mut self) -> Poll<Result<bool, BoxError>> {
        if !self.http2.wants_input() {
            return Poll::Pending;
        }
        if !self.unread.is_empty() {
            if !has_budget_remaining() {
                // The next turn takes it.
                return Poll::Ready(Ok(true));
            }
            let bytes = mem::take(&mut self.unread);
            self.receive(&bytes)?;
            return Poll::Ready(Ok(true));
        }
        if !self.may_read {
            return Poll::Pending;
        }
        let mut cx = Context::from_waker(&self.waker);
        let (buffer, read) = poll_read(&mut self.transport, &mut cx);
        self.may_read = read.is_ready();
        let received = read.map(|read| {
            let length = read?;
            self.receive(&buffer[..length])?;
            Ok(length > 0)
        });
        READ.set(buffer);
        received
    }

    /// Takes bytes of the peer. If many calls begin in them, or some that end leave much, what follows is left for another
    /// turn.
    fn receive(&mut self, bytes: &[u8]) -> Result<(), BoxError> {
        let mut input = bytes;
        let mut calls = 0;
        while let Some(event) = self.http2.receive(&mut input)? {
            match event {
                Event::Request {
                    stream,
                    request,
                    ends,
                    is_truncated,
                } => {
                    if is_truncated {
                        self.refuse_large_head(stream, &request);
                    } else if request.method() == Method::CONNECT {
                        // A service that knows nothing of tunnels might say that it has made one (RFC 9110, section 9.3.6).
                        let headers = HeaderMap::new();
                        self.http2
                            .respond(stream, StatusCode::NOT_IMPLEMENTED, &headers, true);
                    } else {
                        self.call(stream, request, ends);
                    }
                    calls += 1;
                    if calls == CALLS {
                        break;
                    }
                }
                Event::Data { stream, data, ends } => self.push(stream, data, ends),
                Event::Trailers { stream, trailers } => {
                    if let Some(call) = self.http2.state_mut(stream) {
                        call.shared.push_trailers(trailers);
                    }
                }
                Event::Reset {
                    state: Some(call),
                    code,
                    ..
                } => {
                    call.shared.cut(code);
                    drop_call(call);
                    if !has_budget_remaining() {
                        break;
                    }
                }
                _ => {}
            }
        }
        self.unread.extend_from_slice(input);
        Ok(())
    }

    fn call(&mut self, stream: StreamId, request: Request<()>, ends: bool) {
        let shared = Arc::new(Shared::new(stream, Arc::clone(&self.wakes)));
        if ends {
            shared.push(&[], true);
        }
        let mut request = request.map(|()| RequestBody::from(Incoming::new(Arc::clone(&shared))));
        request
            .extensions_mut()
            .insert(StreamHandle::new(Arc::clone(&shared) as _));
        let waker = Waker::from(Arc::clone(&shared));
        let service = &self.service;
        let begun = catch_unwind(AssertUnwindSafe(|| {
            let mut service = service.clone();
            match service.poll_ready(&mut Context::from_waker(&waker)) {
                Poll::Ready(Ok(())) => Ok(Phase::Called(Box::pin(service.call(request)))),
                Poll::Pending => Ok(Phase::Waiting(Box::new((service, request)))),
                Poll::Ready(Err(error)) => Err(error),
            }
        }));
        let phase = match begun {
            Ok(Ok(phase)) => Some(phase),
            Ok(Err(error)) => {
                note_failure(error);
                None
            }
            Err(_) => None,
        };
        let Some(phase) = phase else {
            self.http2.reset(stream, Code::INTERNAL_ERROR);
            return shared.cut(Code::INTERNAL_ERROR);
        };
        let call = Call {
            phase,
            shared,
            has_inbox: !ends,
        };
        self.http2.accept(stream, call);
        self.woken.push_back(stream);
    }

    fn push(&mut self, stream: StreamId, data: &[u8], ends: bool) {
        let Some(call) = self.http2.state_mut(stream) else {
            return;
        };
        if !call.shared.push(data, ends) {
            self.http2.discard(stream, data.len());
        }
    }

    /// Refuses a call whose headers had no room, by a status that its client understands.
    fn refuse_large_head(&mut self, stream: StreamId, request: &Request<()>) {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let is_grpc =
            content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        let mut headers = HeaderMap::new();
        let status = if is_grpc {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/grpc"),
            );
            headers.insert("grpc-status", HeaderValue::from_static("8"));
            let message =
                "the metadata of the call is larger than the server takes: send less of it";
            headers.insert("grpc-message", HeaderValue::from_static(message));
            StatusCode::OK
        } else {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        };
        self.http2.respond(stream, status, &headers, true);
    }

    /// Polls the calls that were woken, and those that have room again. Returns whether some are left.
    fn poll_calls(&mut self) -> bool {
        // Each once: what is woken meanwhile, by itself or by another, is polled in another round.
        self.wakes.take(&mut self.woken);
        // Those that come second may find the task's budget used up, round after round.
        if mem::take(&mut self.are_turns_first) {
            self.poll_turns();
            self.poll_woken();
        } else {
            self.poll_woken();
            self.poll_turns();
            self.are_turns_first = !has_budget_remaining() && self.http2.has_turns();
        }
        !self.woken.is_empty()
    }

    fn poll_woken(&mut self) {
        while has_budget_remaining()
            && let Some(stream) = self.woken.pop_front()
        {
            self.poll_call(stream, true);
        }
    }

    fn poll_turns(&mut self) {
        while has_budget_remaining()
            && let Some(stream) = self.http2.next_turn()
        {
            self.poll_call(stream, false);
        }
    }

    fn poll_call(&mut self, stream: StreamId, is_from_list: bool) {
        let Some(call) = self.http2.state_mut(stream) else {
            return;
        };
        // Before the look at what it was woken for.
        if !call.shared.begin_poll(is_from_list) {
            return;
        }
        let shared = Arc::clone(&call.shared);
        let mut phase = mem::replace(&mut call.phase, Phase::Empty);
        let has_inbox = call.has_inbox;
        if shared.is_reset() {
            tracing::debug!("stream reset: its peer does not read");
            self.reset(stream, Code::CANCEL);
            return drop_phase(phase);
        }
        if has_inbox {
            shared.begin_reading();
        }
        let waker = Waker::from(Arc::clone(&shared));
        let mut cx = Context::from_waker(&waker);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            self.poll_phase(stream, &shared, &mut phase, &mut cx)
        }));
        let mut is_read = true;
        if has_inbox {
            let (read, discarded, is_all) = shared.end_reading();
            if read > 0 {
                self.http2.release(stream, read);
            }
            if discarded > 0 {
                self.http2.discard(stream, discarded);
            }
            is_read = is_all;
        }
        match polled {
            Ok(true) => match self.http2.state_mut(stream) {
                Some(call) => {
                    call.phase = phase;
                    call.has_inbox = !is_read;
                }
                None => drop_phase(phase),
            },
            Ok(false) => drop_phase(phase),
            Err(_) => {
                self.reset(stream, Code::INTERNAL_ERROR);
                drop_phase(phase);
            }
        }
    }

    fn reset(&mut self, stream: StreamId, code: Code) {
        if let Some(call) = self.http2.reset(stream, code) {
            drop_call(call);
        }
    }

    /// Polls what there is of a call, as long as it has something and there is room for it. Returns whether there is more to
    /// come.
    fn poll_phase(
        &mut self,
        stream: StreamId,
        shared: &Shared,
        phase: &mut Phase<Waiting<S>, S::Future, S::Body>,
        cx: &mut Context<'_>,
    ) -> bool {
        if let Phase::Waiting(waiting) = phase {
            match waiting.0.poll_ready(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(())) => {
                    let Phase::Waiting(waiting) = mem::replace(phase, Phase::Empty) else {
                        return true;
                    };
                    let (mut service, request) = *waiting;
                    *phase = Phase::Called(Box::pin(service.call(request)));
                }
                Poll::Ready(Err(error)) => return self.fail(stream, error),
            }
        }
        if let Phase::Called(called) = phase {
            match called.as_mut().poll(cx) {
                Poll::Pending => return true,
                // What has a body is the response, and not one that comes before it.
                Poll::Ready(Ok(response)) if response.status().is_informational() => {
                    return self.fail(stream, "it answered with an informational status");
                }
                Poll::Ready(Ok(response)) => match self.respond(stream, response) {
                    Some(body) => *phase = Phase::Body(body),
                    None => return false,
                },
                Poll::Ready(Err(error)) => return self.fail(stream, error),
            }
        }
        let Phase::Body(body) = phase else {
            return true;
        };
        loop {
            match self.http2.room(stream) {
                Room::Bytes(bytes) => shared.set_room(bytes),
                // It may have ended, and what it has besides is held.
                Room::NoWindow => shared.set_room(0),
                Room::Later => return true,
            }
            match body.as_mut().poll_frame(cx) {
                Poll::Pending => return true,
                Poll::Ready(None) => {
                    self.http2.finish(stream, None);
                    return false;
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(mut data) => {
                        let data = data.copy_to_bytes(data.remaining());
                        if data.is_empty() {
                            // It takes no room, so nothing else would end the turn of a body that has only those.
                            cx.waker().wake_by_ref();
                            return true;
                        }
                        self.http2.send(stream, data);
                    }
                    Err(frame) => {
                        self.http2.finish(stream, frame.into_trailers().ok());
                        return false;
                    }
                },
                Poll::Ready(Some(Err(error))) => {
                    let error: BoxError = error.into();
                    tracing::debug!(error, "the body of a response failed");
                    self.reset(stream, Code::INTERNAL_ERROR);
                    return false;
                }
            }
        }
    }

    /// Resets the stream of a call that the service failed to answer. Returns that nothing more is to come.
    fn fail(&mut self, stream: StreamId, error: impl Into<BoxError>) -> bool {
        note_failure(error);
        self.reset(stream, Code::INTERNAL_ERROR);
        false
    }

    /// Begins a response. Returns its body, if there is one.
    fn respond(
        &mut self,
        stream: StreamId,
        response: Response<S::Body>,
    ) -> Option<Pin<Box<S::Body>>> {
        let (mut parts, body) = response.into_parts();
        if let Some(date) = date::now()
            && !parts.headers.contains_key(header::DATE)
        {
            parts.headers.insert(header::DATE, date);
        }
        let ends = body.is_end_stream();
        self.http2
            .respond(stream, parts.status, &parts.headers, ends);
        (!ends).then(|| Box::pin(body))
    }

    /// Writes what waits, as far as the transport takes it.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Whatever is left of the task's budget: it is one write.
        let http2 = &mut self.http2;
        let transport = &mut self.transport;
        let is_unflushed = &mut self.is_unflushed;
        let write = std::future::poll_fn(|cx| {
            while http2.output_len() > 0 {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = http2.output(&mut slices);
                let written = match &slices[..count] {
                    [slice] => Pin::new(&mut *transport).poll_write(cx, slice),
                    slices => Pin::new(&mut *transport).poll_write_vectored(cx, slices),
                };
                match written {
                    Poll::Pending => {
                        http2.advance(0);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(written) => http2.advance(written?),
                }
                *is_unflushed = true;
            }
            if *is_unflushed {
                let flushed = Pin::new(&mut *transport).poll_flush(cx);
                http2.set_unflushed(flushed.is_pending());
                ready!(flushed)?;
                *is_unflushed = false;
            }
            Poll::Ready(io::Result::Ok(()))
        });
        let written = pin!(unconstrained(write)).poll(cx);
        if written.is_pending() {
            self.blocked = Some(Instant::now());
        }
        written.map_err(Into::into)
    }
}

/// Reads what is there into the buffer of this thread. Returns it, to be given back to [`READ`], with the number of bytes.
fn poll_read<T: AsyncRead + Unpin>(
    transport: &mut T,
    cx: &mut Context<'_>,
) -> (Vec<u8>, Poll<io::Result<usize>>) {
    let mut buffer = READ.take();
    buffer.resize(READ_BYTES, 0);
    let mut read = ReadBuf::new(&mut buffer);
    let polled = Pin::new(transport).poll_read(cx, &mut read);
    let length = read.filled().len();
    (buffer, polled.map_ok(|()| length))
}

fn note_failure(error: impl Into<BoxError>) {
    let error: BoxError = error.into();
    tracing::debug!(error, "a service failed");
}

/// Drops what was polled for a call, which may panic: the panic hook has reported it.
fn drop_phase<W, F, B>(phase: Phase<W, F, B>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(phase)));
}

// ===== The end =====

impl<T, S> Engine<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Http2Service,
{
    /// Ends a connection that is no longer served: its calls are dropped, and the peer is told what waits for it.
    fn poll_end(&mut self, end: &mut End<S>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        ready!(end.poll_drop(cx));
        if end.linger.is_none() {
            // From here on, since the calls may have taken long.
            end.linger = Some(self.linger(end));
        }
        let told = ready!(self.poll_tell(end, cx));
        // Why it ended matters more than how well the peer could be told.
        let reason = mem::replace(&mut end.reason, Ok(()));
        Poll::Ready(reason.and(told))
    }

    /// Begins the time in which the peer may receive what it was told.
    fn linger(&mut self, end: &End<S>) -> Linger {
        let now = Instant::now();
        let is_slow = self
            .blocked
            .is_some_and(|at| now.duration_since(at) < LONGEST_LINGER);
        let time = if is_slow && end.reason.is_ok() {
            LONGEST_LINGER
        } else {
            LINGER
        };
        self.timer.as_mut().reset(now + time);
        Linger {
            time,
            until: now + LONGEST_LINGER,
        }
    }

    fn poll_tell(&mut self, end: &mut End<S>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if end.is_gone || self.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !end.is_shut {
            ready!(self.poll_write(cx))?;
            ready!(Pin::new(&mut self.transport).poll_shutdown(cx))?;
            end.is_shut = true;
        }
        // A socket that is closed resets the connection when more comes, and what the peer has not received is lost.
        let (buffer, read) = poll_read(&mut self.transport, cx);
        READ.set(buffer);
        let Ok(length @ 1..) = ready!(read) else {
            return Poll::Ready(Ok(()));
        };
        if end.reason.is_ok()
            && let Some(linger) = &end.linger
        {
            let until = linger.until.min(Instant::now() + linger.time);
            self.timer.as_mut().reset(until);
        }
        end.thrown_away += length;
        if end.thrown_away > LINGER_BYTES {
            return Poll::Ready(Ok(()));
        }
        // A peer that goes on is not read faster than others are served.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
