//! The body of a response that streams chunks and ends with a status.
//!
//! Both forms of the crate respond with it: [`EventService`](crate::EventService) with the chunks of a drainer,
//! [`typed`](crate::typed) with those of its subscriptions. A source says what comes next. The body keeps the order of
//! HTTP, data and then trailers, and ensures that there is exactly one status, with nothing after it.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use tonic::Status;

use crate::status;

/// A stream of chunks that ends with a status.
pub(crate) trait PollChunk {
    /// Takes the next step. Pending, it wakes the task of `cx` when there may be one.
    ///
    /// It is not called again after [`Step::LastChunk`] or [`Step::End`].
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Step>;
}

/// One step of a stream.
#[derive(Debug)]
pub(crate) enum Step {
    /// A chunk, with more to come.
    Chunk(Bytes),
    /// The last chunk, and the status behind it.
    LastChunk(Bytes, Status),
    /// The status, with no chunk before it.
    End(Status),
}

/// The chunks of `S` as a body.
///
/// ```text
///          Chunk: data
///            ┌─────┐
///            │     ▼   LastChunk: data           poll: trailers
///          Streaming ─────────────────▶ Ending ─────────────────┐
///            │                                                  ▼
///            └────────────────────────────────────────────▶ Ended ──▶ poll: end of stream
///                     End: trailers
/// ```
#[derive(Debug)]
pub(crate) struct ChunkBody<S> {
    source: S,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The source has more.
    Streaming,
    /// The last chunk was handed over; only the status is left.
    Ending(Status),
    /// The trailers were handed over.
    Ended,
}

impl<S> ChunkBody<S> {
    pub(crate) const fn new(source: S) -> Self {
        Self {
            source,
            state: State::Streaming,
        }
    }

    pub(crate) const fn source(&self) -> &S {
        &self.source
    }
}

impl<S: PollChunk + Unpin> Body for ChunkBody<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if matches!(self.state, State::Streaming) {
            match ready!(self.source.poll_chunk(cx)) {
                Step::Chunk(chunk) => return Poll::Ready(Some(Ok(Frame::data(chunk)))),
                Step::LastChunk(chunk, status) => {
                    self.state = State::Ending(status);
                    return Poll::Ready(Some(Ok(Frame::data(chunk))));
                }
                Step::End(status) => self.state = State::Ending(status),
            }
        }
        let State::Ending(status) = mem::replace(&mut self.state, State::Ended) else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(Ok(Frame::trailers(status::trailers(&status)))))
    }

    /// Only once the trailers are out: before that the stream would end without a status.
    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, task::Waker};

    use super::*;
    use crate::reason::Reason;

    struct Script(VecDeque<Poll<Step>>);

    impl PollChunk for Script {
        fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Step> {
            self.0.pop_front().expect("not polled behind its end")
        }
    }

    /// Every frame of a body: a chunk as its text, trailers as their code, pending and the end as words.
    fn frames_of(steps: impl IntoIterator<Item = Poll<Step>>) -> Vec<String> {
        let mut body = ChunkBody::new(Script(steps.into_iter().collect()));
        let mut cx = Context::from_waker(Waker::noop());
        let mut frames = Vec::new();
        loop {
            assert_eq!(
                body.is_end_stream(),
                frames.last().is_some_and(|last: &String| last == "13")
            );
            match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Pending => frames.push("pending".to_owned()),
                Poll::Ready(None) => {
                    assert!(body.is_end_stream());
                    return frames;
                }
                Poll::Ready(Some(frame)) => frames.push(match frame.unwrap().into_data() {
                    Ok(chunk) => String::from_utf8(chunk.to_vec()).unwrap(),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap();
                        trailers["grpc-status"].to_str().unwrap().to_owned()
                    }
                }),
            }
        }
    }

    fn chunk(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn status() -> Status {
        Reason::Internal.status("over")
    }

    #[test]
    fn status_follows_the_last_chunk_once() {
        let frames = frames_of([
            Poll::Ready(Step::Chunk(chunk("a"))),
            Poll::Pending,
            Poll::Ready(Step::LastChunk(chunk("b"), status())),
        ]);
        assert_eq!(frames, ["a", "pending", "b", "13"]);
    }

    #[test]
    fn status_needs_no_chunk_before_it() {
        assert_eq!(frames_of([Poll::Ready(Step::End(status()))]), ["13"]);
    }
}
