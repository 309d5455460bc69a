//! The movement of bytes on a connection, by which a slow peer is told from a dead one.
//!
//! A message can take longer to arrive than any silence that a client may put up with, so whole messages say too little.
//! Two things are watched, on each connection:
//!
//! - *Progress* of the responses: DATA frames, as the body of a response yields them, and on a link so slow that one
//!   frame takes too long, the bytes on the socket. Those count only in an amount that keep-alive alone cannot explain:
//!   a server whose transport answers pings and whose service is silent makes no progress.
//! - *Signs of life* of the peer: any byte read, and any write that had to wait for the peer and then went on. Without
//!   one for as long as a ping may take, the connection fails. The answer to a ping waits behind what was sent before
//!   it, so its own delay says nothing while bytes move; and a ping waits behind what the client has written, which the
//!   kernel has taken and may still be sending, so that gets time of its own.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// Bytes that the settings of a connection, its windows and the pings of a short silence may take.
const FEW_BYTES: usize = 512;

/// Bytes for each interval of keep-alive: a ping of the server, and its answer to ours, each 39 bytes in TLS.
const BYTES_PER_INTERVAL: usize = 128;

/// Bytes in a second at which a link is given time for what was written and may still be in the kernel.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;

/// Longest time for that. It is enough for 1 MiB, more than which is rarely on its way: the windows of HTTP/2 bound it.
const LONGEST_SENDING: Duration = Duration::from_secs(16);

/// First bytes of a peer that are kept, by which a server is told from something else.
const GREETING: usize = 64;

/// Moments at which bytes last moved on one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Mutex<Moments>>);

#[derive(Debug)]
struct Moments {
    /// Last progress of a response.
    progress: Instant,
    /// First bytes that the peer has sent.
    greeting: Vec<u8>,
    /// First bytes that the peer has sent, without TLS.
    plain_greeting: Vec<u8>,
    /// Error by which TLS has ended the connection.
    tls_error: Option<rustls::Error>,
    /// Bytes read since, which pings may explain up to `keep_alive_bytes`.
    unexplained: usize,
    keep_alive_bytes: usize,
    /// Last sign of life of the peer.
    life: Instant,
    /// The moment until which a slow link may still be sending what was written.
    sending_until: Instant,
}

/// A connection that notes each byte, and fails when the peer gives no sign of life.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    inner: T,
    activity: Activity,
    /// Time without a sign of life after which the connection fails.
    limit: Duration,
    /// The moment until which the peer has to say something, beyond TLS.
    first_word: Instant,
    /// Fires no later than `limit` after the last sign of life that was looked at.
    timer: Pin<Box<Sleep>>,
    /// Whether the last write had to wait for the peer.
    is_write_blocked: bool,
    /// Whether the peer takes nothing more. What it has said before is still to be read, such as why.
    is_write_closed: bool,
}

impl Activity {
    /// Creates the activity of a connection that is yet to be opened. `keep_alive_bytes`: see
    /// [`keep_alive_bytes`].
    pub(crate) fn new(keep_alive_bytes: usize) -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(Moments {
            progress: now,
            greeting: Vec::new(),
            plain_greeting: Vec::new(),
            tls_error: None,
            unexplained: 0,
            keep_alive_bytes,
            life: now,
            sending_until: now,
        })))
    }

    /// Returns the moment of the last progress.
    pub(crate) fn last_progress(&self) -> Instant {
        self.moments().progress
    }

    /// Returns the first bytes that the peer has sent.
    pub(crate) fn greeting(&self) -> Vec<u8> {
        self.moments().greeting.clone()
    }

    /// Returns the first bytes that the peer has sent, without TLS.
    pub(crate) fn plain_greeting(&self) -> Vec<u8> {
        self.moments().plain_greeting.clone()
    }

    /// Notes bytes that have come out of the connection, without TLS.
    pub(crate) fn plain_bytes_read(&self, bytes: &[u8]) {
        let mut moments = self.moments();
        let missing = GREETING - moments.plain_greeting.len();
        moments.plain_greeting.extend(bytes.iter().take(missing));
    }

    /// Whether a byte has come out of the connection, without TLS.
    pub(crate) fn has_spoken(&self) -> bool {
        !self.moments().plain_greeting.is_empty()
    }

    /// Notes the error by which TLS ends the connection.
    pub(crate) fn tls_failed(&self, error: rustls::Error) {
        self.moments().tls_error = Some(error);
    }

    /// Returns the error by which TLS has ended the connection.
    pub(crate) fn tls_error(&self) -> Option<rustls::Error> {
        self.moments().tls_error.clone()
    }

    /// Notes that a part of a response has come out of the connection.
    pub(crate) fn data_arrived(&self) {
        let mut moments = self.moments();
        let now = Instant::now();
        moments.life = now;
        moments.progress(now);
    }

    /// Notes that the peer is alive, whatever its service does.
    pub(crate) fn sign_of_life(&self) {
        self.moments().life = Instant::now();
    }

    /// Notes that a connection was opened, by which the peer is alive and has sent nothing.
    fn begin(&self) {
        let mut moments = self.moments();
        moments.life = Instant::now();
        moments.greeting.clear();
        moments.plain_greeting.clear();
        moments.tls_error = None;
    }

    fn bytes_read(&self, bytes: &[u8]) {
        let mut moments = self.moments();
        let now = Instant::now();
        let count = bytes.len();
        moments.life = now;
        let missing = GREETING - moments.greeting.len();
        if missing > 0 {
            moments.greeting.extend(bytes.iter().take(missing));
        }
        moments.unexplained = moments.unexplained.saturating_add(count);
        if moments.unexplained > moments.keep_alive_bytes {
            moments.progress(now);
        }
    }

    fn bytes_written(&self, count: usize) {
        let mut moments = self.moments();
        let now = Instant::now();
        let nanos = (count as u64).saturating_mul(1_000_000_000) / SLOWEST_BYTES_PER_SECOND;
        let until = moments.sending_until.max(now) + Duration::from_nanos(nanos);
        moments.sending_until = until.min(now + LONGEST_SENDING);
    }

    /// Returns the moment at which the peer is dead, if it gives no sign of life until then.
    fn deadline(&self, limit: Duration) -> Instant {
        let moments = self.moments();
        moments.life.max(moments.sending_until) + limit
    }

    fn moments(&self) -> MutexGuard<'_, Moments> {
        // Each change is whole before anything could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns how many bytes without a DATA frame keep-alive may explain within `silence`, if it pings at each `interval`.
/// More of them are progress. A link that takes all of a silence for so few is as good as broken.
pub(crate) fn keep_alive_bytes(silence: Duration, interval: Duration) -> usize {
    let intervals = silence.as_millis() / interval.as_millis().max(1) + 1;
    let intervals = usize::try_from(intervals).unwrap_or(usize::MAX);
    intervals
        .saturating_mul(BYTES_PER_INTERVAL)
        .saturating_add(FEW_BYTES)
}

impl Moments {
    fn progress(&mut self, now: Instant) {
        self.progress = now;
        self.unexplained = 0;
    }
}

impl<T> Watched<T> {
    /// Watches a connection that was just opened, whose peer has to say something until `first_word`. A server of HTTP/2
    /// speaks at once: what takes connections and is silent is none, or one that is stopped.
    pub(crate) fn new(inner: T, activity: Activity, limit: Duration, first_word: Instant) -> Self {
        activity.begin();
        let first = first_word.min(Instant::now() + limit);
        Self {
            inner,
            activity,
            limit,
            first_word,
            timer: Box::pin(sleep_until(first)),
            is_write_blocked: false,
            is_write_closed: false,
        }
    }

    /// Waits until the peer has given no sign of life for too long.
    fn poll_death(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            // Moved only when it fires, since a timer that is moved with each read costs more than the read.
            let deadline = self.activity.deadline(self.limit);
            if !self.activity.has_spoken() && self.first_word <= Instant::now() {
                let message = "it takes connections and says nothing";
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            let deadline = match self.activity.has_spoken() {
                true => deadline,
                false => deadline.min(self.first_word),
            };
            if deadline <= Instant::now() {
                let message = format!("no byte from the server for {:?}", self.limit);
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            self.timer.as_mut().reset(deadline);
        }
    }

    /// Notes a write of `length` bytes.
    fn note_write(
        &mut self,
        result: Poll<io::Result<usize>>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        // A peer that refuses a connection says why and closes it. A write that fails meanwhile would end the connection
        // before that is read. The end is read right after it, so the write is as lost as one that the kernel took.
        if let Poll::Ready(Err(error)) = &result
            && matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            )
        {
            self.is_write_closed = true;
            return Poll::Ready(Ok(length));
        }
        // A write that finds room at once proves nothing: the kernel takes some for a dead peer too.
        if self.is_write_blocked && result.is_ready() {
            self.activity.sign_of_life();
        }
        self.is_write_blocked = result.is_pending();
        if let Poll::Ready(Ok(count)) = result {
            self.activity.bytes_written(count);
        }
        result
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.inner).poll_read(cx, buf) {
            match &buf.filled()[before..] {
                [] => {}
                bytes => this.activity.bytes_read(bytes),
            }
            return Poll::Ready(result);
        }
        // After the read: a program that was stopped for a while finds what arrived meanwhile.
        this.poll_death(cx).map(Err)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_write_closed {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.note_write(result, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if this.is_write_closed {
            return Poll::Ready(Ok(length));
        }
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.note_write(result, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::{advance, sleep},
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// A moment until which every peer has spoken.
    fn in_an_hour() -> Instant {
        Instant::now() + second(3600)
    }

    fn second(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[tokio::test(start_paused = true)]
    async fn pings_alone_are_no_progress_and_more_bytes_are() {
        let silence = second(45);
        for interval in [1, 20, 3600].map(second) {
            let allowance = keep_alive_bytes(silence, interval);
            let activity = Activity::new(allowance);
            let begin = activity.last_progress();
            advance(second(1)).await;
            for _ in 0..=silence.as_secs() / interval.as_secs() {
                activity.bytes_read(&[0; 2 * 39]);
            }
            assert_eq!(activity.last_progress(), begin);
            activity.bytes_read(&vec![0; allowance]);
            assert_eq!(activity.last_progress(), begin + second(1));
            advance(second(1)).await;
            activity.bytes_read(&[0; 39]);
            assert_eq!(activity.last_progress(), begin + second(1));
            activity.data_arrived();
            assert_eq!(activity.last_progress(), begin + second(2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn peer_that_sends_nothing_is_dead_at_the_limit() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut watched = Watched::new(near, Activity::new(0), LIMIT, in_an_hour());
        let begin = Instant::now();
        let (result, ()) = tokio::join!(watched.read_u8(), async {
            sleep(second(20)).await;
            far.write_u8(7).await.unwrap();
        });
        assert_eq!(result.unwrap(), 7);
        // A ping that the kernel takes at once is no sign of life.
        watched.write_all(b"ping").await.unwrap();
        let error = watched.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begin.elapsed().as_secs(), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn peer_that_never_says_a_word_is_none() {
        let (near, _far) = tokio::io::duplex(64);
        let begin = Instant::now();
        let word = begin + second(10);
        let mut watched = Watched::new(near, Activity::new(0), LIMIT, word);
        // What was sent to it is given time only where there is a peer.
        watched.write_all(b"preface").await.unwrap();
        let error = watched.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begin.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn peer_that_takes_bytes_slowly_is_alive() {
        let (near, mut far) = tokio::io::duplex(1);
        let watched = Watched::new(near, Activity::new(0), LIMIT, in_an_hour());
        let (mut read, mut write) = tokio::io::split(watched);
        let begin = Instant::now();
        let slow = async {
            for _ in 0..4 {
                sleep(second(20)).await;
                far.read_u8().await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let error = tokio::select! {
            result = read.read_u8() => result.unwrap_err(),
            () = slow => unreachable!(),
            _ = async { write.write_all(&[0; 9]).await.unwrap(); std::future::pending::<()>().await } => unreachable!(),
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begin.elapsed().as_secs(), 4 * 20 + 30);
    }

    #[tokio::test(start_paused = true)]
    async fn written_bytes_get_time_of_their_own() {
        for (seconds, given) in [(3, second(3)), (1000, LONGEST_SENDING)] {
            let mut watched =
                Watched::new(tokio::io::empty(), Activity::new(0), LIMIT, in_an_hour());
            let begin = Instant::now();
            for _ in 0..seconds {
                let written = [0; SLOWEST_BYTES_PER_SECOND as usize];
                watched.write_all(&written).await.unwrap();
            }
            // A sign of life does not mean that all of it has arrived.
            watched.activity.sign_of_life();
            let dead = std::future::poll_fn(|cx| watched.poll_death(cx)).await;
            assert_eq!(dead.kind(), io::ErrorKind::TimedOut);
            assert_eq!(begin.elapsed(), given + LIMIT);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_are_consumed_late_postpone_the_end() {
        let (near, _far) = tokio::io::duplex(64);
        let activity = Activity::new(0);
        let mut watched = Watched::new(near, activity.clone(), LIMIT, in_an_hour());
        let begin = Instant::now();
        let (result, ()) = tokio::join!(watched.read_u8(), async {
            sleep(second(29)).await;
            activity.data_arrived();
        });
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begin.elapsed(), second(29) + LIMIT);
    }
}
