//! Clients that come, are cut, and come back.

use std::any::Any;

use h2::RecvStream;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use super::{Client, Driver, Grpc, status};
use crate::{
    Error,
    target::{Arrival, Position, Returning},
    wire::{Messages, Return},
};

/// A connection of a client that has come. Dropping it resets the connection.
#[derive(Debug)]
pub struct GrpcReturned {
    _body: RecvStream,
    _client: Client,
    _driver: Driver,
}

/// The first bytes of a client of HTTP/2: the preface of a connection, and SETTINGS without any.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

impl Returning for Grpc {
    const RESUMES: bool = true;
    type Returned = GrpcReturned;
    type Opened = Box<dyn Any>;

    async fn open(&self) -> Result<Box<dyn Any>, Error> {
        let socket = self.resetting_socket().await?;
        match &self.tls {
            None => greet(socket).await,
            Some(tls) => greet(tls.connect(socket).await?).await,
        }
    }

    async fn come(
        &self,
        topic: &str,
        after: Option<Position>,
    ) -> Result<Arrival<GrpcReturned>, Error> {
        let socket = self.resetting_socket().await?;
        let connected = Instant::now();
        let (mut client, driver) = Driver::over(socket, self, 1).await?;
        let mut body = client.resume(&[topic.to_owned()], after).await?;
        let mut messages = Messages::default();
        let (mut position, mut events, mut is_done) = (None, 0, false);
        while !is_done {
            let broken = |error: h2::Error| Error::broken("Subscribe", error);
            let Some(chunk) = body.data().await else {
                let trailers = body.trailers().await.map_err(broken)?;
                return Err(status("Subscribe", &trailers.unwrap_or_default()));
            };
            let chunk = chunk.map_err(broken)?;
            messages.push(&chunk, |message| {
                match Return::parse(message)? {
                    Return::Subscribed(head) => {
                        position = Some(head);
                        is_done |= after.is_none();
                    }
                    Return::Events(count) => events += count,
                    Return::CaughtUp => is_done = true,
                    // After a restart the server says that the sequences of before mean nothing to it.
                    Return::Gap(0) | Return::Other => {}
                    Return::Gap(count) => {
                        return Err(Error::Lost(format!(
                            "a client that came back had missed {count} events for good; with fewer to catch up on \
                             (--missed) they stay in history"
                        )));
                    }
                }
                Ok(())
            })?;
            let released = body.flow_control().release_capacity(chunk.len());
            released.map_err(broken)?;
        }
        Ok(Arrival {
            connection: GrpcReturned {
                _body: body,
                _client: client,
                _driver: driver,
            },
            connected,
            caught_up: Instant::now(),
            position,
            events,
        })
    }
}

impl Grpc {
    /// Opens a socket whose end is a reset, as when a machine goes. It leaves no port behind that waits for a minute, of
    /// which there are too few for several storms.
    async fn resetting_socket(&self) -> Result<TcpStream, Error> {
        let socket = self.socket().await?;
        socket
            .set_zero_linger()
            .map_err(Error::system("cannot set a socket option"))?;
        Ok(socket)
    }
}

/// Begins HTTP/2 and waits for the first bytes of the server.
async fn greet(
    mut transport: impl AsyncRead + AsyncWrite + Unpin + 'static,
) -> Result<Box<dyn Any>, Error> {
    let broken = |error: std::io::Error| Error::broken("connecting", error);
    transport.write_all(PREFACE).await.map_err(broken)?;
    transport.flush().await.map_err(broken)?;
    transport.read_u8().await.map_err(broken)?;
    Ok(Box::new(transport))
}
