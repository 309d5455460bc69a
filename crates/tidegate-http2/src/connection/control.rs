//! The connection itself: settings, windows, pings, its end, and its times (RFC 9113, sections 6.5 to 6.9).

use std::{
    error, fmt,
    time::{Duration, Instant},
};

use super::{Connection, Event, StreamState};
use crate::{
    error::{Code, Error},
    frame::{self, ACK, Head},
    settings::{LARGEST_WINDOW, Settings},
    stream::Known,
};

/// Payload of the PING that finds out what the peer had sent before it knew of the end (RFC 9113, section 6.8).
const END_PING: [u8; 8] = *b"the end?";

/// Payload of the PING that finds out whether the peer is there.
const KEEP_ALIVE_PING: [u8; 8] = *b"alive?\0\0";

/// Number of streams whose window changes at the cost of a frame.
const STREAMS_A_FRAME: u32 = 8;

/// Time in which a frame that is no DATA has to come in full, and a header block. What has come of it is held until then.
const BLOCK_TIME: Duration = Duration::from_secs(10);

/// Longer than any connection lasts, and no more than every system's clock can add.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// How far the end of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    No,
    /// The peer was told to begin no more streams, and asked what it had begun before it knew.
    Announced(Instant),
    /// The peer was told that streams up to this one are served to their end.
    Final(u32),
    /// Nothing that comes is read any more.
    Failed,
}

/// The end of a connection whose peer did nothing for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimedOut {
    /// It did not answer a PING.
    KeepAlive,
    /// It did not read what waits for it.
    Write,
    /// It did not complete a header block, or a frame that is no DATA.
    Headers,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KeepAlive => "the peer did not answer a PING in time",
            Self::Write => "the peer did not read what it was sent in time",
            Self::Headers => "the peer did not complete a frame or a header block in time",
        })
    }
}

impl error::Error for TimedOut {}

/// Times, by the caller's clock.
#[derive(Debug)]
pub(super) struct Clock {
    pub(super) now: Instant,
    /// When the last byte of the peer came.
    pub(super) received: Instant,
    /// When a PING was sent that the peer has yet to answer, or when it last read, if that was later.
    pub(super) pinged: Option<Instant>,
    /// When the socket last took something, if something waits for it.
    pub(super) blocked: Option<Instant>,
    /// Whether the transport has taken bytes that the socket has no room for.
    pub(super) is_unflushed: bool,
}

impl Clock {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            now,
            received: now,
            pinged: None,
            blocked: None,
            is_unflushed: false,
        }
    }

    /// Notes that the socket takes something now. If it had no room before, the peer's system has acknowledged something since
    /// then: it is there, though the PING may be behind much that it has not read, here and in the kernel. What a socket takes
    /// that always had room says nothing, since the kernel takes it for a peer that is gone, too.
    pub(super) fn written(&mut self) {
        if let (Some(pinged), Some(blocked)) = (&mut self.pinged, self.blocked)
            && blocked < self.now
        {
            *pinged = self.now;
        }
    }
}

impl<S: StreamState> Connection<S> {
    pub(super) fn on_settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        if head.stream != 0 {
            return Err(Error::protocol("SETTINGS on a stream"));
        }
        if head.has(ACK) {
            if !payload.is_empty() {
                return Err(Error::size("an acknowledgment of SETTINGS has a payload"));
            }
            if self.is_acknowledged {
                self.budgets.idle_frame(&self.config)?;
            }
            self.on_settings_acknowledged();
            return Ok(());
        }
        let settings = Settings::read(payload)?;
        self.budgets.idle_frame(&self.config)?;
        if let Some(bytes) = settings.header_table_size {
            self.encoder.set_peer_table(bytes);
        }
        if let Some(window) = settings.initial_window_size {
            self.set_initial_window(i64::from(window))?;
        }
        self.output.put(frame::put_settings_ack);
        Ok(())
    }

    /// Sets what new streams may send, and changes what the others may (RFC 9113, section 6.9.2).
    fn set_initial_window(&mut self, window: i64) -> Result<(), Error> {
        let difference = window - self.initial_window;
        self.initial_window = window;
        if difference == 0 {
            return Ok(());
        }
        // Each of the streams may have a turn now.
        let cost = u32::try_from(self.streams.len()).unwrap_or(u32::MAX) / STREAMS_A_FRAME;
        self.budgets.idle_frames(cost, &self.config)?;
        for (id, stream) in self.streams.iter_mut() {
            stream.send_window += difference;
            if stream.send_window > LARGEST_WINDOW {
                let reason = "INITIAL_WINDOW_SIZE makes the window of a stream too large";
                return Err(Error::new(Code::FLOW_CONTROL_ERROR, reason));
            }
            stream.window_opened(id, &mut self.turns);
        }
        Ok(())
    }

    pub(super) fn on_window_update<'a>(
        &mut self,
        head: Head,
        payload: &[u8],
    ) -> Result<Option<Event<'a, S>>, Error> {
        let increment =
            frame::read_number(payload).ok_or(Error::size("WINDOW_UPDATE is not of 4 bytes"))?;
        let increment = i64::from(increment & 0x7fff_ffff);
        if head.stream == 0 {
            if increment == 0 {
                return Err(Error::protocol("WINDOW_UPDATE of 0 on the connection"));
            }
            self.send_window += increment;
            if self.send_window > LARGEST_WINDOW {
                let reason = "the window of the connection is above 2,147,483,647";
                return Err(Error::new(Code::FLOW_CONTROL_ERROR, reason));
            }
            return Ok(None);
        }
        let Some(stream) = self.streams.get_mut(head.stream) else {
            if self.streams.know(head.stream) == Known::Idle {
                return Err(Error::protocol(
                    "WINDOW_UPDATE on a stream that has not begun",
                ));
            }
            // Not counted, as those of open streams are not: a peer opens windows as it reads, also behind the last byte.
            return Ok(None);
        };
        stream.send_window += increment;
        if increment == 0 {
            return self.stream_error(head.stream, Code::PROTOCOL_ERROR);
        }
        if stream.send_window > LARGEST_WINDOW {
            return self.stream_error(head.stream, Code::FLOW_CONTROL_ERROR);
        }
        stream.window_opened(head.stream, &mut self.turns);
        Ok(None)
    }

    pub(super) fn on_ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        let payload: [u8; 8] = payload
            .try_into()
            .map_err(|_| Error::size("PING is not of 8 bytes"))?;
        if head.stream != 0 {
            return Err(Error::protocol("PING on a stream"));
        }
        self.budgets.idle_frame(&self.config)?;
        if !head.has(ACK) {
            self.output.put(|out| frame::put_ping(out, ACK, payload));
        } else if payload == END_PING && matches!(self.ending, Ending::Announced(_)) {
            self.finish_ending();
        }
        Ok(())
    }

    /// Begins to end in good order: the peer is told to begin no more streams, and when it has answered that, which of its
    /// streams are served to their end. A peer that does not answer within [`Config::keep_alive_timeout`](crate::Config) is
    /// told all the same.
    pub fn end(&mut self) {
        if self.ending != Ending::No {
            return;
        }
        self.ending = Ending::Announced(self.clock.now);
        let any = LARGEST_WINDOW as u32;
        self.output.put(|out| {
            frame::put_goaway(out, any, Code::NO_ERROR, "");
            frame::put_ping(out, 0, END_PING);
        });
    }

    /// Tells the peer which streams are served to their end.
    fn finish_ending(&mut self) {
        let last = self.streams.last();
        self.ending = Ending::Final(last);
        self.streams.ignore_all();
        self.output
            .put(|out| frame::put_goaway(out, last, Code::NO_ERROR, ""));
    }

    /// Whether the connection is to be closed, once its output is written: it has ended in good order, or has failed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self.ending {
            Ending::No | Ending::Announced(_) => false,
            Ending::Final(_) => self.streams.len() == 0,
            Ending::Failed => true,
        }
    }

    /// When [`on_timeout`](Self::on_timeout) is to be called, if nothing happens before.
    #[must_use]
    pub fn timeout(&self) -> Instant {
        let config = &*self.config;
        let alive = match self.clock.pinged {
            Some(_) => None,
            None => Some(after(self.clock.received, config.keep_alive_interval)),
        };
        let answered = self
            .unanswered()
            .map(|since| after(since, config.keep_alive_timeout));
        let blocked = self.clock.blocked;
        let written = blocked.map(|since| after(since, config.write_timeout));
        let ended = match self.ending {
            Ending::Announced(since) => Some(after(since, config.keep_alive_timeout)),
            _ => None,
        };
        let unended = self.unended.due();
        let begun = self.incomplete().map(|since| after(since, BLOCK_TIME));
        [alive, answered, written, ended, unended, begun]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| after(self.clock.now, FOREVER))
    }

    /// Returns the time since which a PING is unanswered. The answer may be in what is not read, because its answers wait for
    /// the socket.
    fn unanswered(&self) -> Option<Instant> {
        self.clock.pinged.filter(|_| self.wants_input())
    }

    /// Returns the time since which a frame or a header block is incomplete. So may its rest be.
    fn incomplete(&self) -> Option<Instant> {
        self.input.began().filter(|_| self.wants_input())
    }

    /// Does what is due at the time that was [set](Self::set_now). It may be called at any time.
    ///
    /// # Errors
    /// When the peer did nothing for too long: close the connection.
    pub fn on_timeout(&mut self) -> Result<(), TimedOut> {
        let (config, clock) = (&*self.config, &self.clock);
        let is_due = |since: Instant, time| clock.now.saturating_duration_since(since) >= time;
        if clock
            .blocked
            .is_some_and(|since| is_due(since, config.write_timeout))
        {
            return Err(TimedOut::Write);
        }
        if self
            .unanswered()
            .is_some_and(|since| is_due(since, config.keep_alive_timeout))
        {
            return Err(TimedOut::KeepAlive);
        }
        if self
            .incomplete()
            .is_some_and(|since| is_due(since, BLOCK_TIME))
        {
            return Err(TimedOut::Headers);
        }
        let is_silent = is_due(clock.received, config.keep_alive_interval);
        let is_unanswered = match self.ending {
            Ending::Announced(since) => is_due(since, config.keep_alive_timeout),
            _ => false,
        };
        if clock.pinged.is_none() && is_silent {
            self.clock.pinged = Some(clock.now);
            self.output
                .put(|out| frame::put_ping(out, 0, KEEP_ALIVE_PING));
        }
        if is_unanswered {
            self.finish_ending();
        }
        self.stop_requests();
        Ok(())
    }
}

/// Returns the time when `time` has passed, or one that never comes.
pub(super) fn after(since: Instant, time: Duration) -> Instant {
    since.checked_add(time).unwrap_or_else(|| since + FOREVER)
}
