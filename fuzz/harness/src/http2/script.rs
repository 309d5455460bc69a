//! Scripts of a peer, made of any bytes: frames that are right mostly, and in any order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Head, PADDED, PING,
    PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, WITH_PRIORITY, field, frame,
};

/// One thing that a peer does.
#[derive(Clone)]
pub(super) enum Act {
    Send(Vec<u8>),
    /// Trailers of a stream, maybe of one that is over.
    Trailers(u32, Vec<u8>),
    /// Wait until the server has done all it can.
    Wait,
}

impl Act {
    pub(super) const fn trailers_of(&self) -> Option<u32> {
        match self {
            Self::Trailers(stream, _) => Some(*stream),
            _ => None,
        }
    }
}

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Send(bytes) | Self::Trailers(_, bytes)) = self else {
            return f.write_str("wait");
        };
        let mut bytes = &bytes[..];
        while let Some((head, behind)) = Head::split(bytes) {
            let Head {
                length,
                kind,
                flags,
                stream,
            } = head;
            let (payload, behind) = behind.split_at(length);
            let shown = payload[..length.min(100)].escape_ascii();
            write!(
                f,
                "kind {kind} flags {flags:#x} stream {stream} length {length} {shown} "
            )?;
            bytes = behind;
        }
        Ok(())
    }
}

/// Paths of the service, and one that it does not know.
const PATHS: [&str; 5] = ["/echo", "/now", "/large", "/silent", "/unknown"];

/// Increments of windows, valid and not.
const INCREMENTS: [u32; 6] = [0, 1, 100, 16_384, 1 << 20, i32::MAX as u32];

/// Initial windows, valid and not.
const WINDOWS: [u32; 6] = [0, 1, 100, 65_535, 1 << 20, 1 << 31];

/// Header fields that few requests have, and some that none may have: without characters that none has, for which h2 ends
/// the connection.
const FIELDS: [(&str, &str); 12] = [
    ("content-length", "5"),
    ("content-length", "0"),
    ("content-length", "x"),
    ("te", "trailers"),
    ("te", "gzip"),
    ("connection", "close"),
    ("accept", "a, b"),
    ("accept", "c"),
    ("x", "1"),
    ("accept", ""),
    (":scheme", "http"),
    ("cookie", "a=1"),
];

/// Bytes that a peer sends at once: no more than either engine reads at once.
const PIECE: usize = 60_000;

/// Calls in them: no more than ours begins before it answers some.
const CALLS: usize = 60;

/// Bytes of a request, with the heads of their frames. For more the windows would have to be minded, which the servers open
/// when it suits them.
const BODY: usize = 65_535;

/// Rests of a script: all of them are over before the servers stop bodies that nobody reads.
const RESTS: usize = 40;

/// The bytes of a fuzzer, taken from the front. Behind the end there are zeros.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *byte
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// True for one byte of `of`.
    fn seldom(&mut self, of: u8) -> bool {
        self.byte() % of == of - 1
    }
}

/// Makes a script of any bytes.
///
/// Nothing comes for a stream that the peer has ended: h2 ends the connection where RFC 9113 asks for a stream error (section
/// 5.1).
pub(super) fn script(bytes: &[u8]) -> Vec<Act> {
    let mut source = Source(bytes);
    let mut script = vec![Act::Send(frame(SETTINGS, 0, 0, &[]))];
    // Enough for all: which stream has how much of the connection's window is a matter of timing.
    let window = 1_u32 << 30;
    script.push(Act::Send(frame(WINDOW_UPDATE, 0, 0, &window.to_be_bytes())));
    // Once: h2 ends the connection for a second time.
    if source.byte() & 1 == 1 {
        script.push(Act::Send(frame(SETTINGS, ACK, 0, &[])));
    }
    // The server opens its window meanwhile: h2 takes no more than it has said.
    script.push(Act::Wait);
    let mut next = 1;
    let mut ended = BTreeSet::new();
    let mut bodies = BTreeMap::<_, usize>::new();
    // Bytes and calls since the last rest.
    let (mut length, mut calls) = (0, 0);
    let mut rests = 0;
    while !source.0.is_empty() && rests < RESTS {
        let choice = source.byte() % 16;
        let is_trailers = choice == 12;
        let act = match choice {
            0..=3 => {
                let stream = next;
                next += 2;
                request(&mut source, stream)
            }
            4..=6 => data(&mut source, next),
            7 => window_update(&mut source, next),
            8 => {
                let stream = a_stream(&mut source, next);
                // Neither NO_ERROR nor CANCEL, with which hyper takes a request for complete.
                let code = source.one_of(&[1_u32, 2, 5, 7, 11]);
                frame(RST_STREAM, 0, stream, &code.to_be_bytes())
            }
            9 => settings(&mut source),
            10 => {
                let ack = source.byte() & 1;
                let length = if source.seldom(16) { 7 } else { 8 };
                frame(PING, ack, 0, &[7; 8][..length])
            }
            11 => {
                let stream = a_stream(&mut source, next);
                // Never on itself: h2 resets even a stream that has not begun for it, which RFC 9113 does not have.
                let on = stream + 2;
                let priority = [&on.to_be_bytes()[..], &[16]].concat();
                frame(PRIORITY, 0, stream, &priority)
            }
            12 => trailers(&mut source, next),
            13 => any(&mut source),
            _ => {
                script.push(Act::Wait);
                (length, calls, rests) = (0, 0, rests + 1);
                continue;
            }
        };
        if act[3] == DATA {
            let body = bodies.entry(act[5..9].to_vec()).or_default();
            if *body + act.len() > BODY {
                continue;
            }
            *body += act.len();
        }
        let is_call = act[3] == HEADERS;
        if length + act.len() > PIECE || is_call && calls == CALLS {
            script.push(Act::Wait);
            (length, calls, rests) = (0, 0, rests + 1);
        }
        length += act.len();
        calls += usize::from(is_call);
        let (kind, flags) = (act[3], act[4]);
        let stream = u32::from_be_bytes([act[5], act[6], act[7], act[8]]);
        if matches!(kind, DATA | HEADERS) && ended.contains(&stream) {
            continue;
        }
        if kind == RST_STREAM {
            // What was done for the stream before is a matter of timing otherwise.
            script.push(Act::Wait);
            rests += 1;
        }
        if kind == RST_STREAM || matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            ended.insert(stream);
        }
        script.push(match is_trailers {
            true => Act::Trailers(stream, act),
            false => Act::Send(act),
        });
    }
    script
}

/// One of the last streams mostly, and now and then none, or one that has not begun.
fn a_stream(source: &mut Source<'_>, next: u32) -> u32 {
    match source.byte() % 32 {
        0 => 0,
        1 => next,
        2 => 2,
        back => next.saturating_sub(2 * (1 + u32::from(back) % 4)).max(1),
    }
}

fn request(source: &mut Source<'_>, stream: u32) -> Vec<u8> {
    let path = source.one_of(&PATHS);
    let mut pseudo = vec![(":method", "POST"), (":scheme", "http"), (":path", path)];
    match source.byte() % 24 {
        0 => pseudo.push((":path", path)),
        // None without a path, or with an empty one: h2 hands them on.
        2 => pseudo.push((":authority", "a:1")),
        // None with an authority that no URI can have: h2 resets them, and ours hands them on.
        4 => pseudo.push((":protocol", "websocket")),
        // No unknown one: h2 ends the connection for it, and RFC 9113 the stream (section 8.1.1).
        6 => pseudo[2].1 = "*",
        8 => pseudo[0].1 = "CONNECT",
        9 => pseudo[0].1 = "GET",
        _ => {}
    }
    let mut block: Vec<u8> = pseudo
        .iter()
        .flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes()))
        .collect();
    if source.seldom(4) {
        let (name, value) = source.one_of(&FIELDS);
        block.extend(field(name.as_bytes(), value.as_bytes()));
    }
    if source.seldom(4) {
        // Into the table, and from there.
        block.extend(b"\x40\x01t\x01v\xbe");
    }
    headers(source, stream, &block, false)
}

fn trailers(source: &mut Source<'_>, next: u32) -> Vec<u8> {
    let stream = a_stream(source, next);
    let name = source.one_of(&["x-end", "grpc-end"]);
    headers(source, stream, &field(name.as_bytes(), b"1"), true)
}

/// A header block in one frame or two, with padding and a priority now and then.
fn headers(source: &mut Source<'_>, stream: u32, block: &[u8], is_end: bool) -> Vec<u8> {
    let choice = source.byte();
    let ends = is_end || choice & 1 == 1;
    let mut flags = u8::from(ends) * END_STREAM;
    let cut = if choice & 0x0e == 0x0e {
        block.len() / 2
    } else {
        block.len()
    };
    let (first, rest) = block.split_at(cut);
    let mut payload = Vec::new();
    if choice & 0x30 == 0x10 {
        flags |= PADDED;
        payload.push(3);
    }
    if choice & 0x30 == 0x20 {
        flags |= WITH_PRIORITY;
        // On itself, it ends the stream, and in two frames h2 ends the connection for it.
        let may_fail = rest.is_empty() && !is_end;
        let on = if may_fail && source.seldom(4) {
            stream
        } else {
            0
        };
        payload.extend(on.to_be_bytes());
        payload.push(1);
    }
    payload.extend_from_slice(first);
    if flags & PADDED != 0 {
        payload.extend([0; 3]);
    }
    if rest.is_empty() {
        return frame(HEADERS, flags | END_HEADERS, stream, &payload);
    }
    let behind = frame(CONTINUATION, END_HEADERS, stream, rest);
    [frame(HEADERS, flags, stream, &payload), behind].concat()
}

fn data(source: &mut Source<'_>, next: u32) -> Vec<u8> {
    let stream = a_stream(source, next);
    let length = source.one_of(&[0, 1, 5, 5, 100, 16_384, 16_385]);
    let choice = source.byte();
    let mut flags = (choice & 1) * END_STREAM;
    let mut payload = vec![7; length];
    if choice & 0x0e == 0x0e && length < 16_000 {
        flags |= PADDED;
        payload.insert(0, 2);
        payload.extend([0; 2]);
    }
    frame(DATA, flags, stream, &payload)
}

fn window_update(source: &mut Source<'_>, next: u32) -> Vec<u8> {
    let stream = match source.byte() % 2 {
        0 => 0,
        _ => a_stream(source, next),
    };
    // None of 0 for a stream, for which h2 ends the connection.
    let increment = source.one_of(&INCREMENTS[usize::from(stream > 0)..]);
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

fn settings(source: &mut Source<'_>) -> Vec<u8> {
    let (id, value) = match source.byte() % 8 {
        0 => (1_u16, u32::from(source.byte()) * 64),
        1 => (2, u32::from(source.byte() % 3)),
        2 => (5, source.one_of(&[16_384, 1 << 20, 100])),
        3 => (9, 1),
        _ => (4, source.one_of(&WINDOWS)),
    };
    frame(
        SETTINGS,
        0,
        0,
        &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat(),
    )
}

/// A frame of any kind, with any flags and any short payload.
fn any(source: &mut Source<'_>) -> Vec<u8> {
    let kind = source.byte() % 12;
    let flags = source.byte();
    let stream = u32::from(source.byte() % 8);
    let length = usize::from(source.byte() % 24);
    let payload: Vec<u8> = (0..length).map(|_| source.byte()).collect();
    // The end of the other side concerns streams that nobody begins. A PRIORITY of another length ends the stream (RFC 9113,
    // section 6.3), and with h2 the connection, and so does a field without a name.
    // PUSH_PROMISE of a client, which h2 ignores, ends ours (section 8.4).
    if matches!(kind, GOAWAY | PRIORITY | HEADERS | PUSH_PROMISE) {
        return frame(PING, 0, 0, &[0; 8]);
    }
    // An increment of 0, as for other updates of windows.
    let is_nothing = matches!(payload[..], [0 | 0x80, 0, 0, 0]);
    if kind == WINDOW_UPDATE && stream > 0 && is_nothing {
        return frame(PING, 0, 0, &[0; 8]);
    }
    let flags = if kind == SETTINGS {
        flags & !ACK
    } else {
        flags
    };
    frame(kind, flags, stream, &payload)
}
