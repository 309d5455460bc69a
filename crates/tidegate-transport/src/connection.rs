//! One connection, in one task with its streams.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    config::{Http2Config, Http2Engine},
    engine::Engine,
    hyper::Http2Task,
    preface::Prefaced,
    service::{BoxError, Http2Service, Serve},
};

/// A connection with a service: a future that serves requests and is ready when the connection has ended, with
/// an error if it did not end in good order. Dropping it closes the connection and drops its streams.
#[must_use = "futures do nothing unless polled"]
pub struct Connection(Pin<Box<dyn Serve + Send>>);

impl Connection {
    /// Makes a connection that serves the requests of `transport` with `service`.
    /// [`read_preface`](crate::read_preface) makes the transport.
    ///
    /// It does not set the options of a socket: see [`Http2Config::set_socket_options`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with time; polls, too.
    pub fn new<T, S>(transport: Prefaced<T>, service: S, config: &Http2Config) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Http2Service,
    {
        if config.engine == Http2Engine::Tidegate {
            let transport = transport.into_inner();
            return Self(Box::pin(Engine::new(transport, service, config.limits())));
        }
        Self(Box::pin(Http2Task::new(transport, service, config)))
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
