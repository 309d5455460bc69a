//! One connection: HTTP/2 by hyper, in one task with its streams.
//!
//! From the bottom up it is a transport whose preface was read, a timeout for writes, a buffer that makes one
//! write of a turn, and hyper. The driver polls hyper and the futures of its streams.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::{body::Incoming, server::conn::http2, service::HttpService};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_io_timeout::TimeoutStream;

use crate::{
    coalesce::{Coalesced, Flusher, coalesce},
    config::Http2Config,
    driver::{Driver, StreamExecutor},
    linger::Lingering,
    observed::ObservedService,
    preface::{PREFACE, Prefaced},
    service::{BoxError, Http2Service},
    watch::Watch,
};

/// A connection with a service: a future that serves requests and is ready when the connection has ended, with
/// an error if it did not end in good order. Dropping it closes the connection and drops its streams.
#[must_use = "futures do nothing unless polled"]
pub struct Connection(Pin<Box<dyn Serve + Send>>);

/// Methods of a [`Connection`], whatever its transport and its service.
trait Serve {
    /// Runs one turn of the driver.
    fn poll_turn(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>>;

    fn graceful_shutdown(self: Pin<&mut Self>);
}

/// Transport beneath HTTP/2, with a timeout for writes. Boxed because the timer in it has to be pinned, and the
/// connection and the flusher share it.
type TimedTransport<T> = Pin<Box<TimeoutStream<Prefaced<T>>>>;

type Http2<T, S> = http2::Connection<TokioIo<Coalesced<TimedTransport<T>>>, S, StreamExecutor>;

pin_project! {
    struct Http2Task<T, S>
    where
        S: HttpService<Incoming>,
    {
        // First, because fields are dropped in order: a peer that sees the connection close finds its streams gone.
        driver: Driver,
        #[pin]
        http2: Http2<T, S>,
        flusher: Flusher<TimedTransport<T>>,
        // Result of the connection, while its streams are dropped.
        ended: Option<Result<(), hyper::Error>>,
    }
}

impl Connection {
    /// Makes a connection that serves the requests of `transport` with `service`.
    /// [`read_preface`](crate::read_preface) makes the transport.
    ///
    /// It does not set the options of a socket: see [`Http2Config::set_socket_options`].
    ///
    /// # Panics
    /// When polled outside of a tokio runtime with time.
    pub fn new<T, S>(transport: Prefaced<T>, service: S, config: &Http2Config) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Http2Service,
    {
        let mut transport = TimeoutStream::new(transport);
        transport.set_write_timeout(Some(config.write_timeout));
        let watch = Watch::new(PREFACE.len(), config.flood_limits());
        let (transport, flusher) = coalesce(Box::pin(transport), watch);
        let (driver, streams) = Driver::new();
        let lingering = Lingering::new(streams.clone(), config.max_concurrent_streams);
        let service = TowerToHyperService::new(ObservedService { service, lingering });
        let builder = config.builder(streams);
        Self(Box::pin(Http2Task {
            http2: builder.serve_connection(TokioIo::new(transport), service),
            flusher,
            driver,
            ended: None,
        }))
    }

    /// Begins to end in good order: the peer is told to begin no more streams, and the connection ends with the last of
    /// those that are open. It does nothing to these; streams of a hub end when the hub is closed.
    pub fn graceful_shutdown(&mut self) {
        self.0.as_mut().graceful_shutdown();
    }
}

impl Future for Connection {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll_turn(cx)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl<T, S> Serve for Http2Task<T, TowerToHyperService<ObservedService<S>>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Http2Service,
{
    fn poll_turn(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let task = self.project();
        if task.ended.is_none() {
            let ended = ready!(task.driver.poll(task.http2, task.flusher, cx));
            *task.ended = Some(ended);
        }
        ready!(task.driver.poll_end(cx));
        let ended = task.ended.take().expect("it was set above");
        Poll::Ready(ended.map_err(Into::into))
    }

    fn graceful_shutdown(self: Pin<&mut Self>) {
        let task = self.project();
        if task.ended.is_some() {
            return;
        }
        // It changes hyper's state and wakes nobody, so the poll that sends GOAWAY has to be scheduled.
        task.http2.graceful_shutdown();
        task.driver.schedule_connection();
    }
}
