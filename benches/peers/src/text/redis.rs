//! The protocol of Redis, version 2.

use std::io::Write as _;

use tidegate_bench::{Error, target::Outgoing};

use super::{Message, Protocol, decimal, line, put_payload};

/// Redis.
#[derive(Debug, Clone)]
pub(crate) struct Redis;

impl Protocol for Redis {
    const ANSWERS: bool = true;

    fn subscribe(&self, topic: &str) -> Vec<u8> {
        format!("*2\r\n$9\r\nSUBSCRIBE\r\n${}\r\n{topic}\r\n", topic.len()).into_bytes()
    }

    fn introduce(&self) -> Vec<u8> {
        Vec::new()
    }

    fn put(&self, out: &mut Vec<u8>, event: &Outgoing<'_>) {
        let (topic, size) = (event.topic, event.size);
        // Writing to a vector does not fail.
        let _ = write!(
            out,
            "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{topic}\r\n${size}\r\n",
            topic.len()
        );
        put_payload(out, event);
        out.extend_from_slice(b"\r\n");
    }

    fn farewell(&self) -> Vec<u8> {
        Vec::new()
    }

    fn message<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Message<'a>, usize)>, Error> {
        let Some((first, end)) = line(bytes) else {
            return Ok(None);
        };
        match first {
            [b':', ..] => Ok(Some((Message::Answer, end))),
            b"*3" => Ok(push(bytes, end)),
            _ => Err(Error::Violation(
                String::from_utf8_lossy(first).into_owned(),
            )),
        }
    }
}

/// An array of a kind, a topic, and a payload or number.
fn push(bytes: &[u8], start: usize) -> Option<(Message<'_>, usize)> {
    let (kind, end) = bulk(bytes, start)?;
    let (_topic, end) = bulk(bytes, end)?;
    if kind == b"message" {
        let (payload, end) = bulk(bytes, end)?;
        return Some((Message::Event(payload), end));
    }
    let (_count, len) = line(&bytes[end..])?;
    Some((Message::Confirmed, end + len))
}

/// A string with its length before it.
fn bulk(bytes: &[u8], start: usize) -> Option<(&[u8], usize)> {
    let (size, len) = line(bytes.get(start..)?)?;
    let size = decimal(size.strip_prefix(b"$")?)?;
    let start = start + len;
    Some((
        bytes.get(start..start + size + 2)?.split_at(size).0,
        start + size + 2,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found() {
        let bytes = b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n\
            *3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\n\r\nxy\r\n:5\r\n*3\r\n$7";
        let mut at = 0;
        for expected in [
            Message::Confirmed,
            Message::Event(b"\r\nxy"),
            Message::Answer,
        ] {
            let (message, len) = Redis.message(&bytes[at..]).unwrap().unwrap();
            assert_eq!(message, expected);
            at += len;
        }
        assert_eq!(Redis.message(&bytes[at..]).unwrap(), None);
        assert!(
            Redis
                .message(b"-ERR max number of clients reached\r\n")
                .is_err()
        );
    }
}
