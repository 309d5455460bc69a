//! Limits and timeouts of a connection.

use std::{cell::RefCell, io, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::net::TcpStream;

/// The fewest bytes that may wait for the socket: one frame of the largest size that peers have to take.
const LEAST_OUTPUT: usize = 16 << 10;

/// An engine that serves HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Http2Engine {
    /// `tidegate-http2`, made for long streams.
    #[default]
    Tidegate,
    /// hyper, with h2.
    Hyper,
}

/// Limits and timeouts of one connection. hyper's own defaults are named where these differ.
#[derive(Debug, Clone)]
pub struct Http2Config {
    /// The engine of the connection. Default: [`Http2Engine::Tidegate`].
    pub engine: Http2Engine,
    /// Maximum number of streams open at once on one connection. Default: 256 (hyper: 200).
    pub max_concurrent_streams: u32,
    /// Maximum number of streams that the peer resets, in 10 s, before they were answered, and of those that are refused,
    /// malformed or too large in their headers, but on hyper. Beyond it the connection ends:
    /// this is the rapid reset attack, CVE-2023-44487. A proxy resets the calls of its users so, when their deadlines
    /// pass. Default: 10,000 (hyper: 20 that wait to be accepted).
    pub max_pending_accept_reset_streams: usize,
    /// Maximum number of streams in progress that are reset, in 10 s, because the peer broke a rule. Beyond it the
    /// connection ends: CVE-2025-8671. Default: 1,024 (hyper: in the life of the connection, and those that hold nothing
    /// count too).
    pub max_local_error_reset_streams: usize,
    /// Maximum size of a request's header list: its names and values, and 32 bytes for each field. Default: 16 KiB. On the
    /// default engine a block of more than twice as many bytes ends the connection, and a list of more than four times it.
    pub max_header_list_size: u32,
    /// Number of bytes that a peer may send on one stream before they are read. Default: 256 KiB (hyper: 1 MiB).
    pub stream_window: u32,
    /// Number of bytes that a peer may send on one connection before they are read. On hyper, half of it is also h2's
    /// budget for unread frames below 256 bytes, beyond which it takes the peer for an attacker and ends the
    /// connection. Default: 4 MiB (hyper: 1 MiB), with which a stream may fill its window with frames of 30
    /// bytes, as publishers of small events do.
    pub connection_window: u32,
    /// Number of bytes that a connection may have buffered for sending, or a stream on hyper. They are beyond recall when
    /// the client turns out to be slow. Less than 16 KiB counts as that, but on hyper. Default: 64 KiB, four chunks
    /// (hyper: 400 KiB).
    pub max_send_buffer: usize,
    /// Time that a new connection may take for the TLS handshake, if there is one, and for the connection
    /// preface. Default: 5 s (hyper: no limit).
    pub preface_timeout: Duration,
    /// Silence after which the peer is sent a PING. Default: 30 s (hyper: never).
    pub keep_alive_interval: Duration,
    /// Time that a peer may stay silent after a PING, after which the connection ends. On the default engine it begins anew
    /// whenever a peer that was slow reads something. Default: 10 s (hyper: 20 s).
    pub keep_alive_timeout: Duration,
    /// Time for which sent bytes may stay unacknowledged before the kernel ends the connection
    /// (`TCP_USER_TIMEOUT`, gRFC A18). Default: 40 s. Keep-alive finds a peer that does not read its
    /// socket only if it sends nothing either. Less than 1 ms counts as 1 ms, and more
    /// than the kernel takes, 596 hours, as that.
    pub tcp_user_timeout: Duration,
    /// Time for which a write to the socket may make no progress before the connection ends. A peer that stops
    /// reading its socket cannot even be sent GOAWAY, and holds the bytes that are buffered for it until then.
    /// Default: 40 s.
    pub write_timeout: Duration,
    /// Number of unsent bytes in the kernel from which on it takes no more from a connection
    /// (`TCP_NOTSENT_LOWAT`). They are beyond recall. Default: 128 KiB.
    pub tcp_notsent_lowat: u32,
}

impl Default for Http2Config {
    fn default() -> Self {
        Self {
            engine: Http2Engine::default(),
            max_concurrent_streams: 256,
            max_pending_accept_reset_streams: 10_000,
            max_local_error_reset_streams: 1_024,
            max_header_list_size: 16 << 10,
            stream_window: 256 << 10,
            connection_window: 4 << 20,
            max_send_buffer: 64 << 10,
            preface_timeout: Duration::from_secs(5),
            keep_alive_interval: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(10),
            tcp_user_timeout: Duration::from_secs(40),
            write_timeout: Duration::from_secs(40),
            tcp_notsent_lowat: 128 << 10,
        }
    }
}

impl Http2Config {
    /// Sets the options of a socket: `TCP_NODELAY`, and on Linux `TCP_USER_TIMEOUT` and `TCP_NOTSENT_LOWAT`.
    ///
    /// # Errors
    /// When the kernel refuses an option, as it does when the peer has gone.
    pub fn set_socket_options(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        #[cfg(target_os = "linux")]
        {
            // Of less than a millisecond the kernel would see zero, which turns the option off, and it refuses more than
            // its signed number holds.
            let longest = Duration::from_millis(i32::MAX.unsigned_abs().into());
            let timeout = self
                .tcp_user_timeout
                .clamp(Duration::from_millis(1), longest);
            socket.set_tcp_user_timeout(Some(timeout))?;
            socket.set_tcp_notsent_lowat(self.tcp_notsent_lowat)?;
        }
        Ok(())
    }

    /// The limits, as `tidegate-http2` has them. Connections with the same share them.
    pub(crate) fn limits(&self) -> Arc<tidegate_http2::Config> {
        thread_local! {
            /// Limits of the connection that this thread began last.
            static LAST: RefCell<Arc<tidegate_http2::Config>> = RefCell::default();
        }
        let mut limits = tidegate_http2::Config::default();
        limits.max_concurrent_streams = self.max_concurrent_streams;
        limits.max_header_list_size = self.max_header_list_size;
        limits.stream_window = self.stream_window;
        limits.connection_window = self.connection_window;
        limits.max_output = self.max_send_buffer.max(LEAST_OUTPUT);
        limits.keep_alive_interval = self.keep_alive_interval;
        limits.keep_alive_timeout = self.keep_alive_timeout;
        limits.write_timeout = self.write_timeout;
        limits.max_faults = u32::try_from(self.max_local_error_reset_streams).unwrap_or(u32::MAX);
        limits.max_cancellations =
            u32::try_from(self.max_pending_accept_reset_streams).unwrap_or(u32::MAX);
        LAST.with_borrow_mut(|last| {
            if **last != limits {
                *last = Arc::new(limits);
            }
            Arc::clone(last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_their_limits() {
        let config = Http2Config::default();
        let limits = config.limits();
        assert!(Arc::ptr_eq(&limits, &config.limits()));
        let other = Http2Config {
            max_concurrent_streams: 1,
            ..config
        };
        assert_eq!(other.limits().max_concurrent_streams, 1);
        assert_eq!(*limits, *config.limits());
    }
}
