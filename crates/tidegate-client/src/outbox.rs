//! The events that a publisher has taken and the server has not accepted, by where they are.
//!
//! An event is *queued*, then *in flight* from the moment at which a stream takes it, and gone when the server answers.
//! A stream that ends gives its events back, to be sent *again*, if it is certain that the server did not store them.
//! The transport may drop the body of a stream later than it reports its end. So every stream has a number, and one
//! that is not the current one gets nothing: what is in flight stays as it is once a stream has been closed.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use prost::Message as _;
use tidegate_proto::v1::{PublishRequest, PublishResponse};
use tokio::sync::mpsc;

use crate::{NewEvent, Violation, options::PublisherOptions};

/// An event, with the bytes of the budget that it holds until it is acknowledged.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) event: NewEvent,
    pub(crate) charge: usize,
    /// Events that were sent before it.
    pub(crate) index: u64,
    /// Whether a stream has taken it and broke, so that it may be stored although it is sent again.
    pub(crate) is_unanswered: bool,
}

/// The events of one publisher.
#[derive(Debug)]
pub(crate) struct Outbox(Mutex<Events>);

#[derive(Debug)]
struct Events {
    queue: mpsc::Receiver<Queued>,
    /// Events that go before those of the queue: taken back from a stream, or too large for the request before.
    again: VecDeque<Queued>,
    /// The unanswered requests, oldest first.
    in_flight: VecDeque<Vec<Queued>>,
    /// Number of the current stream.
    stream: u64,
    /// Whether the current stream may take events.
    is_open: bool,
    /// Whether the current stream takes one event only, since it is not known whether a server is there.
    is_trial: bool,
    /// Whether the current stream has taken the last event there will be.
    has_ended: bool,
    /// Events before this index go alone, so that a refusal is about one event.
    alone_before: u64,
    max_batch_events: usize,
    max_batch_bytes: usize,
    max_in_flight: usize,
    /// Wakes the current stream when it may take events.
    waker: Option<Waker>,
}

/// The part of a stream that the server refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The call, before any event.
    Call,
    /// A request of several events. They will be sent in smaller requests.
    Batch,
    /// The first of the events to be sent again.
    Event,
}

impl Outbox {
    pub(crate) fn new(queue: mpsc::Receiver<Queued>, options: PublisherOptions) -> Self {
        Self(Mutex::new(Events {
            queue,
            again: VecDeque::new(),
            in_flight: VecDeque::new(),
            stream: 0,
            is_open: false,
            is_trial: false,
            has_ended: false,
            alone_before: 0,
            max_batch_events: options.max_batch_events.max(1),
            max_batch_bytes: options.max_batch_bytes,
            max_in_flight: options.max_in_flight.max(1),
            waker: None,
        }))
    }

    /// Begins a stream, which may take events once it is [opened](Self::open), and returns its number.
    pub(crate) fn begin_stream(&self) -> u64 {
        let mut events = self.events();
        events.close_stream();
        events.stream
    }

    /// Lets the current stream take events.
    pub(crate) fn open(&self) {
        self.open_with(false);
    }

    /// Lets the current stream take one event, and no other before it is [opened](Self::open).
    pub(crate) fn open_on_trial(&self) {
        self.open_with(true);
    }

    fn open_with(&self, is_trial: bool) {
        let mut events = self.events();
        events.is_open = true;
        events.is_trial = is_trial;
        let waker = events.waker.take();
        drop(events);
        wake(waker);
    }

    /// Ends the current stream: it takes no further event.
    pub(crate) fn close_stream(&self) {
        self.events().close_stream();
    }

    /// Returns the next request of a stream, once it may take one and an event is ready. `None` at the end.
    pub(crate) fn poll_request(
        &self,
        stream: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Option<PublishRequest>> {
        self.events().poll_request(stream, cx)
    }

    /// Takes the oldest request, which `response` must match, as answered.
    pub(crate) fn acknowledge(&self, response: &PublishResponse) -> Result<Vec<Queued>, Violation> {
        let found = u64::from(response.count);
        let mut events = self.events();
        let expected = events.in_flight.front().map_or(0, Vec::len) as u64;
        let violation = Violation::Acknowledgment { expected, found };
        if expected != found {
            return Err(violation);
        }
        let batch = events.in_flight.pop_front().ok_or(violation)?;
        let waker = events.waker.take();
        drop(events);
        wake(waker);
        Ok(batch)
    }

    /// Number of events that a stream has taken and the server has not answered.
    pub(crate) fn in_flight(&self) -> u64 {
        let events = self.events();
        events.in_flight.iter().map(Vec::len).sum::<usize>() as u64
    }

    /// Number of events that may be stored: those in flight, and those that a broken stream had taken and that are to be
    /// sent again.
    pub(crate) fn unanswered(&self) -> u64 {
        let events = self.events();
        let in_flight = events.in_flight.iter().map(Vec::len).sum::<usize>();
        let again = events.again.iter().filter(|queued| queued.is_unanswered);
        (in_flight + again.count()) as u64
    }

    /// Whether the last stream has taken the last event there will be, and every event was answered.
    pub(crate) fn is_done(&self) -> bool {
        let events = self.events();
        events.has_ended && events.in_flight.is_empty() && events.again.is_empty()
    }

    /// Takes the events in flight back, to be sent again. Of a closed stream only. `is_certain`: it has stored none of
    /// them.
    pub(crate) fn take_back(&self, is_certain: bool) {
        let mut events = self.events();
        if !is_certain {
            for queued in events.in_flight.iter_mut().flatten() {
                queued.is_unanswered = true;
            }
        }
        events.take_back();
    }

    /// Takes the events in flight back after a refusal, and returns what was refused. A batch that has `too_many` events
    /// is halved, and so are all after it; otherwise its events go alone.
    pub(crate) fn refuse(&self, too_many: bool) -> Refused {
        let mut events = self.events();
        let refused = match events.in_flight.front().map(Vec::as_slice) {
            None => Refused::Call,
            Some([_]) => Refused::Event,
            Some(batch) => {
                let half = batch.len() / 2;
                let end = batch.last().map_or(0, |last| last.index + 1);
                match too_many {
                    true => events.max_batch_events = half,
                    false => events.alone_before = end,
                }
                Refused::Batch
            }
        };
        events.take_back();
        refused
    }

    /// Removes the first event that is to be sent again.
    pub(crate) fn skip(&self) -> Option<Queued> {
        self.events().again.pop_front()
    }

    /// Takes no further event from the sender.
    pub(crate) fn close(&self) {
        self.events().queue.close();
    }

    /// Removes all events: those that may be stored, and those that no stream has taken, or that were taken back and are
    /// certainly not stored.
    pub(crate) fn drain(&self) -> (Vec<NewEvent>, Vec<NewEvent>) {
        let mut events = self.events();
        let in_flight = events.in_flight.drain(..).flatten();
        let mut unknown: Vec<_> = in_flight.map(|queued| queued.event).collect();
        let mut rest = Vec::new();
        // A broken stream had taken the oldest of them, so the order stays.
        for queued in events.again.drain(..) {
            match queued.is_unanswered {
                true => unknown.push(queued.event),
                false => rest.push(queued.event),
            }
        }
        while let Ok(queued) = events.queue.try_recv() {
            rest.push(queued.event);
        }
        (unknown, rest)
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        // Each change is whole before anything could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events {
    fn close_stream(&mut self) {
        self.stream += 1;
        self.is_open = false;
        self.is_trial = false;
        self.has_ended = false;
        self.waker = None;
    }

    fn take_back(&mut self) {
        for queued in self
            .in_flight
            .drain(..)
            .rev()
            .flat_map(|batch| batch.into_iter().rev())
        {
            self.again.push_front(queued);
        }
    }

    fn poll_request(&mut self, stream: u64, cx: &mut Context<'_>) -> Poll<Option<PublishRequest>> {
        if stream != self.stream {
            return Poll::Ready(None);
        }
        // The slot first: events that arrive while all slots are taken then share one larger request.
        let max_in_flight = if self.is_trial { 1 } else { self.max_in_flight };
        if !self.is_open || self.in_flight.len() >= max_in_flight {
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let first = match self.again.pop_front() {
            Some(first) => Some(first),
            None => ready!(self.queue.poll_recv(cx)),
        };
        let Some(first) = first else {
            self.has_ended = true;
            return Poll::Ready(None);
        };
        let batch = self.batch(first);
        let events = batch.iter().map(|queued| queued.event.clone()).collect();
        self.in_flight.push_back(batch);
        Poll::Ready(Some(PublishRequest { events }))
    }

    /// Returns the events of one request that begins with `first`: those that are ready, up to the limits.
    fn batch(&mut self, first: Queued) -> Vec<Queued> {
        let is_alone = self.is_trial || first.index < self.alone_before;
        let mut bytes = first.event.encoded_len();
        let mut batch = vec![first];
        while !is_alone && batch.len() < self.max_batch_events {
            let next = self.again.pop_front();
            let Some(next) = next.or_else(|| self.queue.try_recv().ok()) else {
                break;
            };
            bytes += next.event.encoded_len();
            if bytes > self.max_batch_bytes {
                self.again.push_front(next);
                break;
            }
            batch.push(next);
        }
        batch
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;

    use super::*;

    fn outbox(options: PublisherOptions) -> (mpsc::Sender<Queued>, Outbox) {
        let (sender, queue) = mpsc::channel(100);
        (sender, Outbox::new(queue, options))
    }

    fn fill(sender: &mpsc::Sender<Queued>, payloads: &[usize]) {
        for (index, &payload) in payloads.iter().enumerate() {
            let event = NewEvent {
                topic: "a".into(),
                payload: vec![0; payload].into(),
                ..Default::default()
            };
            let charge = event.encoded_len();
            let index = index as u64;
            let queued = Queued {
                event,
                charge,
                index,
                is_unanswered: false,
            };
            sender.try_send(queued).unwrap();
        }
    }

    /// Sizes of the requests that a stream can take now.
    fn sizes(outbox: &Outbox, stream: u64) -> Vec<usize> {
        let mut cx = Context::from_waker(noop_waker_ref());
        let mut sizes = Vec::new();
        while let Poll::Ready(Some(request)) = outbox.poll_request(stream, &mut cx) {
            sizes.push(request.events.len());
        }
        sizes
    }

    fn answer(count: u32) -> PublishResponse {
        PublishResponse {
            count,
            ..Default::default()
        }
    }

    fn options() -> PublisherOptions {
        PublisherOptions {
            max_batch_events: 3,
            max_batch_bytes: 100,
            ..Default::default()
        }
    }

    #[test]
    fn stream_on_trial_takes_one_event_until_it_is_open() {
        let (sender, outbox) = outbox(options());
        fill(&sender, &[1, 1, 1, 1]);
        drop(sender);
        let stream = outbox.begin_stream();
        outbox.open_on_trial();
        assert_eq!(sizes(&outbox, stream), [1]);
        assert_eq!(outbox.unanswered(), 1);
        outbox.open();
        assert_eq!(sizes(&outbox, stream), [3]);
    }

    #[test]
    fn batch_is_what_is_ready_up_to_its_limits() {
        let (sender, outbox) = outbox(options());
        fill(&sender, &[1, 1, 1, 1, 60, 60, 500, 1]);
        drop(sender);
        let stream = outbox.begin_stream();
        assert!(sizes(&outbox, stream).is_empty(), "it is not open");
        outbox.open();
        assert_eq!(sizes(&outbox, stream), [3, 2, 1, 1, 1]);
        assert_eq!(outbox.in_flight(), 8);
        assert!(!outbox.is_done());
        for count in [3, 2, 1, 1, 1] {
            let batch = outbox.acknowledge(&answer(count)).unwrap();
            let bytes = batch.iter().map(|queued| queued.event.encoded_len());
            assert_eq!(bytes.sum::<usize>(), batch.iter().map(|q| q.charge).sum());
        }
        assert!(outbox.is_done());
    }

    #[test]
    fn requests_in_flight_are_bounded() {
        let (sender, outbox) = outbox(PublisherOptions {
            max_in_flight: 1,
            ..options()
        });
        fill(&sender, &[60, 60]);
        let stream = outbox.begin_stream();
        outbox.open();
        assert_eq!(sizes(&outbox, stream), [1]);
        outbox.acknowledge(&answer(1)).unwrap();
        assert_eq!(sizes(&outbox, stream), [1]);
    }

    #[test]
    fn stream_that_was_closed_gets_nothing() {
        let (sender, outbox) = outbox(options());
        let old = outbox.begin_stream();
        outbox.open();
        let new = outbox.begin_stream();
        outbox.open();
        fill(&sender, &[1]);
        assert!(sizes(&outbox, old).is_empty());
        assert_eq!(outbox.in_flight(), 0);
        assert_eq!(sizes(&outbox, new), [1]);
    }

    #[test]
    fn events_taken_back_come_first_and_in_order() {
        let (sender, outbox) = outbox(options());
        fill(&sender, &[60, 61, 62]);
        let stream = outbox.begin_stream();
        outbox.open();
        assert_eq!(sizes(&outbox, stream), [1, 1, 1]);
        outbox.acknowledge(&answer(1)).unwrap();
        outbox.close_stream();
        outbox.take_back(true);
        let (in_flight, rest) = outbox.drain();
        assert!(in_flight.is_empty());
        let sizes: Vec<_> = rest.iter().map(|event| event.payload.len()).collect();
        assert_eq!(sizes, [61, 62]);
    }

    #[test]
    fn refused_batch_is_sent_event_by_event_or_halved() {
        for (too_many, expected) in [(false, vec![1, 1, 1, 3]), (true, vec![1, 1, 1, 1, 1, 1])] {
            let (sender, outbox) = outbox(options());
            fill(&sender, &[1; 6]);
            let stream = outbox.begin_stream();
            outbox.open();
            assert_eq!(sizes(&outbox, stream), [3, 3]);
            assert_eq!(outbox.refuse(too_many), Refused::Batch);
            let stream = outbox.begin_stream();
            outbox.open();
            assert_eq!(sizes(&outbox, stream), expected);
            assert_eq!(outbox.refuse(too_many), Refused::Event);
            assert_eq!(outbox.skip().unwrap().index, 0);
        }
    }

    #[test]
    fn refusal_before_any_event_is_one_of_the_call() {
        let (_sender, outbox) = outbox(options());
        assert_eq!(outbox.refuse(false), Refused::Call);
    }

    #[test]
    fn response_must_match_the_oldest_request() {
        let (sender, outbox) = outbox(options());
        fill(&sender, &[1; 3]);
        let stream = outbox.begin_stream();
        outbox.open();
        sizes(&outbox, stream);
        let wrong = |found, expected| Violation::Acknowledgment { expected, found };
        assert_eq!(outbox.acknowledge(&answer(2)).unwrap_err(), wrong(2, 3));
        assert_eq!(outbox.acknowledge(&answer(3)).unwrap().len(), 3);
        assert_eq!(outbox.acknowledge(&answer(3)).unwrap_err(), wrong(3, 0));
    }
}
