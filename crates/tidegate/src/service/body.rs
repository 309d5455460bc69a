//! Bodies of responses.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderValue;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::{
    access::Access,
    calls::{CallBody, Calls},
    drainer::Drainer,
};
use crate::status::{ACCEPT_ENCODING, ACCEPTED_ENCODINGS};

/// Body of a response of [`EventService`](crate::EventService). It always ends with a status, and a
/// subscription never with OK.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all long-lived bodies are subscriptions; a box would cost each one an allocation"
)]
pub enum ResponseBody {
    /// Response to `Subscribe`.
    Subscription(Drainer),
    /// Response to any other call, as tonic makes it.
    Other(CallBody),
}

impl Calls {
    /// Makes the response of another service, which you serve beside [`EventService`](crate::EventService), end
    /// with the calls of this connection. Give the caller's `access` to end it also when the credentials are no
    /// longer accepted.
    #[must_use]
    pub fn respond(
        &self,
        access: Option<&Access>,
        response: http::Response<tonic::body::Body>,
    ) -> http::Response<ResponseBody> {
        let calls = Some(self.clone());
        accepting(response.map(|body| ResponseBody::Other(CallBody::new(body, calls, access))))
    }

    /// Does what [`respond`](Self::respond) does, for a service that only answers questions: the end does not wait for
    /// answers that are ready, since a client that goes on asking would hold it up forever.
    #[must_use]
    pub fn respond_until_ended(
        &self,
        access: Option<&Access>,
        response: http::Response<tonic::body::Body>,
    ) -> http::Response<ResponseBody> {
        let calls = Some(self.clone());
        response
            .map(|body| ResponseBody::Other(CallBody::new(body, calls, access).ending_at_once()))
    }
}

/// Adds how requests may be compressed to a response.
pub(super) fn accepting(
    mut response: http::Response<ResponseBody>,
) -> http::Response<ResponseBody> {
    let accepted = HeaderValue::from_static(ACCEPTED_ENCODINGS);
    response.headers_mut().insert(ACCEPT_ENCODING, accepted);
    response
}

// ===== impl ResponseBody =====

impl Default for ResponseBody {
    fn default() -> Self {
        Self::Other(CallBody::new(tonic::body::Body::empty(), None, None))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Subscription(drainer) => Pin::new(drainer).poll_frame(cx),
            Self::Other(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Subscription(drainer) => drainer.is_end_stream(),
            Self::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Subscription(drainer) => drainer.size_hint(),
            Self::Other(body) => body.size_hint(),
        }
    }
}
