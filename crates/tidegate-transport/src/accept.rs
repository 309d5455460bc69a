//! Acceptance of connections, with pauses while the process is out of descriptors or memory.

use std::{future::poll_fn, io, net::SocketAddr, task::Poll, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, sleep_until},
};

/// Pause after the first failure to accept.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// Longest pause: each failure in a row doubles the one before, up to this.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Largest number of connections that are accepted in one turn. Accepting one takes some 10 us, so a storm of them holds
/// up the other work of the task for less than a millisecond.
const BATCH: usize = 64;

/// Listens on `address`, with a queue for `backlog` connections that were made and not accepted yet. `None` is as
/// many as the kernel allows (`net.core.somaxconn` on Linux), which also is the most there can be.
///
/// A queue that is full drops what comes, and each client that was dropped waits a second and more before it tries again.
/// So a short queue makes clients that come back at once, after a restart or when a network is back, wait for seconds while
/// the server is idle. The queue takes memory only for connections that are in it.
///
/// # Errors
/// When the address is taken or cannot be bound.
///
/// # Panics
/// When called outside of a tokio runtime with IO.
pub fn listen(address: SocketAddr, backlog: Option<u32>) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // As `TcpListener::bind` does: a server that restarts finds its port free although old connections linger. On
    // Windows the option would let two servers share a port.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    // The kernel takes a signed number, and lowers what is beyond its own limit.
    let most = i32::MAX.unsigned_abs();
    socket.listen(backlog.unwrap_or(most).min(most))
}

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

    /// The address that it listens on.
    ///
    /// # Errors
    /// When the operating system does not tell it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Waits for the next connection, and adds it to `batch` with its peer's address; then also those that are
    /// there already, up to 64 in all. Cancel safe.
    ///
    /// It fails as little as [`accept`](Self::accept).
    pub async fn accept_batch(&mut self, batch: &mut Vec<(TcpStream, SocketAddr)>) {
        batch.push(self.accept().await);
        // Nothing is awaited from here on, so what was accepted is not lost.
        for _ in 1..BATCH {
            let next = poll_fn(|cx| match self.listener.poll_accept(cx) {
                Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
                Poll::Pending => Poll::Ready(None),
            });
            match next.await {
                Some(Ok(accepted)) => batch.push(accepted),
                // The next call finds an error of the process again, and pauses.
                Some(Err(_)) | None => return,
            }
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

// How long the queue may be is up to the kernel.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::{task::JoinSet, time::timeout};

    use super::*;

    /// More than fit into the queue of 128 that a listener has by default.
    const STORM: usize = 400;

    /// Less than the second after which a kernel sends a dropped request to connect again.
    const AT_ONCE: Duration = Duration::from_millis(900);

    /// Connects [`STORM`] clients while nobody accepts. Returns those that got through at once.
    async fn storm(listener: &TcpListener) -> Vec<TcpStream> {
        let address = listener.local_addr().unwrap();
        let mut clients = JoinSet::new();
        for _ in 0..STORM {
            clients.spawn(timeout(AT_ONCE, TcpStream::connect(address)));
        }
        let connected = clients.join_all().await;
        connected
            .into_iter()
            .flatten()
            .map(Result::unwrap)
            .collect()
    }

    #[tokio::test]
    async fn a_storm_of_connections_fits_into_the_queue_and_is_accepted_in_batches() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let clients = storm(&listener).await;
        assert_eq!(clients.len(), STORM);
        let mut acceptor = Acceptor::new(listener);
        let (mut accepted, mut batches) = (Vec::new(), 0);
        while accepted.len() < STORM {
            let before = accepted.len();
            acceptor.accept_batch(&mut accepted).await;
            assert!((1..=BATCH).contains(&(accepted.len() - before)));
            batches += 1;
        }
        assert!(batches <= STORM / 8, "{batches} batches");
        let mut peers: Vec<_> = accepted.iter().map(|(_, peer)| *peer).collect();
        let mut locals: Vec<_> = clients.iter().map(|c| c.local_addr().unwrap()).collect();
        peers.sort();
        locals.sort();
        assert_eq!(peers, locals);
        // Nothing is left, and nothing was made up.
        let more = timeout(
            Duration::from_millis(20),
            acceptor.accept_batch(&mut accepted),
        );
        more.await.unwrap_err();
    }

    #[tokio::test]
    async fn a_queue_may_be_made_shorter() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), Some(8)).unwrap();
        assert!(storm(&listener).await.len() < STORM / 4);
        // The number has no sign for the kernel.
        listen("127.0.0.1:0".parse().unwrap(), Some(u32::MAX)).unwrap();
    }
}
