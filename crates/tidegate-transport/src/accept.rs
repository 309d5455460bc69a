//! Acceptance of connections, with pauses while the process is out of descriptors or memory.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until},
};

/// Pause after the first failure to accept.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// Longest pause: each failure in a row doubles the one before, up to this.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Acceptor of connections that never fails.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    /// Length of the next pause.
    pause: Duration,
    /// Time before which nothing is accepted. A field, so that a dropped `accept` does not cut the pause short.
    paused_until: Instant,
}

impl Acceptor {
    /// Makes an acceptor of the connections of `listener`.
    #[must_use]
    pub fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            pause: MIN_PAUSE,
            paused_until: Instant::now(),
        }
    }

    /// Waits for the next connection, and returns it with its peer's address. Cancel safe.
    ///
    /// When the process is out of descriptors or memory it pauses, from 10 ms on and twice as long each time,
    /// up to 1 s. Without a pause `accept` would fail again at once, and burn the processor time that is needed
    /// to recover.
    pub async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            sleep_until(self.paused_until).await;
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    self.pause = MIN_PAUSE;
                    return (stream, peer);
                }
                // The peer was gone before its connection was accepted. The next one may be fine.
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, pause = ?self.pause, "cannot accept connections; pausing");
                    self.paused_until = Instant::now() + self.pause;
                    self.pause = (self.pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }
}

/// Whether an error of `accept` is about the connection and not about the process.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}
