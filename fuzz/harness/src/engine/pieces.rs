//! The same bytes at once and one by one.

use std::{io::IoSlice, sync::Arc, time::Instant};

use tidegate_http2::{Config, Connection, Event, StreamState};

use crate::frames::{GOAWAY, Head, WINDOW_UPDATE};

/// Nothing is kept with a stream.
#[derive(Debug)]
struct Nothing;

impl StreamState for Nothing {
    fn sent(&mut self, _: usize) {}
}

/// The outcome of bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    events: Vec<String>,
    /// Heads and payloads of what the peer is sent.
    frames: Vec<String>,
}

/// Compares what comes of bytes, by a server that answers nothing.
///
/// # Panics
/// If it matters in which pieces they come.
pub(super) fn compare(bytes: &[u8]) {
    let whole = run([bytes].into_iter());
    let single = run(bytes.chunks(1));
    assert_eq!(whole, single);
}

fn run<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut http2 = Connection::new(Arc::new(Config::default()), Instant::now());
    let mut outcome = Outcome::default();
    for mut piece in pieces {
        loop {
            match http2.receive(&mut piece) {
                Ok(Some(Event::Request {
                    stream,
                    request,
                    ends,
                    is_truncated,
                })) => {
                    http2.accept(stream, Nothing);
                    outcome
                        .events
                        .push(format!("{stream:?} {request:?} {ends} {is_truncated}"));
                }
                // How much of it comes before an error is a matter of the pieces.
                Ok(Some(Event::Data { ends: false, .. })) => {}
                Ok(Some(Event::Data { stream, .. })) => {
                    outcome.events.push(format!("{stream:?} ends"));
                }
                Ok(Some(Event::Trailers { stream, trailers })) => {
                    outcome.events.push(format!("{stream:?} {trailers:?}"));
                }
                Ok(Some(Event::Reset {
                    stream,
                    code,
                    by_peer,
                    ..
                })) => outcome.events.push(format!("{stream:?} {code} {by_peer}")),
                Ok(Some(event)) => panic!("{event:?}"),
                Ok(None) => break,
                Err(error) => outcome.events.push(error.to_string()),
            }
        }
        assert!(piece.is_empty());
    }
    let mut slices = [IoSlice::new(&[]); 8];
    let count = http2.output(&mut slices);
    let output: Vec<u8> = slices[..count]
        .iter()
        .flat_map(|slice| slice.to_vec())
        .collect();
    let mut rest = &*output;
    while let Some((head, behind)) = Head::split(rest) {
        let (payload, behind) = behind.split_at(head.length);
        rest = behind;
        // When windows are given back depends on the pieces.
        if head.kind != WINDOW_UPDATE {
            let shown = if head.kind == GOAWAY {
                &payload[..8]
            } else {
                payload
            };
            outcome.frames.push(format!("{head:?} {shown:x?}"));
        }
    }
    outcome
}
