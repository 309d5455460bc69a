//! Bodies of requests: DATA and the windows of the peer.

use super::*;

#[test]
fn window_of_a_body_opens_as_it_is_read() {
    let config = Config::default();
    let (stream_window, connection_window) = (config.stream_window, config.connection_window);
    let mut pair = Pair::with(config);
    pair.send_quietly(&frame(SETTINGS, ACK, 0, &[]));
    pair.send(&request(1, 0)).unwrap();
    let piece = frame(DATA, 0, 1, &[7; 16_384]);
    let mut received = 0;
    for _ in 0..stream_window / 16_384 {
        let seen = pair.send(&piece).unwrap();
        assert_eq!(seen, [Seen::Data(1, vec![7; 16_384], false)]);
        received += 16_384;
    }
    assert_eq!(pair.read(), []);
    pair.server.release(StreamId(1), received / 2 - 1);
    assert_eq!(pair.read(), []);
    pair.server.release(StreamId(1), 1);
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(WINDOW_UPDATE, 1)]);
    assert_eq!(number(&frames[0].1), stream_window / 2);
    // No more is released than was received.
    pair.server.release(StreamId(1), usize::MAX);
    let frames = pair.read();
    assert_eq!(number(&frames[0].1), stream_window / 2);
    let mut left = connection_window - stream_window;
    let mut updates = 0;
    while left > 0 {
        pair.send(&piece).unwrap();
        pair.server.release(StreamId(1), 16_384);
        updates += pair
            .read()
            .iter()
            .filter(|(head, _)| head.stream == 0)
            .count();
        left = left.saturating_sub(16_384);
    }
    assert_eq!(updates, 2);
}

#[test]
fn more_than_a_window_allows_ends_the_stream_or_the_connection() {
    let mut pair = Pair::new();
    pair.send(&request(1, 0)).unwrap();
    let piece = frame(DATA, 0, 1, &[7; 16_384]);
    // The window that holds until our settings are acknowledged.
    let mut seen = pair.send(&piece.repeat(4)).unwrap();
    assert_eq!(
        seen.pop(),
        Some(Seen::Reset(1, Code::FLOW_CONTROL_ERROR, false))
    );
    let mut pair = Pair::new();
    let code = (0..).find_map(|at| {
        let stream = 2 * at + 1;
        let bytes = [request(stream, 0), frame(DATA, 0, stream, &[7; 16_384])].concat();
        pair.send(&bytes).err().map(|error| error.code())
    });
    assert_eq!(code, Some(Code::FLOW_CONTROL_ERROR));
}

#[test]
fn padding_and_what_nobody_reads_leave_the_window_of_the_connection_whole() {
    let config = Config {
        connection_window: 65_535,
        max_empty_frames: 1_000,
        ..Config::default()
    };
    let now = Instant::now();
    let mut pair = Pair {
        server: Connection::new(Arc::new(config), now),
        now,
    };
    pair.send_quietly(&settings(&[]));
    let padded = frame(DATA, PADDED, 1, &[&[200][..], &[0; 200]].concat());
    pair.send(&request(1, 0)).unwrap();
    let mut stream = 1;
    for _ in 0..1_000 {
        pair.send(&padded).unwrap();
        // A body whose stream the service has ended, while it was under way.
        stream += 2;
        pair.send(&request(stream, 0)).unwrap();
        pair.send(&frame(DATA, 0, stream, &[7; 100])).unwrap();
        pair.server
            .respond(StreamId(stream), StatusCode::OK, &HeaderMap::new(), true);
        pair.send_quietly(&frame(DATA, 0, stream, &[7; 100]));
        pair.send_quietly(&frame(DATA, END_STREAM, stream, &[7; 100]));
        pair.read();
    }
    assert_eq!(
        pair.server.receive_window + i64::from(pair.server.unannounced),
        65_535
    );
}

/// The least that a connection has is 65,535, however little was asked for.
#[test]
fn window_of_a_connection_opens_whatever_its_size() {
    for connection_window in [0, 1, 65_535, u32::MAX] {
        let now = Instant::now();
        let config = Config {
            connection_window,
            stream_window: u32::MAX,
            ..Config::default()
        };
        let mut pair = Pair {
            server: Connection::new(Arc::new(config), now),
            now,
        };
        pair.send_quietly(&settings(&[]));
        pair.send_quietly(&frame(SETTINGS, ACK, 0, &[]));
        pair.read();
        for stream in (1..40).step_by(2) {
            pair.send(&request(stream, 0)).unwrap();
            pair.send(&frame(DATA, END_STREAM, stream, &[7; 16_384]))
                .unwrap();
            pair.server.reset(StreamId(stream), Code::CANCEL);
        }
        let updates = pair.read().into_iter().filter_map(|(head, payload)| {
            (head.kind == WINDOW_UPDATE).then(|| (head.stream, number(&payload)))
        });
        let updates: Vec<(u32, u32)> = updates.collect();
        assert!(
            updates
                .iter()
                .all(|(stream, by)| *stream == 0 && *by > 30_000),
            "{updates:?}"
        );
        assert_eq!(updates.is_empty(), connection_window > 1_000_000);
    }
}

/// A proxy cannot know that the server has answered: frames of such calls cost the connection nothing, however many there
/// are.
#[test]
fn frames_of_calls_that_were_answered_are_ignored() {
    let mut pair = Pair::new();
    for at in 0..20_000 {
        let stream = 2 * at + 1;
        pair.send(&request(stream, 0)).unwrap();
        pair.server.respond(
            StreamId(stream),
            StatusCode::FORBIDDEN,
            &HeaderMap::new(),
            true,
        );
        pair.read();
        pair.send_quietly(&frame(DATA, 0, stream, b"late"));
        pair.send_quietly(&window_update(stream, 10));
    }
    for at in 0..20_000 {
        let stream = 2 * at + 1;
        match at % 3 {
            0 => pair.send_quietly(&frame(DATA, END_STREAM, stream, &[])),
            1 => pair.send_quietly(&frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                stream,
                &block(&[("sum", "1")]),
            )),
            _ => pair.send_quietly(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])),
        }
    }
    pair.open(40_001);
}

/// Answers a call whose request is not complete, and which is open.
fn answer_early(pair: &mut Pair, stream: u32) {
    pair.server
        .respond(StreamId(stream), StatusCode::OK, &HeaderMap::new(), true);
}

/// Leaves call 1 open, and answers 1,100 others, up to 2,201, whose requests are not complete.
fn answer_many_behind_an_open_one(pair: &mut Pair) {
    pair.send(&request(1, 0)).unwrap();
    for stream in (3..=2_201).step_by(2) {
        pair.send(&request(stream, 0)).unwrap();
        answer_early(pair, stream);
        pair.read();
    }
}

/// However old the stream that ends last is, those that were answered before it are not taken for faults.
#[test]
fn frames_of_calls_are_ignored_when_a_long_one_ends_behind_many() {
    let mut pair = Pair::new();
    answer_many_behind_an_open_one(&mut pair);
    answer_early(&mut pair, 1);
    for stream in (1..=2_201).step_by(2) {
        pair.send_quietly(&frame(DATA, 0, stream, b"late"));
    }
    pair.read();
    pair.open(2_203);
}

/// Calls that end in a drain change nothing for those that the peer began too late.
#[test]
fn frames_of_calls_that_came_too_late_are_ignored_when_others_end() {
    let mut pair = Pair::new();
    answer_many_behind_an_open_one(&mut pair);
    let open = pair.open(2_203);
    pair.server.end();
    let (_, end) = pair.read().pop().unwrap();
    pair.send_quietly(&frame(PING, ACK, 0, &end));
    pair.send_quietly(&request(2_205, 0));
    answer_early(&mut pair, 1);
    pair.send_quietly(&frame(DATA, 0, 2_205, b"late"));
    assert!(!pair.server.is_over());
    pair.server.finish(open, None);
    assert!(pair.server.is_over());
}

/// A peer that is told at once may not see the response.
#[test]
fn request_that_goes_on_behind_its_response_is_stopped_after_a_while() {
    let mut pair = Pair::new();
    let answer = |pair: &mut Pair, stream| {
        pair.send(&request(stream, 0)).unwrap();
        let headers = HeaderMap::new();
        pair.server
            .respond(StreamId(stream), StatusCode::FORBIDDEN, &headers, true);
    };
    for stream in [1, 3, 5] {
        answer(&mut pair, stream);
        assert_eq!(kinds(&pair.read()), [(HEADERS, stream)]);
    }
    // Those that the peer ends or resets itself are over.
    pair.send_quietly(&frame(DATA, END_STREAM, 3, b"the rest"));
    pair.send_quietly(&frame(RST_STREAM, 0, 5, &[0, 0, 0, 8]));
    let due = pair.server.timeout() - pair.now;
    pair.pass(due - Duration::from_millis(1));
    pair.server.on_timeout().unwrap();
    assert_eq!(pair.read(), []);
    pair.pass(Duration::from_millis(1));
    pair.server.on_timeout().unwrap();
    let stopped = pair.read();
    assert_eq!(kinds(&stopped), [(RST_STREAM, 1)]);
    assert_eq!(number(&stopped[0].1), Code::NO_ERROR.0);
    assert!(pair.server.timeout() - pair.now > due);

    // They are streams of the peer all the same, so that only half of those that it may have are left to it.
    let max = Config::default().max_concurrent_streams / 2;
    for at in 0..max {
        answer(&mut pair, 7 + 2 * at);
    }
    pair.send_quietly(&frame(DATA, END_STREAM, 11, &[]));
    pair.read();
    for (stream, stopped) in [
        (1_001, None),
        (1_003, Some(7)),
        (1_005, Some(9)),
        (1_007, Some(13)),
    ] {
        answer(&mut pair, stream);
        let expected = stopped.map(|stopped| (RST_STREAM, stopped));
        let expected: Vec<_> = [(HEADERS, stream)].into_iter().chain(expected).collect();
        assert_eq!(kinds(&pair.read()), expected);
    }
}

/// Some peers send all of a request before they look at the response.
#[test]
fn request_behind_its_response_has_a_window_for_a_mebibyte() {
    let mut pair = Pair::new();
    pair.send_quietly(&frame(SETTINGS, crate::frame::ACK, 0, &[]));
    pair.send(&request(1, 0)).unwrap();
    let piece = vec![0; 16_000];
    // Half of it comes before the response.
    let mut window = 256 << 10;
    for _ in 0..9 {
        pair.send(&frame(DATA, 0, 1, &piece)).unwrap();
        window -= piece.len();
    }
    pair.read();
    pair.server
        .respond(StreamId(1), StatusCode::FORBIDDEN, &HeaderMap::new(), true);
    let mut sent = 0;
    let code = loop {
        let mut reset = None;
        for (head, payload) in pair.read() {
            match head.kind {
                WINDOW_UPDATE if head.stream == 1 => window += number(&payload) as usize,
                RST_STREAM => reset = Some(number(&payload)),
                _ => {}
            }
        }
        if let Some(code) = reset {
            break Code(code);
        }
        assert!(window >= piece.len(), "it waits after {sent} bytes");
        pair.send_quietly(&frame(DATA, 0, 1, &piece));
        window -= piece.len();
        sent += piece.len();
    };
    assert_eq!(code, Code::NO_ERROR);
    assert!(
        (1 << 20..(1 << 20) + 2 * piece.len()).contains(&sent),
        "{sent}"
    );
    // What is on the way costs nothing.
    pair.send_quietly(&frame(DATA, END_STREAM, 1, &piece));
    assert_eq!(pair.read(), []);
}

/// Nothing is to be done for it any more, however the peer has ended it, nor for one that was forgotten.
#[test]
fn request_that_is_complete_has_no_time() {
    let mut pair = Pair::new();
    for stream in (1..200).step_by(2) {
        pair.send(&request(stream, 0)).unwrap();
        answer_early(&mut pair, stream);
    }
    pair.read();
    let due = pair.now + Duration::from_secs(5);
    assert_eq!(pair.server.timeout(), due);
    for (at, stream) in (1..200).step_by(2).enumerate() {
        assert_eq!(pair.server.timeout(), due);
        let end = match at % 3 {
            0 => frame(DATA, END_STREAM, stream, &[]),
            1 => frame(HEADERS, END_HEADERS | END_STREAM, stream, &[]),
            _ => frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        };
        pair.send_quietly(&end);
    }
    assert_eq!(
        pair.server.timeout(),
        pair.now + Config::default().keep_alive_interval
    );
    pair.pass(Duration::from_secs(5));
    pair.server.on_timeout().unwrap();
    assert_eq!(pair.read(), []);
}

/// Both sides have ended it (RFC 9113, section 5.1).
#[test]
fn window_of_a_request_that_is_complete_is_not_renewed() {
    let mut pair = Pair::new();
    pair.send(&request(1, 0)).unwrap();
    pair.server
        .respond(StreamId(1), StatusCode::OK, &HeaderMap::new(), true);
    pair.read();
    for _ in 0..3 {
        pair.send_quietly(&frame(DATA, 0, 1, &[7; 10_000]));
    }
    assert_eq!(pair.read(), []);
    pair.send_quietly(&frame(DATA, END_STREAM, 1, &[7; 10_000]));
    assert_eq!(pair.read(), []);
}
