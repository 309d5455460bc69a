//! Limits of a connection.

use std::time::Duration;

/// Limits of a connection. Fields may be added in any release: begin with [`Config::default`].
///
/// ```
/// let mut config = tidegate_http2::Config::default();
/// config.max_output = 32 << 10;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Maximum number of streams that the peer may have open at once. Those beyond it are refused with `REFUSED_STREAM`, which
    /// says that they may be tried again. Default: 256.
    pub max_concurrent_streams: u32,
    /// Maximum size of a request's header list: its names and values, and 32 bytes for each field (RFC 9113, section
    /// 6.5.2). A request with more is handed on without what has no room, and marked. Trailers with more are malformed: their
    /// stream is reset with `PROTOCOL_ERROR`. A block of more than twice as many bytes, and of more than 16 KiB, or of more
    /// than 64 frames ends the connection, and so does a list that counts more than four times as many, and more than 64 KiB.
    /// Default: 16 KiB.
    pub max_header_list_size: u32,
    /// Number of bytes that the peer may send on one stream before they are read. More than 2³¹ - 1 count as that. Default:
    /// 256 KiB.
    pub stream_window: u32,
    /// Number of bytes that the peer may send on the connection before they are read. Less than 65,535 count as that, and more
    /// than 2³¹ - 1 as those. Default: 4 MiB.
    pub connection_window: u32,
    /// Number of bytes that may wait for the socket before streams are asked for no more. The frame that reaches it may go
    /// beyond it, and 0 counts as 1. When 64 KiB more wait, which are answers, [nothing is read](crate::Connection::wants_input).
    /// Default: 64 KiB.
    pub max_output: usize,
    /// Silence after which the peer is sent a PING. Default: 30 s.
    pub keep_alive_interval: Duration,
    /// Time that the peer has to answer a PING, after which the connection ends. It begins anew whenever a socket that had no
    /// room takes something: a peer that reads slowly is there, and the PING is behind what it has to read. Of what a socket
    /// took at once nobody knows: the peer has to have read that within this time. It does not
    /// run while [nothing is read](crate::Connection::wants_input). The PING of [`end`](crate::Connection::end) has as long.
    /// Default: 10 s.
    pub keep_alive_timeout: Duration,
    /// Time for which the socket may take nothing of what waits for it, after which the connection ends. Default: 40 s.
    pub write_timeout: Duration,
    /// Number of streams in 10 s that are reset for faults of the peer before the connection ends. Default: 1,024.
    pub max_faults: u32,
    /// Number of calls in 10 s that the peer cancels before they are answered, that are refused, that are malformed, or whose
    /// header list is too large, before the connection ends. Default: 10,000.
    pub max_cancellations: u32,
    /// Number of frames in 10 s that are about no call, before the connection ends: SETTINGS, PING, PRIORITY, unknown ones,
    /// and HEADERS of calls that are over or not served any more. Default: 50,000. A client that finds out how much the network
    /// holds pings once a round trip. Settings that change the windows of streams count for one more of every 8 streams, and
    /// such HEADERS for one more of every 4 KiB of their list.
    pub max_idle_frames: u32,
    /// Number of DATA frames in 10 s that neither bring nor end anything, padding aside, before the connection ends. Default:
    /// 256.
    pub max_empty_frames: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 256,
            max_header_list_size: 16 << 10,
            stream_window: 256 << 10,
            connection_window: 4 << 20,
            max_output: 64 << 10,
            keep_alive_interval: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(40),
            max_faults: 1_024,
            max_cancellations: 10_000,
            max_idle_frames: 50_000,
            max_empty_frames: 256,
        }
    }
}
