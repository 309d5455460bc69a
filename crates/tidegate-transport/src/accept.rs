//! Accepting connections, also when the machine is short of something.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until},
};

/// Pause after the first failure to accept.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// Longest pause: each failure in a row doubles the one before, up to this.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Accepts connections forever.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    /// How long the next pause will be.
    pause: Duration,
    /// Nothing is accepted before this.
    paused_until: Instant,
}

impl Acceptor {
    /// Accepts from `listener`.
    #[must_use]
    pub fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            pause: MIN_PAUSE,
            paused_until: Instant::now(),
        }
    }

    /// The next connection, and who it is from. When the process is out of descriptors or memory this
    /// pauses, longer each time: `accept` would fail at once again and again, and burn the processor that
    /// is needed to get out of it. Cancel safe.
    pub async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            sleep_until(self.paused_until).await;
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    self.pause = MIN_PAUSE;
                    return (stream, peer);
                }
                // The peer was gone before we looked: not our trouble.
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

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}
