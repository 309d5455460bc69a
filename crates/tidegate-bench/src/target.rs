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

/// A kind of server whose clients can all come at once, be cut, and all come back.
pub trait Returning: Target {
    /// Whether a client that comes back gets what it missed.
    const RESUMES: bool;

    /// A connection that has come. Dropping it cuts it.
    type Returned: 'static;

    /// A connection that was only opened. Dropping it closes it.
    type Opened: 'static;

    /// Opens a connection. Returns when the server has accepted it, which it shows by its first bytes.
    fn open(&self) -> impl Future<Output = Result<Self::Opened, Error>>;

    /// Opens a connection and subscribes to a topic, after a position if there is one. Returns when the server has
    /// confirmed the subscription and, with a position, the client has all that was published since.
    fn come(
        &self,
        topic: &str,
        after: Option<Position>,
    ) -> impl Future<Output = Result<Arrival<Self::Returned>, Error>>;
}

/// A client that has come.
#[derive(Debug)]
pub struct Arrival<C> {
    /// Its connection.
    pub connection: C,
    /// The moment at which its connection was open.
    pub connected: tokio::time::Instant,
    /// The moment at which it had what it missed.
    pub caught_up: tokio::time::Instant,
    /// Where to resume when it comes back, if the server has positions.
    pub position: Option<Position>,
    /// Events that it had missed and got.
    pub events: u64,
}

/// A position in the events of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The identity of the server's sequence space.
    pub epoch: u64,
    /// The sequence of the last event.
    pub sequence: u64,
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
