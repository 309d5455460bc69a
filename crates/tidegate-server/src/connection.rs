//! One connection of the server: its handshake, its calls, its age, its end.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tidegate::{Calls, CloseReason};
use tidegate_transport::{Connection, Http2Config, Prefaced, read_preface};
use tokio::time::{Sleep, sleep, timeout};

use crate::{
    error::in_full,
    network::{
        admission::ConnectionPermit,
        listener::{self, PeerAddress, Socket},
        metered::{Metered, Traffic},
        tls::{self, Certificates, Tls, Transport},
    },
    routes::Routes,
    stage::{Follower, Stage, Stages},
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
    /// Whether they are to end, and how soon.
    pub(crate) stages: Arc<Stages>,
}

/// A connection that has begun, its protocol, and the certificates of its client.
type Begun = (Prefaced<Transport>, &'static str, Option<Certificates>);

/// A wait for a connection to begin, with the reason if it does not. In a box, so that its room is freed when it is over.
type Beginning = Pin<Box<dyn Future<Output = Result<Begun, String>> + Send>>;

/// One connection from its acceptance to its end: a future that is ready when it has ended, and counts it if it was cut.
///
/// It is the task of the connection, and written by hand: an `async` block keeps room for what its parts were made of, which
/// was half of it.
pub(crate) struct Serving {
    // First, because fields are dropped in order: there is room for another connection when this one has gone.
    phase: Phase,
    connections: Arc<Connections>,
    follower: Follower,
    peer: SocketAddr,
    accepted: Instant,
    cut: Arc<AtomicUsize>,
    _permit: ConnectionPermit,
}

enum Phase {
    Beginning(Beginning),
    Served(Served),
    Ended,
}

/// A connection that is served.
struct Served {
    connection: Connection,
    calls: Calls,
    /// When it is as old as it may be, and then when its grace is over. In a box, because most servers set no age.
    old_age: Option<Pin<Box<Sleep>>>,
    is_draining: bool,
    is_old: bool,
}

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
            stages: Arc::default(),
        }
    }

    /// Serves one connection, which has its place by a permit. Adds it to `cut` if it ends by being cut.
    pub(crate) fn serve(
        self: Arc<Self>,
        stream: Socket,
        peer: SocketAddr,
        permit: ConnectionPermit,
        cut: Arc<AtomicUsize>,
    ) -> Serving {
        tracing::debug!(peer = %PeerAddress(peer), "connection accepted");
        let beginning = Arc::clone(&self).begin(stream);
        Serving {
            phase: Phase::Beginning(Box::pin(beginning)),
            follower: Arc::clone(&self.stages).follow(),
            connections: self,
            peer,
            accepted: Instant::now(),
            cut,
            _permit: permit,
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

    fn served(&self, begun: Begun, peer: SocketAddr) -> Served {
        let (transport, protocol, certificates) = begun;
        let routes = &self.routes;
        let (service, calls) = routes.for_connection(peer, protocol, certificates);
        Served {
            connection: Connection::new(transport, service, &self.config),
            calls,
            old_age: self.max_age.map(|age| Box::pin(sleep(jittered(age)))),
            is_draining: false,
            is_old: false,
        }
    }

    /// Sets the options of a socket, and waits for the TLS handshake, if there is TLS, and the HTTP/2 preface. One time-out
    /// covers both.
    ///
    /// # Errors
    /// The reason why the connection ends before it began.
    async fn begin(self: Arc<Self>, stream: Socket) -> Result<Begun, String> {
        if let Err(error) = listener::set_options(&stream, &self.config) {
            if !is_of_the_peer(&error) {
                self.tell_of_options(&error);
            }
            return Err(format!("lost before it began: {error}"));
        }
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
        match timeout(self.config.preface_timeout, begun).await {
            Ok(Ok(begun)) => Ok(begun),
            Ok(Err(error)) => Err(format!("before it began: {error}")),
            Err(_) => Err("no handshake or preface came in time".into()),
        }
    }
}

impl Serving {
    /// Ready when the connection has ended, with the reason if it was not in good order.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        let stage = self.follower.poll(cx);
        if let Phase::Beginning(beginning) = &mut self.phase {
            if stage != Stage::Serving {
                // Nothing was asked of the server yet.
                return Poll::Ready(Some("a drain came before it began".into()));
            }
            match ready!(beginning.as_mut().poll(cx)) {
                Ok(begun) => self.phase = Phase::Served(self.connections.served(begun, self.peer)),
                Err(reason) => return Poll::Ready(Some(reason)),
            }
        }
        let Phase::Served(served) = &mut self.phase else {
            return Poll::Ready(None);
        };
        match stage {
            Stage::Serving => {}
            Stage::Draining => served.drain(),
            Stage::Cut => {
                self.cut.fetch_add(1, Relaxed);
                return Poll::Ready(Some("cut at the end of the drain".into()));
            }
        }
        if served
            .poll_age(self.connections.max_age_grace, cx)
            .is_ready()
        {
            let reason = "it did not end within the grace after its greatest age";
            return Poll::Ready(Some(reason.into()));
        }
        let ended = ready!(Pin::new(&mut served.connection).poll(cx));
        Poll::Ready(ended.err().map(|error| in_full(&*error)))
    }
}

impl Future for Serving {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let serving = self.get_mut();
        let reason = ready!(serving.poll_end(cx));
        // It is gone when that is logged.
        serving.phase = Phase::Ended;
        let seconds = serving.accepted.elapsed().as_secs_f64();
        tracing::debug!(peer = %PeerAddress(serving.peer), seconds, reason, "connection ended");
        Poll::Ready(())
    }
}

impl Served {
    fn drain(&mut self) {
        if !self.is_draining {
            self.is_draining = true;
            self.end(CloseReason::ShuttingDown);
        }
    }

    /// Ready when the grace after its greatest age is over.
    fn poll_age(&mut self, grace: Duration, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(old_age) = &mut self.old_age {
            ready!(old_age.as_mut().poll(cx));
            if self.is_old {
                return Poll::Ready(());
            }
            self.is_old = true;
            old_age.set(sleep(grace));
            self.end(CloseReason::MaxConnectionAge);
        }
        Poll::Pending
    }

    /// Tells its streams why they end, and has it end with the last of them.
    fn end(&mut self, reason: CloseReason) {
        self.calls.end(reason);
        self.connection.graceful_shutdown();
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

/// `age`, give or take a random tenth, as gRFC A9 has it: connections that began together must not come back together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + 0.2 * fastrand::f64())
}
