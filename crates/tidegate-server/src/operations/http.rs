//! The HTTP listener for those who watch the server: `/metrics`, `/healthz` and `/readyz`.
//!
//! It is a listener of its own, so that it can be bound to an address that clients do not reach: it asks nobody who
//! they are.

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

/// Connections at once; who comes beyond waits. A scraper needs one.
const MAX_CONNECTIONS: usize = 32;

/// How long a request may take to come.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one connection may be there. A scraper that keeps its connection makes another.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(120);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

type TextResponse = Response<Full<Bytes>>;

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

    /// Serves forever. When it is dropped, its connections end.
    pub(crate) async fn serve(mut self, controls: Controls) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let permit = Arc::clone(&room).acquire_owned().await;
            let (stream, _) = self.acceptor.accept().await;
            let controls = controls.clone();
            connections.spawn(async move {
                let _permit = permit;
                serve_connection(stream, controls).await;
            });
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
            "only GET is served\n",
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
            "there are /metrics, /healthz and /readyz\n",
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
