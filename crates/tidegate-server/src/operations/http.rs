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

/// How long a request may take to come, and one connection to be there. A scraper that keeps its connection makes
/// another.
const TIMES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(120));

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

type Answer = Response<Full<Bytes>>;

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
        let answer = answer(&request, &controls);
        async { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TIMES.0)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(TIMES.1, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "HTTP connection ended"),
    }
}

fn answer(request: &Request<Incoming>, controls: &Controls) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return say(
            StatusCode::METHOD_NOT_ALLOWED,
            PLAIN,
            "only GET is served\n",
        );
    }
    match request.uri().path() {
        "/metrics" => scrape(controls),
        "/healthz" => say(StatusCode::OK, PLAIN, "alive\n"),
        "/readyz" if controls.is_ready() => say(StatusCode::OK, PLAIN, "ready\n"),
        "/readyz" => say(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "draining\n"),
        _ => say(
            StatusCode::NOT_FOUND,
            PLAIN,
            "there are /metrics, /healthz and /readyz\n",
        ),
    }
}

fn scrape(controls: &Controls) -> Answer {
    match metrics::text(controls) {
        Ok(text) => say(StatusCode::OK, OPEN_METRICS, text),
        Err(error) => {
            tracing::error!(%error, "cannot write metrics");
            say(
                StatusCode::INTERNAL_SERVER_ERROR,
                PLAIN,
                "cannot write metrics\n",
            )
        }
    }
}

fn say(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
