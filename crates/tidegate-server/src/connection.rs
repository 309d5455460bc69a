//! One connection of the server: its handshake, its calls, its age, its end.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tidegate::{Calls, CloseReason};
use tidegate_transport::{Connection, Http2Config, Prefaced, read_preface};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    error::in_full,
    network::{
        listener::{self, PeerAddress, Socket},
        metered::{Metered, Traffic},
        tls::{self, Certificates, Tls, Transport},
    },
    routes::Routes,
};

/// Least time between two lines about refused options of sockets.
const OPTIONS_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Serves connections, each with the same limits.
#[derive(Debug)]
pub(crate) struct Connections {
    config: Http2Config,
    routes: Routes,
    /// `None` for connections without TLS.
    tls: Option<Arc<Tls>>,
    max_age: Option<Duration>,
    max_age_grace: Duration,
    /// The count of their bytes.
    traffic: Arc<Traffic>,
    /// The time when refused options of a socket were last logged.
    told_of_options: Mutex<Option<Instant>>,
    /// Cancelled when connections are to end in good order.
    pub(crate) drain: CancellationToken,
    /// Cancelled when connections are to end at once.
    pub(crate) cut: CancellationToken,
}

/// A connection that has begun, its protocol, and the certificates of its client.
type Begun = (Prefaced<Transport>, &'static str, Option<Certificates>);

impl Connections {
    pub(crate) fn new(
        config: Http2Config,
        routes: Routes,
        tls: Option<Arc<Tls>>,
        max_age: Option<Duration>,
        max_age_grace: Duration,
        traffic: Arc<Traffic>,
    ) -> Self {
        Self {
            config,
            routes,
            tls,
            max_age,
            max_age_grace,
            traffic,
            told_of_options: Mutex::default(),
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    /// Serves one connection until it ends or `cut` is cancelled. Returns whether it was cut by that.
    pub(crate) async fn serve(self: Arc<Self>, stream: Socket, peer: SocketAddr) -> bool {
        let began = Instant::now();
        let name = PeerAddress(peer);
        tracing::debug!(peer = %name, "connection accepted");
        let (is_cut, reason) = self.serve_to_the_end(stream, peer).await;
        let seconds = began.elapsed().as_secs_f64();
        tracing::debug!(peer = %name, seconds, reason, "connection ended");
        is_cut
    }

    /// Serves one connection. Returns whether it was cut, and why it ended, if not in good order.
    async fn serve_to_the_end(&self, stream: Socket, peer: SocketAddr) -> (bool, Option<String>) {
        if let Err(error) = listener::set_options(&stream, &self.config) {
            if !is_of_the_peer(&error) {
                self.tell_of_options(&error);
            }
            return (false, Some(format!("lost before it began: {error}")));
        }
        // Boxed, so that its room is freed when it is done: the task would keep it as long as the connection lasts.
        let begun = match Box::pin(self.handshake(stream)).await {
            Ok(begun) => begun,
            Err(reason) => return (false, Some(reason)),
        };
        let (mut connection, calls) = self.connection(begun, peer);
        let mut old_age = pin!(sleep_or_forever(self.max_age.map(jittered)));
        let (mut drained, mut is_old) = (false, false);
        loop {
            tokio::select! {
                ended = &mut connection => return (false, ended.err().map(|error| in_full(&*error))),
                // Without the guard it would be ready forever, and the loop would spin.
                () = self.drain.cancelled(), if !drained => {
                    calls.end(CloseReason::ShuttingDown);
                    connection.graceful_shutdown();
                    drained = true;
                }
                () = &mut old_age => {
                    if is_old {
                        let reason = "it did not end within the grace after its greatest age";
                        return (false, Some(reason.into()));
                    }
                    calls.end(CloseReason::MaxConnectionAge);
                    connection.graceful_shutdown();
                    is_old = true;
                    // The same timer measures the grace.
                    old_age.set(sleep_or_forever(Some(self.max_age_grace)));
                }
                () = self.cut.cancelled() => return (true, Some("cut at the end of the drain".into())),
            }
        }
    }

    /// Logs that options of a socket were refused, which is no fault of its peer and the end of every connection. Once in a
    /// while: a flood of connections must not become a flood of logs.
    fn tell_of_options(&self, error: &io::Error) {
        let mut told = self
            .told_of_options
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= OPTIONS_TOLD_EVERY) {
            *told = Some(Instant::now());
            tracing::error!(
                %error,
                "the system refuses the options of a socket, so its connection is closed; it will be so for every other: \
                 look at http2.tcp_user_timeout and http2.tcp_notsent_lowat, and at the sandbox that the server is in"
            );
        }
    }

    // Not part of `serve`, whose future would keep its temporaries as long as the connection lasts.
    fn connection(
        &self,
        (begun, protocol, certificates): Begun,
        peer: SocketAddr,
    ) -> (Connection, Calls) {
        let routes = &self.routes;
        let (service, calls) = routes.for_connection(peer, protocol, certificates);
        (Connection::new(begun, service, &self.config), calls)
    }

    /// Waits for the TLS handshake, if there is TLS, and the HTTP/2 preface. One time-out covers both, and a drain ends
    /// the wait: nothing was asked of the server yet.
    ///
    /// # Errors
    /// The reason why the connection ends before it began.
    async fn handshake(&self, stream: Socket) -> Result<Begun, String> {
        let stream = Metered::new(stream, Arc::clone(&self.traffic));
        let begun = async {
            let transport = match &self.tls {
                Some(tls) => tls.accept(stream).await?,
                None => Transport::Left(stream),
            };
            let certificates = tls::client_certificates(&transport);
            let protocol = tls::protocol(&transport);
            io::Result::Ok((read_preface(transport).await?, protocol, certificates))
        };
        tokio::select! {
            begun = timeout(self.config.preface_timeout, begun) => match begun {
                Ok(Ok(begun)) => Ok(begun),
                Ok(Err(error)) => Err(format!("before it began: {error}")),
                Err(_) => Err("no handshake or preface came in time".into()),
            },
            () = self.drain.cancelled() => Err("a drain came before it began".into()),
        }
    }
}

/// Whether an error of a socket's options says that the peer has gone. macOS calls that an invalid argument.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, InvalidInput, NotConnected,
    };

    match error.kind() {
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected => true,
        InvalidInput => !cfg!(target_os = "linux"),
        _ => false,
    }
}

async fn sleep_or_forever(duration: Option<Duration>) {
    match duration {
        Some(duration) => sleep(duration).await,
        None => pending().await,
    }
}

/// `age`, give or take a random tenth, as gRFC A9 has it: connections that began together must not come back together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + 0.2 * fastrand::f64())
}
