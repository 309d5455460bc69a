//! The interface of a server under load, so that one engine drives several kinds.

use std::{fmt, future::Future, rc::Rc};

use crate::{Error, Latencies, stream::Stream};

/// A kind of server, at an address.
///
/// Its futures run on one thread, together with the futures of other connections.
pub trait Target: fmt::Debug + Clone + Send + 'static {
    /// A connection with its subscriptions. Dropping it ends them.
    type Connection: 'static;
    /// A connection to publish on.
    type Publisher: Publisher;

    /// Opens one connection with these subscriptions. Returns when the server has confirmed all of them: every event
    /// published from then on must arrive. Arrivals go to the streams, by [`Stream::deliver`] and the like, and
    /// failures too, by [`Stream::fail`]. With `stalled`, the connection reads nothing from then on.
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
    /// The topic.
    pub topic: &'a str,
    /// The head of the payload. Zeros follow.
    pub head: [u8; crate::payload::HEAD],
    /// Size of the payload in bytes, the head included.
    pub size: usize,
}

/// A connection to publish on.
pub trait Publisher: 'static {
    /// Sends a batch, once few enough of the batches before it are unanswered. The time to the answer is recorded only
    /// if `measured`.
    fn publish(
        &mut self,
        batch: &[Outgoing<'_>],
        measured: bool,
    ) -> impl Future<Output = Result<(), Error>>;

    /// Waits until the server has accepted every event that was sent.
    fn finish(self) -> impl Future<Output = Result<Accepted, Error>>;
}

/// The result of publishing on one connection.
#[derive(Debug, Default)]
pub struct Accepted {
    /// Events that the server acknowledged, if its protocol has acknowledgments.
    pub events: Option<u64>,
    /// Times from sending a batch to its answer, if the protocol has answers.
    pub answers: Latencies,
}
