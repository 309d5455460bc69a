//! A service with its own messages over a typed hub, as a team would write it, and helpers for tests to serve and to
//! call it.

mod counted;
mod program;

use std::{env, future::Future, net::SocketAddr, num::NonZeroU64, time::Duration};

use tidegate::{
    Limits, Position,
    typed::{Hub, Publication, Shutdown, Subscription, Unfinished},
};
use tidegate_transport::{Http2Config, Http2Engine};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status, Streaming,
    service::Routes,
    transport::{Channel, Endpoint, Server},
};

pub use counted::Counted;
pub use program::Program;

/// Generated from `proto/feed.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    clippy::use_self,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("feed.v1");
}

use proto::{
    OnLoss, ServerEvent, WatchRequest,
    feed_client::FeedClient,
    feed_server::{Feed, FeedServer},
};

/// The timeout of a step of a test: long enough for a loaded machine. A test that passes never waits for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The service: two hubs, one for the message of each method.
#[derive(Debug, Clone)]
pub struct Service {
    /// Feeds `Watch`.
    pub hub: Hub<ServerEvent>,
    /// Feeds `WatchCounted`.
    pub counted: Hub<Counted>,
}

/// A service that runs on a free port.
#[derive(Debug)]
pub struct Running {
    /// The address of the server.
    pub address: SocketAddr,
    /// Feeds `Watch`.
    pub hub: Hub<ServerEvent>,
    /// Feeds `WatchCounted`.
    pub counted: Hub<Counted>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), Unfinished>>,
}

#[tonic::async_trait]
impl Feed for Service {
    type WatchStream = Subscription<ServerEvent>;
    type WatchCountedStream = Subscription<Counted>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let mut subscription = self.hub.subscribe().topics(request.topics.clone());
        if !request.client_id.is_empty() {
            subscription = subscription.client_id(&*request.client_id);
        }
        if let Some(max_events) = NonZeroU64::new(request.max_events) {
            let max_bytes = NonZeroU64::MAX;
            subscription = subscription.limits(Limits {
                max_events,
                max_bytes,
                ..Limits::default()
            });
        }
        if request.epoch != 0 {
            subscription = subscription.resume_after(Some(Position {
                epoch: request.epoch,
                sequence: request.sequence,
            }));
        }
        let subscription = match request.on_loss() {
            OnLoss::Tell => subscription.on_loss(|gap| Some(missed(gap.count))),
            OnLoss::Fail => subscription
                .fail_on_loss(|gap| Status::data_loss(format!("{} are missing", gap.count))),
            OnLoss::Ignore => subscription.ignore_losses(),
        };
        Ok(Response::new(subscription.open()?))
    }

    async fn watch_counted(
        &self,
        _: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchCountedStream>, Status> {
        let subscription = self.counted.subscribe().ignore_losses();
        Ok(Response::new(subscription.open()?))
    }
}

impl Running {
    /// Serves `hub` with tonic's own server.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn start(hub: Hub<ServerEvent>) -> Self {
        Self::start_with_grace(hub, PATIENCE).await
    }

    /// Serves `hub` with tonic's own server, which is aborted if it has not ended `grace` after the stop.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn start_with_grace(hub: Hub<ServerEvent>, grace: Duration) -> Self {
        Self::begin(hub, grace, |listener, service, shutdown| async {
            let served = Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown);
            served.await.unwrap();
        })
        .await
    }

    /// Serves `hub` by the crate `tidegate-transport`. [`http2`] has a configuration for it.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn start_on_transport(hub: Hub<ServerEvent>, http2: Http2Config) -> Self {
        Self::begin(hub, PATIENCE, |listener, service, shutdown| {
            tidegate_transport::Server::new(http2).serve(listener, Routes::new(service), shutdown)
        })
        .await
    }

    async fn begin<F>(
        hub: Hub<ServerEvent>,
        grace: Duration,
        serve: impl FnOnce(TcpListener, FeedServer<Service>, Shutdown) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counted = Hub::new();
        let service = FeedServer::new(Service {
            hub: hub.clone(),
            counted: counted.clone(),
        });
        let (stop, stopped) = oneshot::channel();
        let serving = hub.clone();
        let served = tokio::spawn(async move {
            let stopped = async { _ = stopped.await };
            let serve = |shutdown| serve(listener, service, shutdown);
            serving.serve_until(stopped, grace, serve).await
        });
        Self {
            address,
            hub,
            counted,
            stop,
            served,
        }
    }

    /// Returns a client with a connection of its own.
    ///
    /// # Panics
    /// If it cannot connect.
    pub async fn client(&self) -> FeedClient<Channel> {
        FeedClient::new(self.endpoint().connect().await.unwrap())
    }

    /// Returns a client whose streams have a window of 64 KiB.
    ///
    /// # Panics
    /// If it cannot connect.
    pub async fn client_with_small_windows(&self) -> FeedClient<Channel> {
        let endpoint = self.endpoint().initial_stream_window_size(65_535);
        FeedClient::new(endpoint.connect().await.unwrap())
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap()
    }

    /// Stops the server.
    ///
    /// # Errors
    /// If the server has not ended within its grace.
    ///
    /// # Panics
    /// If stopping takes too long, or the server failed.
    pub async fn stop(self) -> Result<(), Unfinished> {
        self.stop.send(()).unwrap();
        within_patience(self.served).await.unwrap()
    }
}

/// The message in place of events that a client has lost.
#[must_use]
pub fn missed(missed: u64) -> ServerEvent {
    ServerEvent {
        missed,
        ..ServerEvent::default()
    }
}

/// Returns an event with a text.
pub fn text(text: impl Into<String>) -> ServerEvent {
    ServerEvent {
        text: text.into(),
        ..ServerEvent::default()
    }
}

/// Returns an event with a text, for a topic.
pub fn on(topic: &str, value: &str) -> Publication<ServerEvent> {
    Publication::new(text(value)).topic(topic)
}

/// Returns a request for one topic.
pub fn watch(topic: &str) -> WatchRequest {
    WatchRequest {
        topics: vec![topic.into()],
        ..WatchRequest::default()
    }
}

/// Returns the next message of a stream.
///
/// # Errors
/// The status with which the stream has ended.
///
/// # Panics
/// If nothing comes, or the stream ends with OK.
pub async fn next<M>(stream: &mut Streaming<M>) -> Result<M, Status> {
    let message = within_patience(stream.message()).await?;
    Ok(message.expect("a stream never ends as OK"))
}

/// Returns the texts of the next messages of a stream.
///
/// # Panics
/// If the stream ends.
pub async fn texts(stream: &mut Streaming<ServerEvent>, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        texts.push(next(stream).await.unwrap().text);
    }
    texts
}

/// Returns the default configuration of connections, with the engine that `TIDEGATE_HTTP2_ENGINE` names, if it names one.
/// `scripts/test` runs the tests with each.
///
/// # Panics
/// When there is no engine of that name.
#[must_use]
pub fn http2() -> Http2Config {
    let engine = match env::var("TIDEGATE_HTTP2_ENGINE").as_deref() {
        Err(env::VarError::NotPresent) => Http2Engine::default(),
        Ok("tidegate") => Http2Engine::Tidegate,
        Ok("hyper") => Http2Engine::Hyper,
        other => panic!("TIDEGATE_HTTP2_ENGINE is tidegate or hyper, and not {other:?}"),
    };
    Http2Config {
        engine,
        ..Http2Config::default()
    }
}

/// Waits for `future`, for at most [`PATIENCE`].
///
/// # Panics
/// If it takes longer.
pub async fn within_patience<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("nothing happened")
}
