//! A subscription as the body of a response.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream as _;
use tidegate_http2::StreamHandle;

use super::{chunk::write_message, subscription::Subscription, value::Value};
use crate::{
    chunk_body::{ChunkBody, PollChunk, Step},
    framing::CHUNK_BYTES,
    reason::Reason,
    rest::Rest,
    stream,
};

/// Body of the response of a method that returned a subscription.
pub(super) type SubscriptionBody<T> = ChunkBody<Messages<T>>;

/// The messages of a subscription, as chunks. A chunk of whole messages can be more than the windows admit; pieces of a
/// message larger than a chunk are never.
pub(super) struct Messages<T: Value> {
    subscription: Subscription<T>,
    /// The stream, to be asked whether it has room, where the transport tells.
    stream: Option<StreamHandle>,
    /// Rest of a message larger than a chunk. Goes before anything else.
    rest: Option<Box<Rest>>,
}

impl<T: Value> Messages<T> {
    pub(super) fn new(subscription: Subscription<T>, stream: Option<StreamHandle>) -> Self {
        Self {
            subscription,
            stream,
            rest: None,
        }
    }

    /// Makes a chunk of items that the subscription yields one by one: a snapshot, messages in place of gaps.
    /// The last item may go beyond the size of a chunk by as much as it has itself, or be a part of one that is larger.
    fn poll_items(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let mut out = Vec::new();
        let status = loop {
            if out.len() >= CHUNK_BYTES {
                return Poll::Ready(Step::Chunk(out.into()));
            }
            match Pin::new(&mut self.subscription).poll_next(cx) {
                Poll::Ready(Some(Ok(item))) => {
                    self.rest =
                        write_message(&item, &mut out, |event| self.subscription.send(event));
                    if self.rest.is_some() {
                        return Poll::Ready(Step::Chunk(out.into()));
                    }
                }
                Poll::Ready(Some(Err(status))) => break status,
                Poll::Ready(None) => {
                    let problem = "the subscription had ended before its method returned it";
                    break Reason::Internal.status(problem);
                }
                Poll::Pending if out.is_empty() => return Poll::Pending,
                // The task is woken for the next item; what is here goes now.
                Poll::Pending => return Poll::Ready(Step::Chunk(out.into())),
            }
        };
        Poll::Ready(if out.is_empty() {
            Step::End(status)
        } else {
            Step::LastChunk(out.into(), status)
        })
    }
}

impl<T: Value> PollChunk for Messages<T> {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let room = stream::room(self.stream.as_ref());
        if room == 0 {
            if self.rest.is_some() {
                // The peer is in the middle of a message, behind which alone it reads a status.
                return Poll::Pending;
            }
            return self.subscription.poll_without_room(cx).map(Step::End);
        }
        // A connection that cannot write keeps chunks of streams that were reset.
        let copies = self.rest.is_some() && self.subscription.is_sending_much();
        if let Some(chunk) = Rest::next(&mut self.rest, room, copies) {
            self.subscription.note_progress();
            return Poll::Ready(Step::Chunk(chunk));
        }
        match ready!(self.subscription.poll_chunk(cx)) {
            None => self.poll_items(cx),
            Some(Ok((chunk, rest))) => {
                self.rest = rest;
                Poll::Ready(Step::Chunk(chunk))
            }
            Some(Err(status)) => Poll::Ready(Step::End(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{mem::size_of_val, sync::Arc, task::Waker};

    use tidegate_http2::StreamControl;
    use tidegate_proto::v1::Event;

    use super::{super::hub::Hub, *};

    #[test]
    fn idle_body_holds_little_besides_its_subscription() {
        let subscription = Hub::<Event>::new()
            .subscribe()
            .ignore_losses()
            .open()
            .unwrap();
        let body = SubscriptionBody::new(Messages::new(subscription, None));
        assert!(size_of_val(&body) <= size_of::<Subscription<Event>>() + 112);
    }

    /// A stream whose windows admit this much.
    #[derive(Debug)]
    struct Windows(usize);

    impl StreamControl for Windows {
        fn taken(&self) -> u64 {
            0
        }

        fn reset(&self) {}

        fn room(&self) -> Option<usize> {
            Some(self.0)
        }
    }

    #[test]
    fn piece_of_a_large_message_is_no_more_than_the_windows_admit() {
        let hub = Hub::<Event>::new();
        let subscription = hub.subscribe().ignore_losses().open().unwrap();
        let stream = StreamHandle::new(Arc::new(Windows(100)));
        let mut body = Messages::new(subscription, Some(stream));
        let encoding = vec![7; 250].into();
        body.rest = Some(Box::new(Rest::new(encoding, Vec::new())));
        let mut cx = Context::from_waker(Waker::noop());
        let mut pieces = Vec::new();
        while let Poll::Ready(Step::Chunk(piece)) = body.poll_chunk(&mut cx) {
            pieces.push(piece.len());
        }
        assert_eq!(pieces, [100, 100, 50]);
    }
}
