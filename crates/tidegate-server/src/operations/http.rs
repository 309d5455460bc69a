//! The HTTP listener for operators: `/metrics`, `/healthz` and `/readyz`.
//!
//! It answers anyone, without credentials. So it is a listener of its own, which can be bound to an address that
//! clients do not reach.
//!
//! # Whoever comes is answered
//! A probe that waits is a probe that fails, and the server would be restarted for it. So nobody waits for a place: when
//! all are taken, the connection that has asked for nothing for the longest time is closed for the newcomer, whether it
//! is kept open, silent, or reads its answer slowly. A probe asks at once, and so is the last to be closed.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ::http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tidegate_transport::{Acceptor, listen};
use tokio::{
    net::TcpStream,
    task::{AbortHandle, JoinSet, yield_now},
    time::timeout,
};

use super::{controls::Controls, metrics};

/// The most connections at once. A scraper needs one, and a probe one for a moment. Less than the descriptors that are
/// kept back from other connections.
const MAX_CONNECTIONS: usize = 16;

/// The time that a connection has to send its request, or its next one.
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

/// A connection that may be closed for a newcomer.
#[derive(Debug)]
struct Open {
    /// The number of its last request, or of its arrival: all are counted together.
    asked: Arc<AtomicU64>,
    task: AbortHandle,
}

impl HttpListener {
    pub(crate) fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = listen(address, None)?;
        Ok(Self {
            local_addr: listener.local_addr()?,
            acceptor: Acceptor::new(listener),
        })
    }

    /// Serves forever. Dropping the future ends the connections.
    pub(crate) async fn serve(&mut self, controls: Controls) {
        let mut tasks = JoinSet::new();
        let mut open: Vec<Open> = Vec::with_capacity(MAX_CONNECTIONS);
        let asked_in_all = Arc::new(AtomicU64::new(0));
        loop {
            let (stream, _) = self.acceptor.accept().await;
            // Drops the results of connections that have ended, which the set would keep.
            while tasks.try_join_next().is_some() {}
            open.retain(|connection| !connection.task.is_finished());
            if open.len() >= MAX_CONNECTIONS {
                let asked = |connection: &Open| connection.asked.load(Relaxed);
                let oldest = (0..open.len()).min_by_key(|i| asked(&open[*i]));
                open.swap_remove(oldest.expect("there is one")).task.abort();
            }
            let asked = Arc::new(AtomicU64::new(asked_in_all.fetch_add(1, Relaxed)));
            let note_request = {
                let (asked, asked_in_all) = (Arc::clone(&asked), Arc::clone(&asked_in_all));
                move || asked.store(asked_in_all.fetch_add(1, Relaxed), Relaxed)
            };
            let controls = controls.clone();
            let task = tasks.spawn(serve_connection(stream, controls, note_request));
            open.push(Open { asked, task });
            // Connections that wait to be accepted must not close the ones before them unread: those run first, and are
            // answered if they have asked.
            yield_now().await;
        }
    }
}

/// Serves a connection until it ends, and notes each request as it comes.
async fn serve_connection(stream: TcpStream, controls: Controls, note_request: impl Fn()) {
    let (controls, note_request) = (&controls, &note_request);
    let service = service_fn(|request| {
        note_request();
        async move {
            // One answer a turn: requests that come in a row would otherwise be answered in one, before anybody else.
            yield_now().await;
            Ok::<_, Infallible>(respond(&request, controls))
        }
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
