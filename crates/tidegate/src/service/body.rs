//! The bodies of responses.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::{
    access::Access,
    calls::{CallBody, Calls},
    drainer::Drainer,
};

/// The body of a response: a subscription, or what tonic answers.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all long-lived bodies are subscriptions; a box would cost each one an allocation"
)]
pub enum ResponseBody {
    /// A subscription.
    Subscription(Drainer),
    /// Any other response.
    Other(CallBody),
}

impl Calls {
    /// A response to a call of this connection, for services that are served beside the events. To a caller with an
    /// access, it ends when the credentials are no longer accepted.
    #[must_use]
    pub fn respond(
        &self,
        access: Option<&Access>,
        response: http::Response<tonic::body::Body>,
    ) -> http::Response<ResponseBody> {
        let calls = Some(self.clone());
        response.map(|body| ResponseBody::Other(CallBody::new(body, calls, access)))
    }
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
