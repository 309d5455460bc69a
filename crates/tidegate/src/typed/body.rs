//! A subscription as the body of a response.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream as _;
use http_body::{Body, Frame};
use tonic::Status;

use super::{
    chunk::{Rest, write_message},
    subscription::Subscription,
    value::Value,
};
use crate::{framing::CHUNK_BYTES, reason::Reason, status};

/// A subscription as the body of a response.
pub(super) struct SubscriptionBody<T: Value> {
    pub(super) subscription: Subscription<T>,
    pub(super) rest: Rest,
    pub(super) state: State,
}

#[derive(Debug)]
pub(super) enum State {
    Streaming,
    /// All that is left to send is the status.
    Ending(Box<Status>),
    Ended,
}

// ===== impl SubscriptionBody =====

impl<T: Value> SubscriptionBody<T> {
    /// The next chunk, or `None` when only the status is left.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(chunk) = self.rest.next() {
            return Poll::Ready(Some(chunk));
        }
        if !matches!(self.state, State::Streaming) {
            return Poll::Ready(None);
        }
        match ready!(self.subscription.poll_chunk(cx)) {
            None => self.poll_items(cx),
            Some(Ok((chunk, rest))) => {
                self.rest = rest;
                Poll::Ready(Some(chunk))
            }
            Some(Err(status)) => {
                self.state = State::Ending(Box::new(status));
                Poll::Ready(None)
            }
        }
    }

    /// A chunk of what the subscription yields item by item: a snapshot, messages in place of gaps.
    fn poll_items(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut out = Vec::new();
        while out.len() < CHUNK_BYTES {
            match Pin::new(&mut self.subscription).poll_next(cx) {
                Poll::Ready(Some(Ok(item))) => write_message(&item, &mut out),
                Poll::Ready(Some(Err(status))) => {
                    self.state = State::Ending(Box::new(status));
                    break;
                }
                Poll::Ready(None) => {
                    let problem = "the subscription had ended before its method returned it";
                    self.state = State::Ending(Box::new(Reason::Internal.status(problem)));
                    break;
                }
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Some(Bytes::from(out)).filter(|chunk| !chunk.is_empty()))
    }
}

impl<T: Value> Body for SubscriptionBody<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(chunk) = ready!(self.poll_chunk(cx)) {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        let State::Ending(status) = mem::replace(&mut self.state, State::Ended) else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(Ok(Frame::trailers(status::trailers(&status)))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of_val;

    use super::*;
    use crate::{proto::Event, typed::Hub};

    #[test]
    fn an_idle_body_holds_little_beside_its_subscription() {
        let body = SubscriptionBody {
            subscription: Hub::<Event>::new()
                .subscribe()
                .ignore_losses()
                .open()
                .unwrap(),
            rest: Rest::default(),
            state: State::Streaming,
        };
        assert!(size_of_val(&body) <= size_of::<Subscription<Event>>() + 96);
    }
}
