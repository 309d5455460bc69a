//! Lean clients of protocols that are simpler than HTTP/2: read much, look for payloads, count them.

pub(crate) mod nats;
pub(crate) mod raw;
pub(crate) mod redis;

use std::{cell::Cell, net::SocketAddr, rc::Rc};

use tidegate_bench::{
    Error, Server, Stream,
    target::{Accepted, Outgoing, Publisher, Target},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    task::AbortHandle,
};

/// The first size of a read buffer, so that an idle connection is not held up by it.
const FIRST: usize = 4 << 10;

/// The greatest size of a read buffer, except for one longer message.
const MOST: usize = 256 << 10;

/// Batches that a publisher sends before it waits for their answers, where there are any.
const IN_FLIGHT: u64 = 8;

/// A protocol.
pub(crate) trait Protocol: std::fmt::Debug + Clone + Send + 'static {
    /// Whether each published event is answered.
    const ANSWERS: bool;

    /// What a subscriber says. It will be confirmed.
    fn subscribe(&self, topic: &str) -> Vec<u8>;

    /// What a publisher says first.
    fn introduce(&self) -> Vec<u8>;

    /// Appends an event to publish.
    fn put(&self, out: &mut Vec<u8>, event: &Outgoing<'_>);

    /// What a publisher says last. If it is something, it will be confirmed.
    fn farewell(&self) -> Vec<u8>;

    /// The first message in `bytes`, and how long it is. `None` if its end is not there.
    fn message<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Message<'a>, usize)>, Error>;
}

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// An event with this payload.
    Event(&'a [u8]),
    /// A subscription is in force, or all that was published has arrived.
    Confirmed,
    /// An event was accepted.
    Answer,
    /// It wants to hear this.
    Ping(&'static [u8]),
    /// Nothing of interest.
    Other,
}

/// A server that speaks such a protocol.
#[derive(Debug, Clone)]
pub(crate) struct Text<P> {
    address: SocketAddr,
    protocol: P,
}

/// One connection with its subscription.
#[derive(Debug)]
pub(crate) struct TextConnection {
    reader: Option<AbortHandle>,
    /// A stalled one, open and not read.
    _unread: Option<Reader>,
    _write: Rc<tokio::sync::Mutex<OwnedWriteHalf>>,
}

/// What was read and not looked at.
#[derive(Debug)]
struct Reader {
    socket: OwnedReadHalf,
    buffer: Vec<u8>,
    filled: usize,
}

/// Publishes on one connection.
#[derive(Debug)]
pub(crate) struct TextPublisher<P> {
    protocol: P,
    write: OwnedWriteHalf,
    out: Vec<u8>,
    sent: u64,
    heard: Rc<Heard>,
    reader: AbortHandle,
}

/// What a publisher was told.
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
        let socket = TcpStream::connect(self.address)
            .await
            .map_err(|error| Error::Connect {
                address: self.address.to_string(),
                reason: error.to_string(),
            })?;
        socket.set_nodelay(true).map_err(broken)?;
        Ok(socket.into_split())
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
            .map_err(|_| Error::Invalid("there is one stream on a connection here".into()))?;
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
            // Whoever waits for an answer reports that there is none.
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
            buffer: vec![0; FIRST],
            filled: 0,
        }
    }

    /// Reads more. The buffer grows as long as reads fill it.
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
            return Err(broken("the server closed it"));
        }
        self.filled += read;
        Ok(())
    }

    /// Looks at every message that is there.
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

    /// Makes room after so many bytes were looked at.
    fn consume(&mut self, at: usize) {
        let full = self.filled == self.buffer.len();
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        if full && self.buffer.len() < MOST {
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

    /// Tells the stream what arrives, until something is wrong.
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

    /// Notes what a publisher is told.
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
    /// Waits until something is so.
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

/// The line that begins here, without its end, and how long it is with it.
fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    Some((
        bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]),
        end + 1,
    ))
}

/// A number in decimal digits.
fn decimal(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Appends the payload of an event.
fn put_payload(out: &mut Vec<u8>, event: &Outgoing<'_>) {
    out.extend_from_slice(&event.head);
    out.resize(out.len() + event.size - event.head.len(), 0);
}
