//! Lean clients of protocols that are simpler than HTTP/2: they read into a large buffer and count payloads.

pub(crate) mod nats;
pub(crate) mod raw;
pub(crate) mod redis;

use std::{cell::Cell, net::SocketAddr, rc::Rc};

use tidegate_bench::{
    Error, Server, Stream,
    target::{Accepted, Arrival, Outgoing, Position, Publisher, Returning, Target},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    task::AbortHandle,
    time::Instant,
};

/// The first size of a read buffer in bytes: small, so that idle connections do not cost the benchmark its memory.
const MIN_BUFFER: usize = 4 << 10;

/// The largest size of a read buffer in bytes, except for a longer message.
const MAX_BUFFER: usize = 256 << 10;

/// The most unanswered batches of a publisher, if the protocol has answers.
const IN_FLIGHT: u64 = 8;

/// A protocol.
pub(crate) trait Protocol: std::fmt::Debug + Clone + Send + 'static {
    /// Whether the server answers each published event.
    const ANSWERS: bool;

    /// Returns the request of a subscriber. The server confirms it.
    fn subscribe(&self, topic: &str) -> Vec<u8>;

    /// Returns the first bytes of a publisher.
    fn introduce(&self) -> Vec<u8>;

    /// Appends an event to publish.
    fn put(&self, out: &mut Vec<u8>, event: &Outgoing<'_>);

    /// Returns the last bytes of a publisher. The server confirms them unless there are none.
    fn farewell(&self) -> Vec<u8>;

    /// Returns the first message in `bytes` and its length. `None` if the message is incomplete.
    fn message<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Message<'a>, usize)>, Error>;
}

/// A message of a server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// An event with this payload.
    Event(&'a [u8]),
    /// A subscription is in force, or all that was published has arrived.
    Confirmed,
    /// An event was accepted.
    Answer,
    /// A ping, with the answer to send.
    Ping(&'static [u8]),
    /// Any other message.
    Other,
}

/// A server of such a protocol.
#[derive(Debug, Clone)]
pub(crate) struct Text<P> {
    address: SocketAddr,
    protocol: P,
}

/// One connection with its subscription.
#[derive(Debug)]
pub(crate) struct TextConnection {
    reader: Option<AbortHandle>,
    /// The socket of a stalled connection, open and not read.
    _unread: Option<Reader>,
    _write: Rc<tokio::sync::Mutex<OwnedWriteHalf>>,
}

/// A socket, and the bytes read from it that are not parsed yet.
#[derive(Debug)]
pub(crate) struct Reader {
    socket: OwnedReadHalf,
    buffer: Vec<u8>,
    filled: usize,
}

/// A connection to publish on.
#[derive(Debug)]
pub(crate) struct TextPublisher<P> {
    protocol: P,
    write: OwnedWriteHalf,
    out: Vec<u8>,
    sent: u64,
    heard: Rc<Heard>,
    reader: AbortHandle,
}

/// The answers to a publisher.
#[derive(Debug, Default)]
struct Heard {
    answers: Cell<u64>,
    confirmed: Cell<bool>,
    broken: Cell<bool>,
    changed: Notify,
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::broken("the benchmark", error)
}

// ===== impl Text =====

impl<P: Protocol> Text<P> {
    pub(crate) const fn new(server: &Server, protocol: P) -> Self {
        Self {
            address: server.address(),
            protocol,
        }
    }

    async fn connect(&self) -> Result<(OwnedReadHalf, OwnedWriteHalf), Error> {
        Ok(self.socket().await?.into_split())
    }

    /// Connects with a socket whose end is a reset.
    async fn connect_to_reset(&self) -> Result<(OwnedReadHalf, OwnedWriteHalf), Error> {
        let socket = self.socket().await?;
        socket.set_zero_linger().map_err(broken)?;
        Ok(socket.into_split())
    }

    async fn socket(&self) -> Result<TcpStream, Error> {
        let socket = TcpStream::connect(self.address)
            .await
            .map_err(|error| Error::Connect {
                address: self.address.to_string(),
                reason: error.to_string(),
            })?;
        socket.set_nodelay(true).map_err(broken)?;
        Ok(socket)
    }
}

impl<P: Protocol> Target for Text<P> {
    type Connection = TextConnection;
    type Publisher = TextPublisher<P>;

    async fn subscribe(
        &self,
        streams: Vec<Rc<Stream>>,
        stalled: bool,
    ) -> Result<TextConnection, Error> {
        let [stream] = <[_; 1]>::try_from(streams)
            .map_err(|_| Error::Invalid("this protocol has one stream per connection".into()))?;
        let (read, mut write) = self.connect().await?;
        let request = self.protocol.subscribe(&stream.filters()[0]);
        write.write_all(&request).await.map_err(broken)?;
        let mut reader = Reader::new(read);
        while !reader.confirmed(&self.protocol)? {
            reader.fill().await?;
        }
        let write = Rc::new(tokio::sync::Mutex::new(write));
        let (mut unread, mut task) = (None, None);
        if stalled {
            unread = Some(reader);
        } else {
            let (protocol, write) = (self.protocol.clone(), write.clone());
            let reading = async move {
                if let Err(error) = reader.count(&protocol, &stream, &write).await {
                    stream.fail(error);
                }
            };
            task = Some(tokio::task::spawn_local(reading).abort_handle());
        }
        Ok(TextConnection {
            reader: task,
            _unread: unread,
            _write: write,
        })
    }

    async fn publisher(&self) -> Result<TextPublisher<P>, Error> {
        let (read, mut write) = self.connect().await?;
        write
            .write_all(&self.protocol.introduce())
            .await
            .map_err(broken)?;
        let heard = Rc::new(Heard::default());
        let (protocol, hearing) = (self.protocol.clone(), heard.clone());
        let reader = tokio::task::spawn_local(async move {
            let mut reader = Reader::new(read);
            // The publisher reports the failure when it waits for an answer.
            let _ = reader.hear(&protocol, &hearing).await;
            hearing.broken.set(true);
            hearing.changed.notify_one();
        });
        Ok(TextPublisher {
            protocol: self.protocol.clone(),
            write,
            out: Vec::new(),
            sent: 0,
            heard,
            reader: reader.abort_handle(),
        })
    }
}

/// Its clients get nothing of what they missed.
impl<P: Protocol> Returning for Text<P> {
    const RESUMES: bool = false;
    type Returned = (Reader, OwnedWriteHalf);
    type Opened = (Reader, OwnedWriteHalf);

    async fn open(&self) -> Result<Self::Opened, Error> {
        let (read, mut write) = self.connect_to_reset().await?;
        // Not every server says something before it is asked.
        let request = self.protocol.subscribe("opened");
        write.write_all(&request).await.map_err(broken)?;
        let mut reader = Reader::new(read);
        reader.fill().await?;
        Ok((reader, write))
    }

    async fn come(
        &self,
        topic: &str,
        _after: Option<Position>,
    ) -> Result<Arrival<Self::Returned>, Error> {
        let (read, mut write) = self.connect_to_reset().await?;
        let connected = Instant::now();
        let request = self.protocol.subscribe(topic);
        write.write_all(&request).await.map_err(broken)?;
        let mut reader = Reader::new(read);
        while !reader.confirmed(&self.protocol)? {
            reader.fill().await?;
        }
        Ok(Arrival {
            connection: (reader, write),
            connected,
            caught_up: Instant::now(),
            position: None,
            events: 0,
        })
    }
}

impl Drop for TextConnection {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

// ===== impl Reader =====

impl Reader {
    fn new(socket: OwnedReadHalf) -> Self {
        Self {
            socket,
            buffer: vec![0; MIN_BUFFER],
            filled: 0,
        }
    }

    /// Reads more bytes. The buffer grows as long as reads fill it.
    async fn fill(&mut self) -> Result<(), Error> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        let read = self
            .socket
            .read(&mut self.buffer[self.filled..])
            .await
            .map_err(broken)?;
        if read == 0 {
            return Err(broken("the server closed the connection"));
        }
        self.filled += read;
        Ok(())
    }

    /// Passes every complete message to `each`.
    fn each<P: Protocol>(
        &mut self,
        protocol: &P,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<(), Error> {
        let mut at = 0;
        while let Some((message, len)) = protocol.message(&self.buffer[at..self.filled])? {
            at += len;
            each(message);
        }
        self.consume(at);
        Ok(())
    }

    /// Discards the first `at` bytes, which are parsed.
    fn consume(&mut self, at: usize) {
        let full = self.filled == self.buffer.len();
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        if full && self.buffer.len() < MAX_BUFFER {
            self.buffer.resize(2 * self.buffer.len(), 0);
        }
    }

    fn confirmed(&mut self, protocol: &impl Protocol) -> Result<bool, Error> {
        let mut confirmed = false;
        self.each(protocol, |message| {
            confirmed |= message == Message::Confirmed
        })?;
        Ok(confirmed)
    }

    /// Records arrivals in the stream, until an error ends it.
    async fn count(
        &mut self,
        protocol: &impl Protocol,
        stream: &Stream,
        write: &tokio::sync::Mutex<OwnedWriteHalf>,
    ) -> Result<(), Error> {
        loop {
            self.fill().await?;
            let mut at = 0;
            let mut reply: Option<&[u8]> = None;
            let mut wrong = None;
            let bytes = &self.buffer[..self.filled];
            let payloads = std::iter::from_fn(|| {
                loop {
                    match protocol.message(&bytes[at..]) {
                        Ok(Some((message, len))) => {
                            at += len;
                            match message {
                                Message::Event(payload) => return Some(payload),
                                Message::Ping(pong) => reply = Some(pong),
                                _ => {}
                            }
                        }
                        Ok(None) => return None,
                        Err(error) => {
                            wrong = Some(error);
                            return None;
                        }
                    }
                }
            });
            stream.deliver_numbered(payloads)?;
            if let Some(error) = wrong {
                return Err(error);
            }
            self.consume(at);
            if let Some(reply) = reply {
                write.lock().await.write_all(reply).await.map_err(broken)?;
            }
        }
    }

    /// Records the answers to a publisher.
    async fn hear(&mut self, protocol: &impl Protocol, heard: &Heard) -> Result<(), Error> {
        loop {
            self.fill().await?;
            self.each(protocol, |message| match message {
                Message::Answer => heard.answers.set(heard.answers.get() + 1),
                Message::Confirmed => heard.confirmed.set(true),
                _ => {}
            })?;
            heard.changed.notify_one();
        }
    }
}

// ===== impl TextPublisher =====

impl<P: Protocol> TextPublisher<P> {
    /// Waits until `so` holds.
    async fn until(&self, so: impl Fn(&Heard) -> bool) -> Result<(), Error> {
        while !so(&self.heard) {
            if self.heard.broken.get() {
                return Err(broken("the server ended the publisher's connection"));
            }
            self.heard.changed.notified().await;
        }
        Ok(())
    }
}

impl<P: Protocol> Publisher for TextPublisher<P> {
    async fn publish(&mut self, batch: &[Outgoing<'_>], _measured: bool) -> Result<(), Error> {
        let most = IN_FLIGHT * batch.len() as u64;
        let sent = self.sent;
        self.until(|heard| !P::ANSWERS || sent - heard.answers.get() < most)
            .await?;
        self.out.clear();
        for event in batch {
            self.protocol.put(&mut self.out, event);
        }
        self.sent += batch.len() as u64;
        self.write.write_all(&self.out).await.map_err(broken)
    }

    async fn finish(mut self) -> Result<Accepted, Error> {
        let farewell = self.protocol.farewell();
        if !farewell.is_empty() {
            self.write.write_all(&farewell).await.map_err(broken)?;
            self.until(|heard| heard.confirmed.get()).await?;
        }
        let sent = self.sent;
        self.until(|heard| !P::ANSWERS || heard.answers.get() == sent)
            .await?;
        Ok(Accepted {
            events: P::ANSWERS.then(|| self.heard.answers.get()),
            ..Accepted::default()
        })
    }
}

impl<P> Drop for TextPublisher<P> {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Returns the line that `bytes` begin with, without its ending, and its length with the ending.
fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    Some((
        bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]),
        end + 1,
    ))
}

/// Parses a decimal number.
fn decimal(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Appends the payload of an event.
fn put_payload(out: &mut Vec<u8>, event: &Outgoing<'_>) {
    out.extend_from_slice(&event.head);
    out.resize(out.len() + event.size - event.head.len(), 0);
}
