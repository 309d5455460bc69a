//! The messages of a request: framed, compressed or not, and within their limits before they are decoded.
//!
//! tonic's reader keeps the buffers of the largest message for as long as the stream lives, so a few KiB of compressed
//! zeros in each of some thousand publish streams would hold gigabytes. This one holds a message no longer than it takes to
//! decode it.
//!
//! # Bounds
//! The limit of a message is one on its bytes as they are sent and on what they become. A message is inflated in pieces, and
//! other tasks run in between. What becomes [`PIECE`] or more needs one of [`LARGE_AT_ONCE`] permits, so that a
//! thousand streams together hold no more than as many of the largest messages.

use std::{io::Read as _, sync::Arc};

use bytes::{Buf as _, Bytes, BytesMut, buf::Reader};
use flate2::bufread::GzDecoder;
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::yield_now,
};
use tonic::Status;

use super::precheck::Precheck;
use crate::{
    framing::PREFIX,
    reason::Reason,
    status::{malformed, too_large, unsupported_encoding},
};

/// Header that names the compression of a request's messages.
const ENCODING: &str = "grpc-encoding";

/// Bytes that are inflated before other tasks run. A message with fewer needs no permit.
const PIECE: usize = 64 << 10;

/// Number of messages of [`PIECE`] bytes and more that the process inflates at once.
const LARGE_AT_ONCE: usize = 4;

/// Largest number of bytes that one byte of DEFLATE becomes, rounded up.
const MAX_RATIO: usize = 1_040;

static LARGE: Semaphore = Semaphore::const_new(LARGE_AT_ONCE);

/// Error of a body, of any kind.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Compression of the messages of a request that are marked as compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    /// None: no message may be marked.
    Identity,
    Gzip,
}

/// Checks that the messages of a request with these headers can be read: they are not compressed, or by gzip.
/// [`EventService`](crate::EventService) checks it itself; it is for the services that you serve beside it.
///
/// # Errors
/// `UNIMPLEMENTED` with the reason `COMPRESSION_UNSUPPORTED` and the encodings that can be read, as gRPC asks for it.
pub fn check_encoding(headers: &HeaderMap) -> Result<(), Status> {
    compression(headers).map(drop)
}

fn compression(headers: &HeaderMap) -> Result<Compression, Status> {
    match headers.get(ENCODING).map(|value| value.as_bytes()) {
        None | Some(b"identity") => Ok(Compression::Identity),
        Some(b"gzip") => Ok(Compression::Gzip),
        Some(other) => Err(unsupported_encoding(&String::from_utf8_lossy(other))),
    }
}

/// Reader of the messages of one request.
#[derive(Debug)]
pub(super) struct Messages<B, T: Precheck> {
    body: B,
    compression: Compression,
    /// Bytes that came and were not read yet.
    received: BytesMut,
    has_ended: bool,
    limits: Arc<T::Limits>,
    /// Largest number of bytes of a message, and the reason that one with more is refused for.
    max_bytes: usize,
    too_large: Reason,
}

/// A message as it was sent.
struct Framed {
    message: Bytes,
    is_compressed: bool,
}

impl<B, T> Messages<B, T>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    T: Precheck,
{
    /// Makes a reader of the messages of `request`, each of at most `max_bytes` and within `limits`.
    ///
    /// # Errors
    /// The status of [`check_encoding`].
    pub(super) fn of(
        headers: &HeaderMap,
        body: B,
        limits: Arc<T::Limits>,
        max_bytes: usize,
        too_large: Reason,
    ) -> Result<Self, Status> {
        Ok(Self {
            body,
            compression: compression(headers)?,
            received: BytesMut::new(),
            has_ended: false,
            limits,
            max_bytes,
            too_large,
        })
    }

    /// Reads the next message. `None`: there is none.
    pub(super) async fn next(&mut self) -> Result<Option<T>, Status> {
        match self.framed().await? {
            Some(framed) => self.open(framed).await.map(Some),
            None => Ok(None),
        }
    }

    /// Takes the next message as it was sent.
    async fn framed(&mut self) -> Result<Option<Framed>, Status> {
        let Some(prefix) = self.take(PREFIX).await? else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let is_compressed = match (prefix[0], self.compression) {
            (0, _) => false,
            (1, Compression::Gzip) => true,
            (1, Compression::Identity) => {
                return Err(malformed(
                    "a message is marked as compressed, and `grpc-encoding` names no compression",
                ));
            }
            (flag, _) => {
                let problem =
                    format!("the flag of a message is {flag}, and only 0 and 1 are valid");
                return Err(malformed(problem));
            }
        };
        // Before a byte of it is waited for.
        self.check_size(length)?;
        let Some(message) = self.take(length).await? else {
            return Err(malformed("the request ends in the middle of a message"));
        };
        Ok(Some(Framed {
            message,
            is_compressed,
        }))
    }

    async fn open(&mut self, framed: Framed) -> Result<T, Status> {
        if !framed.is_compressed {
            return self.decode(framed.message);
        }
        let (message, _permit) = inflate(framed.message, self.max_bytes, self.too_large).await?;
        self.decode(message.into())
    }

    /// Reads the one message of a call that has one, to the end of the request.
    ///
    /// # Errors
    /// `INVALID_REQUEST` if there is none or a second one; `name` is that of the message.
    pub(super) async fn only(mut self, name: &str) -> Result<T, Status> {
        let Some(framed) = self.framed().await? else {
            return Err(Reason::InvalidRequest.status(format!("the call carries no {name}")));
        };
        if framed.is_compressed {
            // Before it is inflated: a request that does not end would hold what it becomes, and without a permit.
            self.expect_end(name).await?;
            return self.open(framed).await;
        }
        let message = self.open(framed).await?;
        self.expect_end(name).await?;
        Ok(message)
    }

    /// Waits for the end of the request.
    async fn expect_end(&mut self, name: &str) -> Result<(), Status> {
        match self.take(1).await? {
            None => Ok(()),
            Some(_) => {
                let problem = format!("the call carries more than one {name}");
                Err(Reason::InvalidRequest.status(problem))
            }
        }
    }

    fn check_size(&self, bytes: usize) -> Result<(), Status> {
        if bytes > self.max_bytes {
            return Err(too_large(self.too_large, Some(bytes), self.max_bytes));
        }
        Ok(())
    }

    fn decode(&self, message: Bytes) -> Result<T, Status> {
        T::precheck(&message, &self.limits)?;
        T::decode(message).map_err(|error| Reason::InvalidRequest.status(error.to_string()))
    }

    /// Takes this many bytes of the request. `None`: it ended before the first of them.
    async fn take(&mut self, bytes: usize) -> Result<Option<Bytes>, Status> {
        if bytes > PIECE {
            // Room that grows by itself is copied each time, and in the end twice as large. What is not written takes no
            // memory.
            self.received
                .reserve(bytes.saturating_sub(self.received.len()));
        }
        while self.received.len() < bytes {
            if self.has_ended {
                if self.received.is_empty() {
                    return Ok(None);
                }
                return Err(malformed("the request ends in the middle of a message"));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.received.extend_from_slice(&data);
                    }
                }
                // The peer has reset the stream or is gone, so that nobody gets the status.
                Some(Err(error)) => return Err(Status::cancelled(error.into().to_string())),
                None => self.has_ended = true,
            }
        }
        let taken = self.received.split_to(bytes).freeze();
        if self.received.is_empty() {
            // The room of a large message goes with it.
            self.received = BytesMut::new();
        }
        Ok(Some(taken))
    }
}

/// Inflates a message to at most `max_bytes`. The permit, if it took one, is for as long as the message is held.
async fn inflate(
    message: Bytes,
    max_bytes: usize,
    reason: Reason,
) -> Result<(Vec<u8>, Option<SemaphorePermit<'static>>), Status> {
    let mut inflating = Inflating::of(message.clone());
    if !inflating.step(max_bytes, reason)? {
        return inflating.finish().map(|inflated| (inflated, None));
    }
    // Begun again with a permit, because a thousand that wait for one with what they have would hold more than those
    // that go on.
    drop(inflating);
    let permit = LARGE.acquire().await.ok();
    // The most that it can become. Room that is not written takes no memory, and room that grows takes it twice.
    let room = max_bytes.min(message.len().saturating_mul(MAX_RATIO)) + PIECE;
    let mut inflating = Inflating::of(message);
    inflating.inflated.reserve_exact(room);
    while inflating.step(max_bytes, reason)? {
        yield_now().await;
    }
    inflating.finish().map(|inflated| (inflated, permit))
}

/// A message that is being inflated.
struct Inflating {
    decoder: GzDecoder<Reader<Bytes>>,
    inflated: Vec<u8>,
}

impl Inflating {
    fn of(message: Bytes) -> Self {
        Self {
            decoder: GzDecoder::new(message.reader()),
            inflated: Vec::new(),
        }
    }

    /// Inflates up to [`PIECE`] bytes more. Returns whether there may be more yet.
    fn step(&mut self, max_bytes: usize, reason: Reason) -> Result<bool, Status> {
        let mut piece = self.decoder.by_ref().take(PIECE as u64);
        let read = piece
            .read_to_end(&mut self.inflated)
            .map_err(|error| malformed(format!("a message cannot be read as gzip: {error}")))?;
        if self.inflated.len() > max_bytes {
            return Err(too_large(reason, None, max_bytes));
        }
        Ok(read == PIECE)
    }

    fn finish(self) -> Result<Vec<u8>, Status> {
        match self.decoder.into_inner().into_inner().len() {
            0 => Ok(self.inflated),
            rest => Err(malformed(format!(
                "{rest} bytes follow the gzip of a message"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        pin::pin,
        task::{Context, Waker},
    };

    use flate2::{Compression as Level, write::GzEncoder};
    use futures_util::StreamExt as _;
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};
    use prost::Message as _;
    use tidegate_proto::v1::{NewEvent, PublishRequest};
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::service::config::PublishLimits;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Level::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap();
        [&[flag][..], &length.to_be_bytes(), message].concat()
    }

    fn request(bytes: usize) -> PublishRequest {
        let event = NewEvent {
            topic: "t".to_owned(),
            payload: vec![7; bytes].into(),
            ..NewEvent::default()
        };
        PublishRequest {
            events: vec![event],
        }
    }

    async fn read(encoding: &str, body: Vec<u8>) -> Result<PublishRequest, Status> {
        let mut headers = HeaderMap::new();
        headers.insert(ENCODING, encoding.parse().unwrap());
        let limits = Arc::new(PublishLimits::default());
        let body = Full::new(Bytes::from(body));
        let messages = Messages::of(&headers, body, limits, 1 << 20, Reason::BatchTooLarge)?;
        messages.only("PublishRequest").await
    }

    #[tokio::test]
    async fn compressed_and_plain_messages_are_read() {
        for bytes in [0, 1, PIECE - 20, PIECE, 10 * PIECE] {
            let request = request(bytes);
            let plain = request.encode_to_vec();
            for (encoding, body) in [
                ("identity", framed(0, &plain)),
                ("gzip", framed(0, &plain)),
                ("gzip", framed(1, &gzip(&plain))),
            ] {
                assert_eq!(read(encoding, body).await.unwrap(), request);
            }
        }
    }

    #[tokio::test]
    async fn bomb_is_refused_at_the_limit_of_what_it_becomes() {
        let bomb = gzip(&request(64 << 20).encode_to_vec());
        assert!(bomb.len() < 100 << 10);
        let refused = read("gzip", framed(1, &bomb)).await.unwrap_err();
        assert_eq!(reason(&refused), "BATCH_TOO_LARGE");
    }

    #[tokio::test]
    async fn what_is_no_message_is_told_with_a_reason() {
        let plain = request(10).encode_to_vec();
        let packed = gzip(&plain);
        let mut broken = packed.clone();
        broken[15] ^= 0xFF;
        let malformed = (Code::Internal, "MALFORMED_MESSAGE");
        let invalid = (Code::InvalidArgument, "INVALID_REQUEST");
        let unsupported = (Code::Unimplemented, "COMPRESSION_UNSUPPORTED");
        let with_more = [&packed[..], b"more"].concat();
        for (encoding, body, expected) in [
            ("identity", framed(1, &packed), malformed),
            ("gzip", framed(7, &packed), malformed),
            ("gzip", framed(1, &broken), malformed),
            ("gzip", framed(1, b""), malformed),
            ("gzip", framed(1, &packed[..12]), malformed),
            ("gzip", framed(1, &with_more), malformed),
            ("gzip", framed(1, &packed)[..9].to_vec(), malformed),
            ("gzip", b"\0\0".to_vec(), malformed),
            ("identity", b"".to_vec(), invalid),
            ("identity", framed(0, &plain).repeat(2), invalid),
            ("deflate", framed(1, &packed), unsupported),
            ("GZIP", framed(1, &packed), unsupported),
            ("", framed(0, &plain), unsupported),
        ] {
            let refused = read(encoding, body).await.unwrap_err();
            let found = (refused.code(), &*reason(&refused));
            assert_eq!(found, expected, "{refused}");
        }
    }

    /// A request that does not end must not hold what its message becomes.
    #[tokio::test]
    async fn message_of_a_request_that_does_not_end_is_not_inflated() {
        let mut headers = HeaderMap::new();
        headers.insert(ENCODING, "gzip".parse().unwrap());
        let message = Bytes::from(framed(1, &gzip(b"this is no message")));
        let frames = futures_util::stream::iter([Ok::<_, BoxError>(Frame::data(message))]);
        let body = StreamBody::new(frames.chain(futures_util::stream::pending()));
        let limits = Arc::new(PublishLimits::default());
        let too_large = Reason::BatchTooLarge;
        let messages =
            Messages::<_, PublishRequest>::of(&headers, body, limits, 1 << 20, too_large).unwrap();
        let mut read = pin!(messages.only("PublishRequest"));
        // Inflated, it would be refused.
        let polled = read.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending(), "{polled:?}");
    }

    fn reason(status: &Status) -> String {
        status.get_details_error_info().unwrap().reason
    }

    #[tokio::test]
    async fn nothing_of_a_large_message_is_kept() {
        let mut headers = HeaderMap::new();
        headers.insert(ENCODING, "gzip".parse().unwrap());
        let message = framed(1, &gzip(&request(900_000).encode_to_vec()));
        let plain = framed(0, &request(900_000).encode_to_vec());
        let body = Full::new(Bytes::from([message, plain].concat()));
        let limits = Arc::new(PublishLimits::default());
        let mut messages = Messages::<_, PublishRequest>::of(
            &headers,
            body,
            limits,
            1 << 20,
            Reason::BatchTooLarge,
        )
        .unwrap();
        messages.next().await.unwrap().unwrap();
        messages.next().await.unwrap().unwrap();
        assert_eq!(messages.received.capacity(), 0);
        assert_eq!(LARGE.available_permits(), LARGE_AT_ONCE);
    }
}
