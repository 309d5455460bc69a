//! Times, and the ends of connections.

use super::*;

/// Has the server ask a peer from which nothing has come whether it is there.
fn ask(pair: &mut Pair) {
    pair.pass(Config::default().keep_alive_interval);
    pair.server.on_timeout().unwrap();
}

#[test]
fn silent_peer_is_asked_and_then_given_up() {
    let mut pair = Pair::new();
    let config = Config::default();
    assert_eq!(pair.server.timeout(), pair.now + config.keep_alive_interval);
    ask(&mut pair);
    assert_eq!(kinds(&pair.read()), [(PING, 0)]);
    // Anything that it sends says that it is there.
    pair.pass(config.keep_alive_timeout / 2);
    pair.send_quietly(&window_update(0, 1));
    assert_eq!(pair.server.timeout(), pair.now + config.keep_alive_interval);
    ask(&mut pair);
    assert_eq!(pair.server.timeout(), pair.now + config.keep_alive_timeout);
    pair.pass(config.keep_alive_timeout);
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::KeepAlive));
}

/// One byte now and then would hold what has come for as long as the peer likes.
#[test]
fn peer_that_does_not_complete_a_header_block_is_given_up() {
    let second = Duration::from_secs(1);
    let whole = request(1, 0);
    let (begin, rest) = whole.split_at(HEAD_BYTES + 1);
    let blocks: [(&[u8], Vec<u8>); 3] = [
        // Not the HEADERS,
        (begin, rest[..12].to_vec()),
        // nor those that follow,
        (&frame(HEADERS, 0, 1, &[]), frame(CONTINUATION, 0, 1, &[])),
        // nor a frame that nobody knows.
        (&frame(0x99, 0, 0, &[0; 100])[..50], vec![0; 12]),
    ];
    for (begin, trickle) in blocks {
        let mut pair = Pair::new();
        pair.pass(second);
        pair.send_quietly(begin);
        let due = pair.now + 10 * second;
        for piece in trickle.chunks(trickle.len().div_ceil(9)).cycle().take(9) {
            pair.pass(second);
            assert_eq!(pair.server.timeout(), due);
            pair.server.on_timeout().unwrap();
            pair.send_quietly(piece);
        }
        pair.pass(second);
        assert_eq!(pair.server.on_timeout(), Err(TimedOut::Headers));
    }
}

#[test]
fn slow_body_and_busy_peer_are_not_given_up() {
    // A byte a second of a DATA frame whose head came slowly, too.
    let mut pair = Pair::new();
    pair.send(&request(1, 0)).unwrap();
    for byte in frame(DATA, 0, 1, &[7; 100]) {
        pair.send(&[byte]).unwrap();
        pair.pass(Duration::from_secs(1));
        pair.server.on_timeout().unwrap();
    }
    // Each piece ends in the middle of a frame, and none of these has been there for long.
    let mut pair = Pair::new();
    let bytes = frame(PING, 0, 0, &[0; 8]).repeat(100);
    for piece in bytes.chunks(50) {
        pair.send_quietly(piece);
        pair.read();
        pair.pass(Duration::from_secs(6));
        pair.server.on_timeout().unwrap();
    }
}

/// No more room than a frame and a header block may have is there for what has come of them.
#[test]
fn frames_in_part_hold_no_more_than_a_frame_and_a_header_block() {
    let mut pair = Pair::new();
    let bytes = [
        frame(HEADERS, 0, 1, &[7; 16_384]),
        frame(CONTINUATION, 0, 1, &[7; 16_000]),
        frame(CONTINUATION, 0, 1, &[7; 16_384]),
    ]
    .concat();
    for piece in bytes[..bytes.len() - 1].chunks(1_000) {
        pair.send_quietly(piece);
        let input = &pair.server.input;
        assert!(input.partial.capacity() <= HEAD_BYTES + 16_384);
        let block = input
            .block
            .as_ref()
            .map_or(0, |block| block.bytes.capacity());
        assert!(block <= 32 << 10, "{block}");
    }
}

/// The question waits behind what it has not read: it is not late with the answer to what it has not got.
#[test]
fn slow_peer_has_time_to_answer_from_when_it_is_asked() {
    let mut pair = Pair::new();
    let config = Config::default();
    let almost = config.keep_alive_timeout - Duration::from_secs(1);
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from(vec![7; 50_000]));
    pair.server.advance(0);
    ask(&mut pair);
    while pair.server.output_len() > 10_000 {
        pair.pass(almost);
        pair.server.on_timeout().unwrap();
        pair.server.advance(10_000);
        assert_eq!(pair.server.timeout(), pair.now + config.keep_alive_timeout);
    }
    // The rest leaves with the question. What follows it says nothing of the peer: it may be in a buffer of the kernel.
    pair.pass(almost);
    pair.server.advance(pair.server.output_len());
    pair.pass(almost);
    pair.server.on_timeout().unwrap();
    pair.server.send(stream, Bytes::from_static(b"more"));
    pair.read();
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::KeepAlive));
}

/// The kernel holds the question behind what the peer has not read. Only what that reads makes room where there was none.
#[test]
fn peer_that_makes_room_in_a_full_socket_is_there() {
    let mut pair = Pair::new();
    let config = Config::default();
    let almost = config.keep_alive_timeout - Duration::from_secs(1);
    let stream = pair.open(1);
    ask(&mut pair);
    pair.read();
    pair.server.send(stream, Bytes::from(vec![7; 50_000]));
    for _ in 0..4 {
        pair.server.advance(10_000);
        pair.server.advance(0);
        pair.pass(almost);
        pair.server.on_timeout().unwrap();
    }
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::KeepAlive));
}

/// A connection that has all that may wait for the socket, and a frame in part.
fn full_of_answers() -> Pair {
    let mut pair = Pair::new();
    let ping = frame(PING, 0, 0, &[0; 8]);
    let pings = (128 << 10) / ping.len() + 1;
    pair.send_quietly(&ping.repeat(pings));
    pair.server.advance(0);
    pair.send_quietly(&ping[..12]);
    assert!(!pair.server.wants_input());
    pair
}

/// The rest of the frame, and the answer to the question, may lie in the socket.
#[test]
fn peer_of_which_nothing_is_read_is_not_given_up_for_what_it_may_have_sent() {
    let mut pair = full_of_answers();
    let config = Config::default();
    ask(&mut pair);
    assert_eq!(
        pair.server.timeout(),
        pair.now + config.write_timeout - config.keep_alive_interval
    );
    pair.pass(Duration::from_secs(9));
    pair.server.on_timeout().unwrap();
    // Once there is room, it has its time for both.
    pair.read();
    assert!(pair.server.wants_input());
    pair.pass(Duration::from_secs(9));
    pair.server.on_timeout().unwrap();
    pair.send_quietly(&frame(PING, 0, 0, &[0; 8])[12..]);
    pair.pass(Duration::from_secs(9));
    pair.server.on_timeout().unwrap();
}

#[test]
fn peer_of_which_nothing_is_read_has_to_read_in_time() {
    let mut pair = full_of_answers();
    pair.pass(Config::default().write_timeout);
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::Write));
}

/// A transport that takes everything, as TLS does, says what it could not pass on.
#[test]
fn transport_that_is_not_flushed_counts_as_output_that_waits() {
    let mut pair = Pair::new();
    let config = Config::default();
    let almost = config.keep_alive_timeout - Duration::from_secs(1);
    let stream = pair.open(1);
    ask(&mut pair);
    pair.server.send(stream, Bytes::from(vec![7; 50_000]));
    pair.read();
    pair.server.set_unflushed(true);
    for _ in 0..3 {
        pair.pass(almost);
        pair.server.on_timeout().unwrap();
        // The peer has read what was there.
        pair.server.set_unflushed(false);
        pair.server.set_unflushed(true);
    }
    pair.pass(config.keep_alive_timeout);
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::KeepAlive));

    let mut pair = Pair::new();
    pair.server.set_unflushed(true);
    for _ in 0..2 {
        pair.pass(config.write_timeout / 2);
        pair.send_quietly(&window_update(0, 1));
        pair.server.set_unflushed(true);
    }
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::Write));
    pair.server.set_unflushed(false);
    pair.server.on_timeout().unwrap();
}

/// A peer opens windows as it reads, also of streams that have ended: a proxy has many of these.
#[test]
fn windows_of_streams_that_have_ended_are_ignored() {
    let mut pair = Pair::new();
    let stream = pair.open(1);
    pair.server.finish(stream, None);
    pair.read();
    for _ in 0..=Config::default().max_idle_frames {
        pair.send_quietly(&window_update(1, 1));
    }
    assert_eq!(pair.read(), []);
}

#[test]
fn peer_that_takes_nothing_of_the_question_is_given_up() {
    let mut pair = Pair::new();
    let config = Config::default();
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from(vec![7; 50_000]));
    pair.server.advance(1);
    ask(&mut pair);
    pair.pass(config.keep_alive_timeout / 2);
    pair.server.advance(1);
    pair.pass(config.keep_alive_timeout / 2);
    pair.server.advance(0);
    pair.server.on_timeout().unwrap();
    pair.pass(config.keep_alive_timeout / 2);
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::KeepAlive));
}

#[test]
fn peer_that_takes_nothing_is_given_up() {
    let mut pair = Pair::new();
    let config = Config::default();
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from(vec![7; 10_000]));
    pair.server.advance(1);
    for _ in 0..10 {
        pair.pass(config.write_timeout - Duration::from_secs(1));
        pair.send_quietly(&window_update(0, 1));
        pair.server.on_timeout().unwrap();
        pair.server.advance(1);
    }
    pair.pass(config.write_timeout / 2);
    pair.send_quietly(&window_update(0, 1));
    pair.server.advance(0);
    pair.pass(config.write_timeout / 2);
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::Write));
}

#[test]
fn end_in_good_order_serves_what_the_peer_began_before_it_knew() {
    let mut pair = Pair::new();
    let stream = pair.open(1);
    pair.server.end();
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(GOAWAY, 0), (PING, 0)]);
    assert_eq!(number(&frames[0].1[..4]), (1 << 31) - 1);
    // Under way.
    let other = pair.open(3);
    pair.send_quietly(&frame(PING, ACK, 0, &frames[1].1));
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(GOAWAY, 0)]);
    assert_eq!(number(&frames[0].1[..4]), 3);
    // A peer that does not heed it.
    pair.send_quietly(&[request(5, 0), frame(DATA, 0, 5, b"x"), window_update(5, 1)].concat());
    assert_eq!(pair.read(), []);
    pair.server.finish(stream, None);
    assert!(!pair.server.is_over());
    pair.server.finish(other, None);
    assert!(pair.server.is_over());
}

/// The peer may have tried them elsewhere (RFC 9113, section 6.8).
#[test]
fn last_stream_of_the_end_never_grows() {
    let mut pair = Pair::new();
    pair.open(1);
    pair.server.end();
    let frames = pair.read();
    pair.send_quietly(&frame(PING, ACK, 0, &frames[1].1));
    assert_eq!(number(&pair.read()[0].1[..4]), 1);
    pair.send_quietly(&request(3, END_STREAM));
    pair.send(&frame(PING, 0, 1, &[0; 8])).unwrap_err();
    let (head, payload) = pair.read().pop().unwrap();
    assert_eq!((head.kind, number(&payload[..4])), (GOAWAY, 1));
}

#[test]
fn times_without_end_are_never_over() {
    let mut pair = Pair::with(Config {
        keep_alive_interval: Duration::MAX,
        keep_alive_timeout: Duration::MAX,
        write_timeout: Duration::MAX,
        ..Config::default()
    });
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from_static(b"x"));
    pair.server.advance(0);
    pair.server.end();
    pair.pass(Duration::from_secs(365 * 24 * 60 * 60));
    pair.server.on_timeout().unwrap();
    assert!(pair.server.timeout() > pair.now);
}

#[test]
fn end_does_not_wait_for_a_peer_that_does_not_answer() {
    let mut pair = Pair::new();
    pair.server.end();
    pair.read();
    pair.pass(Config::default().keep_alive_timeout);
    pair.server.on_timeout().unwrap();
    assert_eq!(kinds(&pair.read()), [(GOAWAY, 0)]);
    assert!(pair.server.is_over());
}
