//! A server: one service on the connections of a listener.

use std::{future::Future, pin::pin, sync::Arc};

use http::Request;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected as _;
use tower::ServiceExt as _;

use crate::{
    accept::Acceptor, config::Http2Config, connection::Connection, preface::read_preface,
    request_body::RequestBody, service::Http2Service,
};

/// Server of one service, such as `tonic::service::Routes`, on the connections of a listener. See [the crate](crate).
#[derive(Debug, Clone)]
pub struct Server {
    http2: Arc<Http2Config>,
}

impl Server {
    /// Makes a server whose connections have the limits of `http2`.
    #[must_use]
    pub fn new(http2: Http2Config) -> Self {
        Self {
            http2: Arc::new(http2),
        }
    }

    /// Serves until `shutdown` is ready. Then it closes the listener, tells the peer of each connection to
    /// begin no more calls, and waits until the open ones have ended. Streams of a hub end when the hub is
    /// closed; see `serve_until` of a typed hub.
    ///
    /// The request of each call has tonic's `TcpConnectInfo` in its extensions.
    ///
    /// Dropping the future aborts every connection the next time its task is scheduled.
    pub async fn serve(
        self,
        listener: TcpListener,
        service: impl Http2Service,
        shutdown: impl Future<Output = ()>,
    ) {
        let mut acceptor = Acceptor::new(listener);
        let mut connections = JoinSet::new();
        let drain = CancellationToken::new();
        let mut shutdown = pin!(shutdown);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                () = acceptor.accept_batch(&mut batch) => {
                    for (stream, _) in batch.drain(..) {
                        let http2 = Arc::clone(&self.http2);
                        connections.spawn(connection(stream, service.clone(), http2, drain.clone()));
                    }
                }
                Some(_) = connections.join_next() => {}
                () = &mut shutdown => break,
            }
        }
        drop(acceptor);
        drain.cancel();
        while connections.join_next().await.is_some() {}
    }
}

/// Serves one connection until it ends.
async fn connection(
    stream: TcpStream,
    service: impl Http2Service,
    http2: Arc<Http2Config>,
    drain: CancellationToken,
) {
    if let Err(error) = http2.set_socket_options(&stream) {
        tracing::debug!(%error, "connection lost before its preface");
        return;
    }
    // tonic's own server puts it there too: `Request::remote_addr` is read from it.
    let info = stream.connect_info();
    let service = service.map_request(move |mut request: Request<RequestBody>| {
        request.extensions_mut().insert(info.clone());
        request
    });
    let prefaced = tokio::select! {
        prefaced = timeout(http2.preface_timeout, read_preface(stream)) => prefaced,
        () = drain.cancelled() => return,
    };
    let prefaced = match prefaced {
        Ok(Ok(prefaced)) => prefaced,
        Ok(Err(error)) => return tracing::debug!(%error, "connection ended before its preface"),
        Err(_) => return tracing::debug!("connection ended: its preface did not arrive in time"),
    };
    let mut connection = Connection::new(prefaced, service, &http2);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = drain.cancelled() => {
            connection.graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "connection ended");
    }
}
