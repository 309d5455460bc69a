//! Publishing on one `PublishStream`.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    time::Instant,
};

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use tokio::sync::Notify;

use super::{Driver, Grpc, Task, accepted, status};
use crate::{
    Error, Latencies,
    clock::nanos,
    target::{Accepted, Outgoing, Publisher},
    wire::{Messages, finish_message, number, publish_request, put_event},
};

/// The field of a `PublishResponse` that says how many events were accepted.
const COUNT: u64 = 3;

/// Publishes batches on one stream, several of them before the first is answered.
#[derive(Debug)]
pub struct GrpcPublisher {
    body: SendStream<Bytes>,
    in_flight: usize,
    answers: Rc<Answers>,
    _reader: Task,
    _driver: Driver,
}

/// The answers of the server, and the requests that wait for one.
#[derive(Debug, Default)]
struct Answers {
    /// For each unanswered request, the time it was sent, and whether its latency counts.
    waiting: RefCell<VecDeque<(Instant, bool)>>,
    latencies: RefCell<Latencies>,
    accepted: Cell<u64>,
    failure: RefCell<Option<Error>>,
    /// Notified of each answer, and of the failure.
    changed: Notify,
}

// ===== impl GrpcPublisher =====

impl GrpcPublisher {
    pub(super) async fn open(grpc: &Grpc) -> Result<Self, Error> {
        let (mut client, driver) = Driver::open(grpc, 1).await?;
        let (response, body) = client.call("PublishStream").await?;
        let answers = Rc::new(Answers::default());
        let theirs = answers.clone();
        let reader = Task::spawn(async move {
            if let Err(error) = theirs.read(response).await {
                theirs.failure.replace(Some(error));
                theirs.changed.notify_one();
            }
        });
        Ok(Self {
            body,
            in_flight: grpc.in_flight.max(1),
            answers,
            _reader: reader,
            _driver: driver,
        })
    }

    /// Waits until at most `max` requests are unanswered.
    async fn until_waiting(&self, max: usize) -> Result<(), Error> {
        loop {
            if let Some(error) = self.answers.failure.take() {
                return Err(error);
            }
            if self.answers.waiting.borrow().len() <= max {
                return Ok(());
            }
            self.answers.changed.notified().await;
        }
    }

    /// Sends all bytes, as fast as the windows of the server allow.
    async fn send(&mut self, mut message: Bytes) -> Result<(), Error> {
        let broken = |error: h2::Error| Error::broken("PublishStream", error);
        while !message.is_empty() {
            self.body.reserve_capacity(message.len());
            let room = poll_fn(|cx| self.body.poll_capacity(cx)).await;
            let room = match room {
                Some(room) => room.map_err(broken)?,
                None => {
                    return Err(Error::broken(
                        "PublishStream",
                        "the server ended the stream",
                    ));
                }
            };
            let part = message.split_to(room.min(message.len()));
            self.body.send_data(part, false).map_err(broken)?;
        }
        Ok(())
    }
}

impl Publisher for GrpcPublisher {
    async fn publish(&mut self, batch: &[Outgoing<'_>], measured: bool) -> Result<(), Error> {
        self.until_waiting(self.in_flight - 1).await?;
        let capacity = batch
            .iter()
            .map(|event| event.size + event.topic.len() + 16)
            .sum();
        let mut message = publish_request(capacity);
        for event in batch {
            put_event(&mut message, event.topic, &event.head, event.size);
        }
        self.answers
            .waiting
            .borrow_mut()
            .push_back((Instant::now(), measured));
        let sent = self.send(finish_message(message).into()).await;
        // The status of the server says more than the failure to send that it caused.
        match (sent, self.answers.failure.take()) {
            (Err(_), Some(reason)) => Err(reason),
            (sent, _) => sent,
        }
    }

    async fn finish(mut self) -> Result<Accepted, Error> {
        self.until_waiting(0).await?;
        // Every request has been answered, so it does not matter whether the end of the stream arrives.
        let _ = self.body.send_data(Bytes::new(), true);
        Ok(Accepted {
            events: Some(self.answers.accepted.get()),
            answers: self.answers.latencies.take(),
        })
    }
}

// ===== impl Answers =====

impl Answers {
    async fn read(&self, response: ResponseFuture) -> Result<(), Error> {
        let broken = |error: h2::Error| Error::broken("PublishStream", error);
        let mut body = accepted("PublishStream", response.await.map_err(broken)?)?;
        let mut messages = Messages::default();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(broken)?;
            messages.push(&chunk, |message| self.answered(message))?;
            body.flow_control()
                .release_capacity(chunk.len())
                .map_err(broken)?;
        }
        let trailers = body.trailers().await.map_err(broken)?;
        Err(status("PublishStream", &trailers.unwrap_or_default()))
    }

    fn answered(&self, response: &[u8]) -> Result<(), Error> {
        let sent = self.waiting.borrow_mut().pop_front();
        let (sent, measured) =
            sent.ok_or_else(|| Error::Violation("there are more responses than requests".into()))?;
        if measured {
            self.latencies.borrow_mut().record(nanos(sent.elapsed()));
        }
        self.accepted
            .set(self.accepted.get() + number(response, COUNT)?);
        self.changed.notify_one();
        Ok(())
    }
}
