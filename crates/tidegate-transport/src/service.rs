//! Services that a connection serves.

use std::{
    error::Error,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tidegate::Observed;
use tower::Service;

/// Any error.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// A tower service of HTTP/2 requests, such as `tonic::service::Routes`. Every service with these bounds is one; you do
/// not implement it yourself.
///
/// Each stream gets a clone of the service. A call that fails, and a body that fails, resets its stream.
pub trait Http2Service:
    Service<
        Request<Incoming>,
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

/// A service whose response bodies note what leaves for the peer.
#[derive(Debug, Clone)]
pub(crate) struct ObservedService<S>(pub(crate) S);

pin_project! {
    /// Future of a response, whose body becomes [`Observed`].
    pub(crate) struct ObservedFuture<F> {
        #[pin]
        response: F,
    }
}

impl<S, B> Http2Service for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    B: Body<Data: Buf + Send, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

impl<S, R, B> Service<R> for ObservedService<S>
where
    S: Service<R, Response = Response<B>>,
{
    type Response = Response<Observed<B>>;
    type Error = S::Error;
    type Future = ObservedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let response = self.0.call(request);
        ObservedFuture { response }
    }
}

impl<F, B, E> Future for ObservedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Observed<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Here, and not when it is called: hyper calls the service before it spawns the future of the stream, in which
        // the body finds the handle that it notes by.
        let response = ready!(self.project().response.poll(cx));
        Poll::Ready(response.map(|response| response.map(Observed::new)))
    }
}
