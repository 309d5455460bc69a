//! Responses that note the bytes that leave for the peer, so that a slow one is told from one that is stalled, and requests
//! whose bodies [linger](crate::linger).
//!
//! HTTP/2 advances the buffer of a chunk as it writes it, and it writes what the peer's window admits. So the chunks of
//! these bodies see each byte leave, where the body itself would only see that the next chunk is wanted.

use std::{
    future::Future,
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tidegate::Progress;
use tower::Service;

use crate::linger::{Lingering, RequestBody};

/// Service whose response bodies are [`Observed`], and whose request bodies linger.
#[derive(Debug, Clone)]
pub(crate) struct ObservedService<S> {
    pub(crate) service: S,
    pub(crate) lingering: Lingering,
}

pin_project! {
    /// Future of a response, whose body becomes [`Observed`].
    pub(crate) struct ObservedFuture<F> {
        #[pin]
        response: F,
    }
}

pin_project! {
    /// Body whose chunks note the bytes that leave.
    pub(crate) struct Observed<B> {
        #[pin]
        body: B,
        progress: Progress,
    }
}

/// Chunk of an [`Observed`] body.
pub(crate) struct ObservedChunk<D> {
    chunk: D,
    progress: Progress,
}

impl<S, B> Service<Request<Incoming>> for ObservedService<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
{
    type Response = Response<Observed<B>>;
    type Error = S::Error;
    type Future = ObservedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let request = request.map(|body| self.lingering.body(body));
        let response = self.service.call(request);
        ObservedFuture { response }
    }
}

impl<F, B, E> Future for ObservedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Observed<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.project().response.poll(cx));
        // Here, and not when the service is called: hyper calls it before it spawns the future of the stream, in which
        // the progress is found.
        let observed = |body| Observed {
            body,
            progress: Progress::current(),
        };
        Poll::Ready(response.map(|response| response.map(observed)))
    }
}

impl<B: Body> Body for Observed<B> {
    type Data = ObservedChunk<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        let this = self.project();
        let observed = |chunk| ObservedChunk {
            chunk,
            progress: this.progress.clone(),
        };
        this.body
            .poll_frame(cx)
            .map_ok(|frame| frame.map_data(observed))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<D: Buf> Buf for ObservedChunk<D> {
    fn remaining(&self) -> usize {
        self.chunk.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.chunk.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.chunk.chunks_vectored(slices)
    }

    fn advance(&mut self, len: usize) {
        self.chunk.advance(len);
        self.progress.note(len);
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        self.progress.note(len);
        self.chunk.copy_to_bytes(len)
    }
}
