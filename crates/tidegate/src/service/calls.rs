//! The calls of one connection, so that whoever serves it can end them together.
//!
//! A connection that is told GOAWAY ends when its last call does, and a subscription never ends by itself.
//! So whoever wants a connection to end, ends its calls: subscriptions through the hub, which tells them
//! where to resume, and all others at the end of what they have to say.

use std::{
    collections::HashSet,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tidegate_core::{CloseReason, Hub};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use super::{access::Access, wire::Encoded};
use crate::status;

/// The calls of one connection: see
/// [`EventService::for_connection`](crate::EventService::for_connection). Cheap to clone; the clones
/// are of the same connection.
#[derive(Debug, Clone)]
pub struct Calls {
    shared: Arc<Shared>,
}

/// Counts a subscription among the calls of its connection for as long as it is there.
#[derive(Debug)]
pub(super) struct Enrolled {
    calls: Calls,
    id: u64,
}

#[derive(Debug)]
struct Shared {
    hub: Hub<Encoded>,
    /// Cancelled when a reason was set.
    ended: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Set once. Whatever is called after it ends at once.
    reason: Option<CloseReason>,
    /// The identities of the subscriptions.
    subscriptions: HashSet<u64>,
}

/// The body of a call that is no subscription. It ends when the service ends it, or when it has nothing ready
/// and the calls of its connection are ended, or the credentials of its caller are no longer accepted.
#[derive(Debug)]
pub struct CallBody {
    body: tonic::body::Body,
    calls: Option<Calls>,
    /// Made when the body first has to wait: most never do.
    ended: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    credentials_end: Option<CredentialsEnd>,
    has_ended: bool,
}

/// Done when credentials are no longer accepted.
struct CredentialsEnd(Pin<Box<dyn Future<Output = CloseReason> + Send>>);

/// The body of a request that ends when the calls of its connection are ended.
#[derive(Debug)]
pub struct RequestBody<B> {
    body: B,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

// ===== impl Calls =====

impl Calls {
    pub(super) fn new(hub: Hub<Encoded>) -> Self {
        let shared = Shared {
            hub,
            ended: CancellationToken::new(),
            state: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Ends all calls, those to come included. The first reason holds.
    pub fn end(&self, reason: CloseReason) {
        let subscriptions = {
            let mut state = self.state();
            if state.reason.is_some() {
                return;
            }
            state.reason = Some(reason);
            state.subscriptions.clone()
        };
        for id in subscriptions {
            self.shared.hub.end(id, reason);
        }
        self.shared.ended.cancel();
    }

    /// The body of a request of this connection, for a service that reads on although nobody waits for its
    /// response: it ends when the calls are ended, or the connection would wait for it.
    #[must_use]
    pub fn request<B>(&self, body: B) -> RequestBody<B> {
        RequestBody {
            body,
            ended: Box::pin(self.shared.ended.clone().cancelled_owned()),
        }
    }

    pub(super) fn enroll(&self, id: u64) -> Enrolled {
        let reason = {
            let mut state = self.state();
            state.subscriptions.insert(id);
            state.reason
        };
        if let Some(reason) = reason {
            self.shared.hub.end(id, reason);
        }
        Enrolled {
            calls: self.clone(),
            id,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        self.calls.state().subscriptions.remove(&self.id);
    }
}

// ===== impl CallBody =====

impl CallBody {
    pub(super) fn new(
        body: tonic::body::Body,
        calls: Option<Calls>,
        access: Option<&Access>,
    ) -> Self {
        Self {
            body,
            calls,
            ended: None,
            credentials_end: access.map(|access| CredentialsEnd(access.until_ended())),
            has_ended: false,
        }
    }

    /// The trailers that end it, if something else than its service does.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<HeaderMap> {
        let mut polled = self.poll_calls_ended(cx);
        if polled.is_pending()
            && let Some(CredentialsEnd(end)) = &mut self.credentials_end
        {
            polled = end.as_mut().poll(cx);
        }
        polled.map(|reason| {
            self.has_ended = true;
            status::trailers(&status::ended_without_position(reason))
        })
    }

    fn poll_calls_ended(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let Some(calls) = &self.calls else {
            return Poll::Pending;
        };
        let ended = self
            .ended
            .get_or_insert_with(|| Box::pin(calls.shared.ended.clone().cancelled_owned()));
        if ended.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let reason = calls.state().reason;
        Poll::Ready(reason.unwrap_or(CloseReason::ShuttingDown))
    }
}

impl fmt::Debug for CredentialsEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialsEnd")
    }
}

impl Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        // What is ready goes first: it answers what was done.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        self.poll_ended(cx)
            .map(|trailers| Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// ===== impl RequestBody =====

impl<B: Body + Unpin> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        self.ended.as_mut().poll(cx).map(|()| None)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
