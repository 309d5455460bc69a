//! Accepting connections, also when the machine is short of something.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until},
};

/// The first pause after a failure to accept, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

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
            pause: PAUSE.0,
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
                    self.pause = PAUSE.0;
                    return (stream, peer);
                }
                // The peer was gone before we looked: not our trouble.
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, pause = ?self.pause, "cannot accept connections; pausing");
                    self.paused_until = Instant::now() + self.pause;
                    self.pause = (self.pause * 2).min(PAUSE.1);
                }
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}
