//! The HTTP listener for operators: `/metrics`, `/healthz` and `/readyz`.
//!
//! It answers anyone, without credentials. So it is a listener of its own, which can be bound to an address that
//! clients do not reach.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use ::http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tidegate_transport::Acceptor;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{controls::Controls, metrics};

/// The most connections at once. Further ones wait in the kernel's queue. A scraper needs one.
const MAX_CONNECTIONS: usize = 32;

/// The time that a connection has to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The age at which a connection ends. A scraper that keeps its connection opens another.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(120);

/// The content type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

type TextResponse = Response<Full<Bytes>>;

/// The listener, bound to its address.
#[derive(Debug)]
pub(crate) struct HttpListener {
    acceptor: Acceptor,
    pub(crate) local_addr: SocketAddr,
}

impl HttpListener {
    pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self {
            local_addr: listener.local_addr()?,
            acceptor: Acceptor::new(listener),
        })
    }

    /// Serves forever. Dropping the future ends the connections.
    pub(crate) async fn serve(mut self, controls: Controls) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            // Before accepting: a connection that is accepted takes a file.
            let permit = Arc::clone(&room).acquire_owned().await;
            let (stream, _) = self.acceptor.accept().await;
            let controls = controls.clone();
            connections.spawn(async move {
                let _permit = permit;
                serve_connection(stream, controls).await;
            });
            // Drops the results of connections that have ended, which the set would keep.
            while connections.try_join_next().is_some() {}
        }
    }
}

async fn serve_connection(stream: TcpStream, controls: Controls) {
    let service = service_fn(|request| {
        let response = respond(&request, &controls);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(MAX_CONNECTION_AGE, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "HTTP connection ended"),
    }
}

fn respond(request: &Request<Incoming>, controls: &Controls) -> TextResponse {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text_response(
            StatusCode::METHOD_NOT_ALLOWED,
            PLAIN,
            "only GET and HEAD are served\n",
        );
    }
    match request.uri().path() {
        "/metrics" => scrape(controls),
        "/healthz" => text_response(StatusCode::OK, PLAIN, "alive\n"),
        "/readyz" if controls.is_ready() => text_response(StatusCode::OK, PLAIN, "ready\n"),
        "/readyz" => text_response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "draining\n"),
        _ => text_response(
            StatusCode::NOT_FOUND,
            PLAIN,
            "not found: the paths are /metrics, /healthz and /readyz\n",
        ),
    }
}

fn scrape(controls: &Controls) -> TextResponse {
    match metrics::text(controls) {
        Ok(text) => text_response(StatusCode::OK, OPEN_METRICS, text),
        Err(error) => {
            tracing::error!(%error, "cannot write metrics");
            text_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                PLAIN,
                "cannot write metrics\n",
            )
        }
    }
}

fn text_response(
    status: StatusCode,
    content_type: &'static str,
    text: impl Into<Bytes>,
) -> TextResponse {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
