//! Bytes that the peer of a server is sent, in order of its streams.

use std::{collections::BTreeMap, fmt};

use loona_hpack::Decoder;

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Head, MAX_PAYLOAD, RST_STREAM,
    number,
};

/// All that a peer was sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) streams: BTreeMap<u32, Stream>,
    /// The code of the last GOAWAY.
    pub(super) goaway: Option<u32>,
}

#[derive(Default, Clone, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) status: Option<String>,
    pub(super) bytes: usize,
    pub(super) trailers: Option<String>,
    pub(super) has_ended: bool,
    pub(super) reset: Option<u32>,
}

impl Sent {
    /// Reads what was sent.
    ///
    /// # Panics
    /// If it breaks a rule of HTTP/2 that concerns frames, header blocks, or the order of a response.
    pub(super) fn read(mut bytes: &[u8]) -> Self {
        let mut sent = Self::default();
        let mut decoder = Decoder::new();
        let mut block: Option<(u32, bool, Vec<u8>)> = None;
        while let Some((head, behind)) = Head::split(bytes) {
            let Head {
                length,
                kind,
                stream,
                ..
            } = head;
            assert!(length <= MAX_PAYLOAD, "a frame of {length} bytes");
            let Some((payload, behind)) = behind.split_at_checked(length) else {
                // The connection was cut.
                break;
            };
            bytes = behind;
            assert!(
                block.is_none() || kind == CONTINUATION,
                "a header block was interrupted by {kind}"
            );
            match kind {
                DATA => sent.data(stream, length, head.has(END_STREAM)),
                HEADERS => block = Some((stream, head.has(END_STREAM), payload.to_vec())),
                CONTINUATION => block
                    .as_mut()
                    .expect("a block goes on")
                    .2
                    .extend_from_slice(payload),
                RST_STREAM => {
                    let code = number(payload);
                    let stream = sent.streams.entry(stream).or_default();
                    // Behind a response that is complete it only stops the request.
                    if !stream.has_ended {
                        // h2 forgets what it has reset, and may reset it again.
                        stream.reset.get_or_insert(code);
                    }
                }
                GOAWAY => sent.goaway = Some(number(&payload[4..8])),
                _ => {}
            }
            if matches!(kind, HEADERS | CONTINUATION)
                && head.has(END_HEADERS)
                && let Some((stream, ends, block)) = block.take()
            {
                let fields = decoder.decode(&block).expect("a header block");
                sent.headers(stream, ends, &fields);
            }
        }
        sent
    }

    /// Returns the streams without the beginnings of responses that were reset: how far each came is a matter of timing.
    pub(super) fn settled(&self) -> BTreeMap<u32, Stream> {
        let mut streams = self.streams.clone();
        for stream in streams.values_mut().filter(|stream| stream.reset.is_some()) {
            *stream = Stream {
                reset: stream.reset,
                ..Stream::default()
            };
        }
        streams
    }

    fn data(&mut self, stream: u32, length: usize, ends: bool) {
        let stream = self.streams.entry(stream).or_default();
        stream.check();
        assert!(stream.status.is_some(), "data without a response");
        stream.bytes += length;
        stream.has_ended = ends;
    }

    fn headers(&mut self, stream: u32, ends: bool, fields: &[(Vec<u8>, Vec<u8>)]) {
        let stream = self.streams.entry(stream).or_default();
        stream.check();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match fields.first() {
            Some((name, value)) if name == b":status" => {
                assert!(stream.status.is_none(), "a second response");
                stream.status = Some(text(value));
            }
            _ => {
                assert!(stream.status.is_some() && ends, "trailers that are none");
                let fields = fields
                    .iter()
                    .map(|(name, value)| text(name) + "=" + &text(value));
                stream.trailers = Some(fields.collect::<Vec<_>>().join(", "));
            }
        }
        stream.has_ended = ends;
    }
}

impl Stream {
    fn check(&self) {
        assert!(
            !self.has_ended && self.reset.is_none(),
            "a frame behind the end"
        );
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            status,
            bytes,
            trailers,
            has_ended,
            reset,
        } = self;
        write!(
            f,
            "{status:?} {bytes} bytes {trailers:?} ended {has_ended} reset {reset:?}"
        )
    }
}
