//! Responses that note the bytes that leave for the peer, so that a slow one is told from one that is stalled, and requests
//! whose bodies [linger](super::linger).
//!
//! HTTP/2 advances the buffer of a chunk as it writes it, and it writes what the peer's window admits. So the chunks of
//! these bodies see each byte leave, where the body itself would only see that the next chunk is wanted.

use std::{
    future::Future,
    io::IoSlice,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, service::Service};
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use pin_project_lite::pin_project;
use tidegate_http2::StreamHandle;

use super::{driver::StreamExecutor, linger::Lingering, stream::HyperStream};
use crate::request_body::RequestBody;

/// Service whose response bodies are [`Observed`], and whose request bodies linger.
#[derive(Debug, Clone)]
pub(crate) struct ObservedService<S> {
    pub(crate) service: TowerToHyperService<S>,
    pub(crate) lingering: Lingering,
    pub(crate) streams: StreamExecutor,
}

pin_project! {
    /// Future of a response, whose body becomes [`Observed`].
    pub(crate) struct ObservedFuture<F> {
        #[pin]
        response: F,
        stream: Arc<HyperStream>,
    }
}

pin_project! {
    /// Body whose chunks note the bytes that leave.
    pub(crate) struct Observed<B> {
        #[pin]
        body: B,
        stream: Arc<HyperStream>,
    }
}

/// Chunk of an [`Observed`] body.
pub(crate) struct ObservedChunk<D> {
    chunk: D,
    stream: Arc<HyperStream>,
}

// hyper's own trait: tower's services are called when their streams are polled first, and then the handle would be that of a
// stream which began meanwhile.
impl<S, B> Service<Request<Incoming>> for ObservedService<S>
where
    S: tower::Service<Request<RequestBody>, Response = Response<B>> + Clone,
{
    type Response = Response<Observed<B>>;
    type Error = S::Error;
    type Future = ObservedFuture<TowerToHyperServiceFuture<S, Request<RequestBody>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request = request.map(|body| RequestBody::from(self.lingering.body(body)));
        let stream = self.streams.begin_call();
        let handle = StreamHandle::new(Arc::clone(&stream) as _);
        request.extensions_mut().insert(handle);
        let response = self.service.call(request);
        ObservedFuture { response, stream }
    }
}

impl<F, B, E> Future for ObservedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Observed<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.response.poll(cx));
        let observed = |body| Observed {
            body,
            stream: Arc::clone(this.stream),
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
            stream: Arc::clone(this.stream),
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
        self.stream.note(len);
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        self.stream.note(len);
        self.chunk.copy_to_bytes(len)
    }
}
