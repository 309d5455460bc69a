//! New connections to a server, with the settings and credentials of a client.

use std::{
    future::Future,
    io, mem,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tidegate_proto::v1::{
    SubscribeRequest, SubscribeResponse, admin_service_client::AdminServiceClient,
    event_service_client::EventServiceClient,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tonic::{
    Status, Streaming,
    body::Body,
    metadata::MetadataMap,
    service::interceptor::InterceptedService,
    transport::{self, Channel, Endpoint},
};
use tower_service::Service;

use crate::{
    cause,
    credentials::Credentials,
    liveness::{Activity, Watched, keep_alive_bytes},
    tls::{Tls, Transport},
};

/// The event service, with credentials added to each call.
pub(crate) type EventService = EventServiceClient<InterceptedService<Connection, Credentials>>;

/// The admin service, with credentials added to each call.
pub(crate) type AdminService = AdminServiceClient<InterceptedService<Connection, Credentials>>;

/// Opens connections to one server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    /// Opens connections. All settings are applied to it.
    pub(crate) endpoint: Endpoint,
    /// Address of the server, as it was given.
    pub(crate) server: Uri,
    /// TLS, if the address is of `https`.
    pub(crate) tls: Option<Tls>,
    pub(crate) credentials: Credentials,
    /// The largest message that is accepted from the server.
    pub(crate) max_message_bytes: usize,
    /// Interval at which the endpoint pings.
    pub(crate) keep_alive_interval: Duration,
    /// Time without a sign of life after which a connection has failed.
    pub(crate) life_limit: Duration,
    /// Path of the file of the server's socket, if it has no address.
    pub(crate) socket_file: Option<Arc<Path>>,
}

/// Bytes of a connection, of TCP or through the file of a socket.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// A connection whose bytes are watched. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    channel: Channel,
    /// Address of the server.
    server: Uri,
    activity: Activity,
}

/// Opens the socket of a connection.
struct Dialer {
    http: HttpConnector,
    /// Path of the file of the server's socket, if it has no address.
    socket_file: Option<Arc<Path>>,
    tls: Option<Tls>,
    activity: Activity,
    life_limit: Duration,
    connect_timeout: Option<Duration>,
}

/// Future of a [`Service`], boxed.
type Boxed<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl Connector {
    /// Returns a new connection, which connects on first use, and again after it has broken.
    pub(crate) fn connect_lazy(&self) -> Connection {
        self.connect_with(Activity::new(0))
    }

    fn connect_with(&self, activity: Activity) -> Connection {
        let mut http = HttpConnector::new();
        // TLS is above this socket.
        http.enforce_http(false);
        http.set_nodelay(self.endpoint.get_tcp_nodelay());
        // A part of it for each address of the server, besides the endpoint's own for the whole.
        http.set_connect_timeout(self.endpoint.get_connect_timeout());
        let dialer = Dialer {
            http,
            socket_file: self.socket_file.clone(),
            tls: self.tls.clone(),
            activity: activity.clone(),
            life_limit: self.life_limit,
            connect_timeout: self.endpoint.get_connect_timeout(),
        };
        Connection {
            channel: self.endpoint.connect_with_connector_lazy(dialer),
            server: self.server.clone(),
            activity,
        }
    }

    /// Returns the event service on a connection.
    pub(crate) fn event_service(&self, connection: Connection) -> EventService {
        EventServiceClient::with_interceptor(connection, self.credentials.clone())
            .max_decoding_message_size(self.max_message_bytes)
    }

    /// Returns the admin service on a connection.
    pub(crate) fn admin_service(&self, connection: Connection) -> AdminService {
        AdminServiceClient::with_interceptor(connection, self.credentials.clone())
            .max_decoding_message_size(self.max_message_bytes)
    }

    /// Opens a `Subscribe` stream on a new connection, and returns the connection's activity with it, by which the
    /// caller breaks the stream after a `silence`. With a new connection each attempt resolves the name again, and none
    /// uses a connection whose peer has vanished silently.
    pub(crate) fn subscribe(
        &self,
        request: SubscribeRequest,
        silence: Duration,
    ) -> (
        Activity,
        impl Future<Output = Result<Streaming<SubscribeResponse>, Status>> + Send + 'static,
    ) {
        let activity = Activity::new(keep_alive_bytes(silence, self.keep_alive_interval));
        let connection = self.connect_with(activity.clone());
        let mut service = self.event_service(connection);
        let call = async move { Ok(service.subscribe(request).await?.into_inner()) };
        (activity, call)
    }

    /// Whether the token may have been renewed since the server accepted it.
    pub(crate) fn may_have_new_token(&self) -> bool {
        self.credentials.can_change()
    }
}

impl Connection {
    /// Returns the status of a call that failed before there was a response.
    fn failed(&self, error: &transport::Error) -> Status {
        let activity = &self.activity;
        cause::of_connection(
            error,
            &self.server,
            &activity.greeting(),
            &activity.plain_greeting(),
            activity.tls_error().as_ref(),
        )
    }

    /// Whether the server, or whatever is in its place, has sent anything.
    pub(crate) fn has_heard(&self) -> bool {
        self.activity.has_spoken()
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Boxed<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let ready = self.channel.poll_ready(cx);
        ready.map_err(|error| self.failed(&error))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = self.channel.call(request);
        let connection = self.clone();
        Box::pin(async move {
            let response = call.await.map_err(|error| connection.failed(&error))?;
            let (mut head, body) = response.into_parts();
            let activity = connection.activity;
            activity.sign_of_life();
            // tonic looks neither at the HTTP status nor at the media type, and takes a page for messages.
            if !cause::is_grpc(head.status, &head.headers) {
                return Err(cause::of_answer(head.status, &head.headers, body).await);
            }
            drop_unreadable_details(&mut head.headers);
            let body = body.map_frame(move |mut frame| {
                match frame.data_ref() {
                    Some(data) if !data.is_empty() => activity.data_arrived(),
                    _ => activity.sign_of_life(),
                }
                if let Some(trailers) = frame.trailers_mut() {
                    drop_unreadable_details(trailers);
                }
                frame
            });
            Ok(Response::from_parts(head, Body::new(body)))
        })
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Transport<Box<dyn Socket>>>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Boxed<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.http.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let socket_file = self.socket_file.clone();
        let dial = self.http.clone().call(server);
        let activity = self.activity.clone();
        let (tls, limit) = (self.tls.clone(), self.life_limit);
        let first_word = Instant::now() + self.connect_timeout.unwrap_or(limit);
        Box::pin(async move {
            let socket: Box<dyn Socket> = match socket_file {
                None => Box::new(dial.await?.into_inner()),
                Some(path) => connect_to_file(&path).await?,
            };
            let socket = Watched::new(socket, activity.clone(), limit, first_word);
            Ok(TokioIo::new(match tls {
                Some(tls) => tls.connect(socket, activity).await?,
                None => Transport::Plain(socket, activity),
            }))
        })
    }
}

#[cfg(unix)]
async fn connect_to_file(path: &Path) -> io::Result<Box<dyn Socket>> {
    match tokio::net::UnixStream::connect(path).await {
        Ok(stream) => Ok(Box::new(stream)),
        // The path is what a user looks for in the words of the error.
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("unix:{}: {error}", path.display()),
        )),
    }
}

#[cfg(not(unix))]
async fn connect_to_file(_: &Path) -> io::Result<Box<dyn Socket>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Removes the rich details of a status if they are not base64: tonic panics at those, in the task of the application.
fn drop_unreadable_details(headers: &mut HeaderMap) {
    const DETAILS: &str = "grpc-status-details-bin";

    if !headers.contains_key(DETAILS) {
        return;
    }
    let metadata = MetadataMap::from_headers(mem::take(headers));
    let details = metadata.get_bin(DETAILS);
    let is_readable = details.is_some_and(|details| details.to_bytes().is_ok());
    *headers = metadata.into_headers();
    if !is_readable {
        headers.remove(DETAILS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_that_cannot_be_read_are_dropped() {
        for (details, is_kept) in [("CAUSAA", true), ("CAUSAA==", true), ("not base64!", false)] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", "8".parse().unwrap());
            headers.insert("grpc-status-details-bin", details.parse().unwrap());
            drop_unreadable_details(&mut headers);
            assert_eq!(
                headers.contains_key("grpc-status-details-bin"),
                is_kept,
                "{details}"
            );
            let status = Status::from_header_map(&headers).unwrap();
            assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        }
    }
}
