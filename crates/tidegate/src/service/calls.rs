//! The calls of one connection, which the server of the connection can end together.
//!
//! After GOAWAY a connection ends when its last call does, and a subscription never ends by itself. So to end a
//! connection, the server ends its calls: subscriptions through the hub, which tells them where to resume, and
//! all others once they have sent what is ready.
//!
//! # Races
//! A call may begin while the calls are being ended. [`Calls::end`] sets the reason and copies the identities under one
//! lock; [`Calls::enroll`] enters the identity and reads the reason under the same lock. So each subscription is either
//! in the copy, and ended by the one, or sees the reason, and is ended by the other. Both may happen: the hub ends a
//! subscription once. Neither calls the hub under the lock.

use std::{
    collections::HashSet,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
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

/// Handle to the calls of one connection. [`EventService::for_connection`](crate::EventService::for_connection)
/// makes it. Cheap to clone: clones are of the same connection.
#[derive(Debug, Clone)]
pub struct Calls {
    shared: Arc<Shared>,
}

/// Membership of a subscription among the calls of its connection, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Enrolled {
    calls: Calls,
    id: u64,
}

#[derive(Debug)]
struct Shared {
    hub: Hub<Encoded>,
    /// Cancelled after a reason was set.
    ended: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Reason that the calls were ended for. Set once; a call that begins after it ends at once.
    reason: Option<CloseReason>,
    /// Identities of the subscriptions.
    subscriptions: HashSet<u64>,
}

/// Response body of a call that is no subscription.
///
/// It ends when its service ends it. It also ends, with a status that says why, when the calls of its connection were
/// ended or the credentials of its caller are no longer accepted: once it has nothing ready and the service is not in the
/// middle of a request, or at once, whichever its service wants. So whatever was stored has been answered before such a
/// status.
#[derive(Debug)]
pub struct CallBody {
    body: tonic::body::Body,
    calls: Option<Calls>,
    /// Ready when the calls are ended. Made when the body first has to wait: most never do.
    ended: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    credentials_end: Option<CredentialsEnd>,
    /// Whether the end comes before frames that are ready.
    ends_at_once: bool,
    /// Set while the service is in the middle of something that it will answer.
    is_busy: Arc<AtomicBool>,
    has_ended: bool,
}

/// Ready when credentials are no longer accepted.
struct CredentialsEnd(Pin<Box<dyn Future<Output = CloseReason> + Send>>);

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

    /// Ends all calls of the connection, and those that begin later. Only the first reason counts.
    ///
    /// Subscriptions end with the status of `reason` and a position to resume from, other calls with the same
    /// status when they have nothing more to send. It does not wait for any of them.
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

    /// Enters a subscription of the hub by its identity. If the calls were ended, so is the subscription.
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
            ends_at_once: false,
            is_busy: Arc::default(),
            has_ended: false,
        }
    }

    /// The same body, whose end does not wait for frames that are ready.
    pub(super) fn ending_at_once(self) -> Self {
        Self {
            ends_at_once: true,
            ..self
        }
    }

    /// Sets the flag that its service sets while it is in the middle of a request.
    pub(super) fn with_busy(self, is_busy: Arc<AtomicBool>) -> Self {
        Self { is_busy, ..self }
    }

    /// Ready with trailers when something other than its service ends the body.
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
        // The reason was set before the token was cancelled, so it is there.
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
        // Before the answers to questions that a client can ask without end, and so keep ready forever.
        if self.ends_at_once
            && let Poll::Ready(trailers) = self.poll_ended(cx)
        {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        // A ready frame goes first: it may be the answer to something that was done, such as a published batch.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if self.ends_at_once {
            return Poll::Pending;
        }
        // An answer will follow, and wakes this task. To end before it would leave the client in doubt over a batch that
        // is stored. Only this task sets the flag, so no ordering is needed.
        if self.is_busy.load(Ordering::Relaxed) {
            return Poll::Pending;
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

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;
    use tidegate_core::HubConfig;

    use super::*;

    #[test]
    fn body_ends_between_requests_and_not_in_the_middle_of_one() {
        let hub = Hub::new(HubConfig::new(1));
        let calls = Calls::new(hub);
        let is_busy = Arc::new(AtomicBool::new(true));
        let idle = tonic::body::Body::new(http_body_util::StreamBody::new(
            futures_util::stream::pending::<Result<Frame<Bytes>, Status>>(),
        ));
        let body = CallBody::new(idle, Some(calls.clone()), None).with_busy(Arc::clone(&is_busy));
        let mut body = std::pin::pin!(body);
        let mut cx = Context::from_waker(noop_waker_ref());
        calls.end(CloseReason::ShuttingDown);
        assert!(body.as_mut().poll_frame(&mut cx).is_pending());
        is_busy.store(false, Ordering::Relaxed);
        let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx) else {
            panic!("it goes on")
        };
        assert!(frame.is_trailers());
    }
}
