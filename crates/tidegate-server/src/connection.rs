//! One connection of the server: its handshake, its calls, its age, its end.

use std::{future::pending, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use tidegate::{Calls, CloseReason};
use tidegate_transport::{Connection, Http2Config, Prefaced, read_preface};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    network::{
        listener::Socket,
        tls::{Certificates, Tls, Transport},
    },
    routes::Routes,
};

/// Serves connections, each with the same limits.
#[derive(Debug)]
pub(crate) struct Connections {
    config: Http2Config,
    routes: Routes,
    /// `None` for connections without TLS.
    tls: Option<Arc<Tls>>,
    max_age: Option<Duration>,
    max_age_grace: Duration,
    /// Cancelled when connections are to end in good order.
    pub(crate) drain: CancellationToken,
    /// Cancelled when connections are to end at once.
    pub(crate) cut: CancellationToken,
}

impl Connections {
    pub(crate) fn new(
        config: Http2Config,
        routes: Routes,
        tls: Option<Arc<Tls>>,
        max_age: Option<Duration>,
        max_age_grace: Duration,
    ) -> Self {
        Self {
            config,
            routes,
            tls,
            max_age,
            max_age_grace,
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    /// Serves one connection until it ends or `cut` is cancelled. Returns whether it was cut by that.
    pub(crate) async fn serve(self: Arc<Self>, stream: Socket, peer: SocketAddr) -> bool {
        if let Err(error) = stream.set_options(&self.config) {
            tracing::debug!(%error, "connection lost before it began");
            return false;
        }
        // Boxed, so that its room is freed when it is done: the task would keep it as long as the connection lasts.
        let Some(begun) = Box::pin(self.handshake(stream)).await else {
            return false;
        };
        let (mut connection, calls) = self.connection(begun, peer);
        let mut old_age = pin!(sleep_or_forever(self.max_age.map(jittered)));
        let (mut drained, mut is_old) = (false, false);
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "connection ended");
                    }
                    return false;
                }
                // Without the guard it would be ready forever, and the loop would spin.
                () = self.drain.cancelled(), if !drained => {
                    calls.end(CloseReason::ShuttingDown);
                    connection.graceful_shutdown();
                    drained = true;
                }
                () = &mut old_age => {
                    if is_old {
                        tracing::debug!("connection cut: it did not end within the grace after its greatest age");
                        return false;
                    }
                    calls.end(CloseReason::MaxConnectionAge);
                    connection.graceful_shutdown();
                    is_old = true;
                    // The same timer measures the grace.
                    old_age.set(sleep_or_forever(Some(self.max_age_grace)));
                }
                () = self.cut.cancelled() => return true,
            }
        }
    }

    // Not part of `serve`, whose future would keep its temporaries as long as the connection lasts.
    fn connection(
        &self,
        (begun, certificates): (Prefaced<Transport>, Option<Certificates>),
        peer: SocketAddr,
    ) -> (Connection, Calls) {
        let (service, calls) = self.routes.for_connection(peer, certificates);
        (Connection::new(begun, service, &self.config), calls)
    }

    /// Waits for the TLS handshake, if there is TLS, and the HTTP/2 preface. One time-out covers both, and a drain ends
    /// the wait: nothing was asked of the server yet.
    async fn handshake(
        &self,
        stream: Socket,
    ) -> Option<(Prefaced<Transport>, Option<Certificates>)> {
        let begun = async {
            let transport = match &self.tls {
                Some(tls) => tls.accept(stream).await?,
                None => Transport::Plain(stream),
            };
            let certificates = transport.certificates();
            io::Result::Ok((read_preface(transport).await?, certificates))
        };
        tokio::select! {
            begun = timeout(self.config.preface_timeout, begun) => match begun {
                Ok(Ok(begun)) => return Some(begun),
                Ok(Err(error)) => tracing::debug!(%error, "connection ended before it began"),
                Err(_) => tracing::debug!("connection ended: no handshake or preface came in time"),
            },
            () = self.drain.cancelled() => {}
        }
        None
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
