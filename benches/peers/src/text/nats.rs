//! The protocol of NATS.

use std::io::Write as _;

use tidegate_bench::{Error, target::Outgoing};

use super::{Message, Protocol, decimal, line, put_payload};

const CONNECT: &[u8] =
    b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"bench\",\"version\":\"1\"}\r\n";
const PING: &[u8] = b"PING\r\n";

/// NATS.
#[derive(Debug, Clone)]
pub(crate) struct Nats;

impl Protocol for Nats {
    const ANSWERS: bool = false;

    fn subscribe(&self, topic: &str) -> Vec<u8> {
        [CONNECT, b"SUB ", topic.as_bytes(), b" 1\r\n", PING].concat()
    }

    fn introduce(&self) -> Vec<u8> {
        CONNECT.to_vec()
    }

    fn put(&self, out: &mut Vec<u8>, event: &Outgoing<'_>) {
        // Writing to a vector does not fail.
        let _ = write!(out, "PUB {} {}\r\n", event.topic, event.size);
        put_payload(out, event);
        out.extend_from_slice(b"\r\n");
    }

    fn farewell(&self) -> Vec<u8> {
        PING.to_vec()
    }

    fn message<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Message<'a>, usize)>, Error> {
        let Some((line, end)) = line(bytes) else {
            return Ok(None);
        };
        if line.starts_with(b"MSG ") {
            let size = line.rsplit(|&byte| byte == b' ').next().and_then(decimal);
            let size = size.ok_or_else(|| Error::Violation("a MSG has no size".into()))?;
            let payload = bytes.get(end..end + size + 2);
            return Ok(payload.map(|payload| (Message::Event(&payload[..size]), end + size + 2)));
        }
        let message = match line {
            b"PONG" => Message::Confirmed,
            b"PING" => Message::Ping(b"PONG\r\n"),
            line if line.starts_with(b"-ERR") => {
                return Err(Error::Violation(String::from_utf8_lossy(line).into_owned()));
            }
            _ => Message::Other,
        };
        Ok(Some((message, end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found() {
        let bytes = b"MSG a.b 1 4\r\n\r\nxy\r\nPONG\r\nPING\r\nINFO {}\r\nMSG a";
        let mut at = 0;
        for expected in [
            Message::Event(b"\r\nxy"),
            Message::Confirmed,
            Message::Ping(b"PONG\r\n"),
            Message::Other,
        ] {
            let (message, len) = Nats.message(&bytes[at..]).unwrap().unwrap();
            assert_eq!(message, expected);
            at += len;
        }
        assert_eq!(Nats.message(&bytes[at..]).unwrap(), None);
        assert_eq!(Nats.message(b"MSG a 1 4\r\nabcd\r").unwrap(), None);
        assert!(Nats.message(b"-ERR 'Slow Consumer'\r\n").is_err());
    }
}
