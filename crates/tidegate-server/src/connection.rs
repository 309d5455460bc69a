//! One connection: HTTP/2 by hyper, with every limit set.

use std::{
    future::{pending, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::SockRef;
use tidegate::{Calls, CloseReason};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use crate::{
    coalesce::{Flusher, Gathering, coalesce},
    config::Http2Config,
    driver::{Driver, StreamExecutor},
    preface::{Begun, begin},
    routes::{ConnectionRoutes, Routes},
    tls::{Certificates, Tls, Transport},
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
    /// Told to end in good order.
    pub(crate) drain: CancellationToken,
    /// Told to end at once.
    pub(crate) cut: CancellationToken,
}

/// What is beneath HTTP/2.
type TimedTransport = Pin<Box<TimeoutStream<Begun<Transport>>>>;

/// A connection whose preface has come.
struct Served {
    connection: http2::Connection<
        TokioIo<Gathering<TimedTransport>>,
        TowerToHyperService<ConnectionRoutes>,
        StreamExecutor,
    >,
    flusher: Flusher<TimedTransport>,
    driver: Driver,
    calls: Calls,
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

    /// Serves one connection until it ends, and in any case until it is cut. Returns whether it was.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) -> bool {
        if let Err(error) = set_options(&stream, &self.config) {
            tracing::debug!(%error, "connection lost before it began");
            return false;
        }
        let Some(begun) = self.begin(stream).await else {
            return false;
        };
        let Served {
            connection,
            mut flusher,
            mut driver,
            calls,
        } = self.served(begun, peer);
        let mut connection = pin!(connection);
        let mut old_age = pin!(sleep_or_forever(self.max_age.map(jittered)));
        let (mut drained, mut is_old) = (false, false);
        loop {
            tokio::select! {
                ended = poll_fn(|cx| driver.poll(connection.as_mut(), &mut flusher, cx)) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended");
                    }
                    return false;
                }
                () = self.drain.cancelled(), if !drained => {
                    calls.end(CloseReason::ShuttingDown);
                    connection.as_mut().graceful_shutdown();
                    driver.poll_connection();
                    drained = true;
                }
                () = &mut old_age => {
                    if is_old {
                        tracing::debug!("connection cut: it did not end within the grace for its age");
                        return false;
                    }
                    calls.end(CloseReason::MaxConnectionAge);
                    connection.as_mut().graceful_shutdown();
                    driver.poll_connection();
                    is_old = true;
                    old_age.set(sleep_or_forever(Some(self.max_age_grace)));
                }
                () = self.cut.cancelled() => return true,
            }
        }
    }

    // Apart from `serve`, whose future would keep what is only needed here for as long as the connection lasts.
    fn served(
        &self,
        (begun, certificates): (Begun<Transport>, Option<Certificates>),
        peer: SocketAddr,
    ) -> Served {
        let (service, calls) = self.routes.for_connection(peer, certificates);
        let mut stream = TimeoutStream::new(begun);
        stream.set_write_timeout(Some(self.config.write_timeout));
        let (stream, flusher) = coalesce(Box::pin(stream));
        let (driver, streams) = Driver::new();
        let builder = self.config.builder(streams);
        Served {
            connection: builder
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)),
            flusher,
            driver,
            calls,
        }
    }

    /// Waits for the TLS handshake, if there is to be one, and the preface, as long as their time-out allows
    /// and no drain begins.
    async fn begin(&self, stream: TcpStream) -> Option<(Begun<Transport>, Option<Certificates>)> {
        let begun = async {
            let transport = match &self.tls {
                Some(tls) => tls.accept(stream).await?,
                None => Transport::Plain(stream),
            };
            let certificates = transport.certificates();
            io::Result::Ok((begin(transport).await?, certificates))
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

impl Http2Config {
    fn builder(&self, streams: StreamExecutor) -> http2::Builder<StreamExecutor> {
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

async fn sleep_or_forever(duration: Option<Duration>) {
    match duration {
        Some(duration) => sleep(duration).await,
        None => pending().await,
    }
}

/// `age`, give or take a tenth (gRFC A9).
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + 0.2 * fastrand::f64())
}

fn set_options(stream: &TcpStream, config: &Http2Config) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(config.tcp_user_timeout))?;
        socket.set_tcp_notsent_lowat(config.tcp_notsent_lowat)?;
    }
    Ok(())
}
