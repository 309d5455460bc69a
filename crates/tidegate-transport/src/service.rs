//! Services that a connection serves.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf;
use http::{Request, Response};
use http_body::Body;
use tower::Service;

use crate::request_body::RequestBody;

/// Any error.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// A tower service of HTTP/2 requests, such as `tonic::service::Routes`. Every service with these bounds is one; you do
/// not implement it yourself.
///
/// Each stream gets a clone of the service. A call that fails, and a body that fails, resets its stream. So does a response
/// with a status of 1xx.
///
/// A request has a `tidegate_http2::StreamHandle` in its extensions. A body is polled without a window as well, so that it can
/// end; a frame that it returns then is held, whatever its size, until the peer has room. Return none where the handle's `room`
/// is 0. On hyper there is no `room`.
///
/// On the default engine no service sees CONNECT, which is answered with 501, nor a request with a header list that is too
/// large: 431, or `grpc-status` 8 for gRPC.
pub trait Http2Service:
    Service<
        Request<RequestBody>,
        Response = Response<Self::Body>,
        Error: Into<BoxError>,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
    /// Body of its responses.
    type Body: Body<Data: Buf + Send, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> Http2Service for S
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    B: Body<Data: Buf + Send, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

/// Methods of a [`Connection`](crate::Connection), whatever its transport and its service.
pub(crate) trait Serve {
    /// Runs one turn of the connection.
    fn poll_turn(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>>;

    fn graceful_shutdown(self: Pin<&mut Self>);
}
