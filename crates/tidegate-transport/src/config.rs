//! What a connection may do.

use std::{io, time::Duration};

use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::driver::StreamExecutor;

/// What one connection may do. hyper's own defaults are named where these differ.
#[derive(Debug, Clone)]
pub struct Http2Config {
    /// Streams open at once on one connection. Default: 256 (hyper: 200).
    pub max_concurrent_streams: u32,
    /// Streams that the peer may have reset before they were accepted. Beyond, the connection ends: the
    /// rapid reset attack, CVE-2023-44487. Default: 20.
    pub max_pending_accept_reset_streams: usize,
    /// Streams that may be reset for faults of the peer in the life of a connection. Beyond, it ends:
    /// CVE-2025-8671. Default: 1,024.
    pub max_local_error_reset_streams: usize,
    /// Bytes of a request's headers. Default: 16 KiB.
    pub max_header_list_size: u32,
    /// What a peer may send on one stream before it is read. Default: 256 KiB (hyper: 1 MiB).
    pub stream_window: u32,
    /// What a peer may send on one connection before it is read. Half of it is also h2's budget for frames
    /// below 256 bytes that are not read yet, beyond which it takes a peer for an attacker and ends the
    /// connection. Default: 4 MiB (hyper: 1 MiB), with which a stream may fill its window with frames of 30
    /// bytes, as publishers of small events do.
    pub connection_window: u32,
    /// What one stream may have buffered for sending: beyond recall when the client turns out to be
    /// slow. Default: 64 KiB, four chunks (hyper: 400 KiB).
    pub max_send_buffer: usize,
    /// How long a new connection may take to shake hands, where there is TLS, and to send the connection
    /// preface. Default: 5 s (hyper: forever).
    pub preface_timeout: Duration,
    /// Silence after which the peer is asked for a sign of life. Default: 30 s (hyper: never).
    pub keep_alive_interval: Duration,
    /// How long it has to answer. Default: 10 s (hyper: 20 s).
    pub keep_alive_timeout: Duration,
    /// How long bytes sent may stay unacknowledged before the kernel ends the connection
    /// (`TCP_USER_TIMEOUT`, gRFC A18). Default: 40 s. A peer whose HTTP/2 window is open but which does
    /// not read its socket is not found by keep-alive alone, whose ping waits behind the data.
    pub tcp_user_timeout: Duration,
    /// How long a write to the socket may make no progress before the connection is ended. A peer that
    /// stops reading its socket cannot even be sent GOAWAY, and holds what is buffered for it until
    /// then. Default: 40 s.
    pub write_timeout: Duration,
    /// Bytes that the kernel may hold unsent for a connection before it asks for no more
    /// (`TCP_NOTSENT_LOWAT`). Default: 128 KiB.
    pub tcp_notsent_lowat: u32,
}

impl Default for Http2Config {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 256,
            max_pending_accept_reset_streams: 20,
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
    /// Sets what is the kernel's to keep: `TCP_NODELAY`, and on Linux `TCP_USER_TIMEOUT` and `TCP_NOTSENT_LOWAT`.
    ///
    /// # Errors
    /// When the kernel refuses, as it does when the peer has gone.
    pub fn set_socket_options(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        #[cfg(target_os = "linux")]
        {
            socket.set_tcp_user_timeout(Some(self.tcp_user_timeout))?;
            socket.set_tcp_notsent_lowat(self.tcp_notsent_lowat)?;
        }
        Ok(())
    }

    pub(crate) fn builder(&self, streams: StreamExecutor) -> http2::Builder<StreamExecutor> {
        let mut builder = http2::Builder::new(streams);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.max_concurrent_streams)
            .max_pending_accept_reset_streams(self.max_pending_accept_reset_streams)
            .max_local_error_reset_streams(self.max_local_error_reset_streams)
            .max_header_list_size(self.max_header_list_size)
            .initial_stream_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_send_buf_size(self.max_send_buffer)
            .keep_alive_interval(self.keep_alive_interval)
            .keep_alive_timeout(self.keep_alive_timeout);
        builder
    }
}
