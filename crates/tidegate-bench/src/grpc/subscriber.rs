//! Subscriptions on one connection: reads and counts responses.

use std::rc::Rc;

use h2::RecvStream;

use super::{Client, Driver, Grpc, Task, status};
use crate::{
    Error,
    stream::Stream,
    wire::{Messages, Response},
};

/// One connection with its subscriptions.
#[derive(Debug)]
pub struct GrpcConnection {
    /// The tasks that read the streams. Declared before the driver, so that they are dropped first.
    _readers: Vec<Task>,
    /// Streams that are open and not read.
    _unread: Vec<Reader>,
    _client: Client,
    _driver: Driver,
}

/// Reads one stream of responses.
#[derive(Debug)]
pub(crate) struct Reader {
    body: RecvStream,
    messages: Messages,
}

// ===== impl GrpcConnection =====

impl GrpcConnection {
    pub(super) async fn open(
        grpc: &Grpc,
        streams: Vec<Rc<Stream>>,
        stalled: bool,
    ) -> Result<Self, Error> {
        let (mut client, driver) = Driver::open(grpc, streams.len()).await?;
        let mut readers = Vec::new();
        let mut unread = Vec::new();
        for stream in streams {
            let mut reader = client.subscribe(stream.filters()).await?;
            stream.begin(reader.subscribed(&stream).await?);
            if stalled {
                unread.push(reader);
            } else {
                readers.push(Task::spawn(async move {
                    let Err(error) = reader.count(&stream).await;
                    stream.fail(error);
                }));
            }
        }
        if stalled {
            driver.halt();
        }
        Ok(Self {
            _readers: readers,
            _unread: unread,
            _client: client,
            _driver: driver,
        })
    }
}

// ===== impl Reader =====

impl Reader {
    pub(super) fn new(body: RecvStream) -> Self {
        Self {
            body,
            messages: Messages::default(),
        }
    }

    /// Waits for `Subscribed`, and returns its next index.
    async fn subscribed(&mut self, stream: &Stream) -> Result<u64, Error> {
        loop {
            let mut index = None;
            self.next(|response| match (response, index) {
                (Response::Subscribed { next_index }, None) => {
                    stream.begin(next_index);
                    index = Some(next_index);
                    Ok(())
                }
                (_, None) => Err(Error::Violation(
                    "the first response of a stream was not `subscribed`".into(),
                )),
                (response, Some(_)) => account(stream, &response),
            })
            .await?;
            if let Some(index) = index {
                return Ok(index);
            }
        }
    }

    /// Waits for the first response, of any kind.
    pub(crate) async fn first(&mut self) -> Result<(), Error> {
        let mut some = false;
        while !some {
            self.next(|_| {
                some = true;
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Records responses in the stream, until an error ends it.
    async fn count(&mut self, stream: &Stream) -> Result<std::convert::Infallible, Error> {
        loop {
            self.next(|response| account(stream, &response)).await?;
        }
    }

    /// Waits for the next chunk, and passes its responses to `each`.
    async fn next(
        &mut self,
        mut each: impl FnMut(Response<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let broken = |error: h2::Error| Error::broken("Subscribe", error);
        let Some(chunk) = self.body.data().await else {
            let trailers = self.body.trailers().await.map_err(broken)?;
            return Err(status("Subscribe", &trailers.unwrap_or_default()));
        };
        let chunk = chunk.map_err(broken)?;
        self.messages
            .push(&chunk, |message| each(Response::parse(message)?))?;
        let released = self.body.flow_control().release_capacity(chunk.len());
        released.map_err(broken)
    }
}

fn account(stream: &Stream, response: &Response<'_>) -> Result<(), Error> {
    match response {
        Response::Batch(batch) => stream.deliver(batch.first_index, batch.count, batch.payloads()),
        Response::Gap { first_index, count } => stream.miss(*first_index, *count),
        Response::Other => Ok(()),
        Response::Subscribed { .. } => Err(Error::Violation("`subscribed` came twice".into())),
    }
}
