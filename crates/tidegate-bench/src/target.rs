//! What a server under load must be able to do, so that one engine drives several kinds.

use std::{fmt, future::Future, rc::Rc};

use crate::{Error, Latencies, stream::Stream};

/// A kind of server at some address.
///
/// Its futures run on one thread, together with those of other connections.
pub trait Target: fmt::Debug + Clone + Send + 'static {
    /// Keeps a connection and its subscriptions; dropping it ends them.
    type Connection: 'static;
    /// Publishes.
    type Publisher: Publisher;

    /// Opens one connection and these subscriptions on it. Returns when the server has confirmed all of
    /// them: every event that is published from then on must arrive. What arrives is told to the streams,
    /// and so is what goes wrong. With `stalled`, nothing is read from then on.
    fn subscribe(
        &self,
        streams: Vec<Rc<Stream>>,
        stalled: bool,
    ) -> impl Future<Output = Result<Self::Connection, Error>>;

    /// Opens a connection to publish on.
    fn publisher(&self) -> impl Future<Output = Result<Self::Publisher, Error>>;
}

/// An event to publish.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Where to.
    pub topic: &'a str,
    /// The begin of the payload.
    pub head: [u8; crate::payload::HEAD],
    /// The size of the payload.
    pub size: usize,
}

/// Publishes on one connection.
pub trait Publisher: 'static {
    /// Sends a batch, when the server has answered enough of those before it. Whether an answer took
    /// long counts only if `measured`.
    fn publish(
        &mut self,
        batch: &[Outgoing<'_>],
        measured: bool,
    ) -> impl Future<Output = Result<(), Error>>;

    /// Waits until the server has taken all that was sent.
    fn finish(self) -> impl Future<Output = Result<Accepted, Error>>;
}

/// What became of what was published.
#[derive(Debug, Default)]
pub struct Accepted {
    /// How many events the server said it accepted, if it does say.
    pub events: Option<u64>,
    /// From sending a batch to its answer, where there are answers.
    pub answers: Latencies,
}
