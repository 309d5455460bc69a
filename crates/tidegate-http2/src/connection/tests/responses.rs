//! Responses: windows, turns and the output.

use super::*;

#[test]
fn nothing_is_sent_beyond_a_window_and_the_rest_follows_when_it_opens() {
    let mut pair = Pair::new();
    pair.send_quietly(&settings(&[(4, 10)]));
    pair.read();
    let stream = pair.open(1);
    assert_eq!(pair.server.room(stream), Room::Bytes(10));
    pair.server
        .send(stream, Bytes::from_static(b"0123456789abcdef"));
    assert_eq!(pair.server.room(stream), Room::Later);
    assert_eq!(pair.server.next_turn(), None);
    assert_eq!(pair.server.state_mut(stream), Some(&mut Sent(10)));
    let frames = pair.read();
    assert_eq!(frames[0].1, b"0123456789");
    let mut trailers = HeaderMap::new();
    trailers.insert("status", HeaderValue::from_static("8"));
    pair.server.finish(stream, Some(trailers));
    assert_eq!(pair.read(), []);
    pair.send_quietly(&window_update(1, 4));
    assert_eq!(pair.server.next_turn(), None);
    assert_eq!(pair.read()[0].1, b"abcd");
    // More than enough, by the settings.
    pair.send_quietly(&settings(&[(4, 1_000)]));
    assert_eq!(pair.server.next_turn(), None);
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(SETTINGS, 0), (DATA, 1), (HEADERS, 1)]);
    assert_eq!(frames[1].1, b"ef");
    assert!(frames[2].0.has(END_STREAM));
    assert_eq!(pair.server.streams(), 0);
}

#[test]
fn status_reaches_a_peer_that_does_not_read_its_stream() {
    let mut pair = Pair::new();
    pair.send_quietly(&settings(&[(4, 0)]));
    pair.read();
    let stream = pair.open(1);
    assert_eq!(pair.server.room(stream), Room::NoWindow);
    pair.server.finish(stream, Some(HeaderMap::new()));
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(HEADERS, 1)]);
    assert!(frames[0].0.has(END_STREAM));
}

#[test]
fn status_reaches_a_peer_whose_connection_has_no_window() {
    let mut pair = Pair::new();
    let (greedy, other) = (pair.open(1), pair.open(3));
    pair.server.send(greedy, Bytes::from(vec![7; 65_535]));
    while pair.server.next_turn().is_some() {}
    pair.read();
    // However often it is asked: it waits for its turn.
    for _ in 0..2 {
        assert_eq!(pair.server.room(other), Room::NoWindow);
    }
    pair.server.finish(other, Some(HeaderMap::new()));
    assert_eq!(kinds(&pair.read()), [(HEADERS, 3)]);
}

#[test]
fn window_that_settings_made_negative_has_to_be_filled_first() {
    let mut pair = Pair::new();
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from(vec![7; 60_000]));
    pair.read();
    pair.send_quietly(&settings(&[(4, 0)]));
    assert_eq!(pair.server.room(stream), Room::NoWindow);
    pair.send_quietly(&window_update(1, 60_000));
    assert_eq!(pair.server.next_turn(), None);
    pair.send_quietly(&window_update(1, 7));
    assert_eq!(pair.server.next_turn(), Some(stream));
    assert_eq!(pair.server.room(stream), Room::Bytes(7));
}

#[test]
fn windows_may_be_as_large_as_can_be_and_no_larger() {
    const LARGEST: u32 = (1 << 31) - 1;
    let mut pair = Pair::new();
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from(vec![7; 65_535]));
    pair.read();
    for window in [0, LARGEST, 0, LARGEST] {
        pair.send_quietly(&settings(&[(4, window)]));
    }
    pair.send_quietly(&window_update(0, LARGEST));
    pair.send_quietly(&window_update(1, 65_535));
    assert_eq!(pair.server.room(stream), Room::Bytes(LARGEST as usize));
    pair.read();
    // Each is full.
    let mut other = Pair::new();
    other.open(1);
    other.send_quietly(&settings(&[(4, LARGEST)]));
    other.send_quietly(&window_update(0, LARGEST - 65_535));
    other.read();
    let seen = other.send(&window_update(1, 1)).unwrap();
    assert_eq!(seen, [Seen::Reset(1, Code::FLOW_CONTROL_ERROR, false)]);
    other.read();
    assert_eq!(
        other.send_breach(&window_update(0, 1)),
        Code::FLOW_CONTROL_ERROR
    );
    // Settings that would make one larger end the connection.
    pair.send_quietly(&settings(&[(4, LARGEST - 1)]));
    pair.send_quietly(&window_update(1, 1));
    assert_eq!(
        pair.send_breach(&settings(&[(4, LARGEST)])),
        Code::FLOW_CONTROL_ERROR
    );
}

#[test]
fn any_limits_let_data_through() {
    for (max_output, max_header_list_size) in [(0, 1_000), (1, 1_000), (usize::MAX, u32::MAX)] {
        let mut pair = Pair::with(Config {
            max_output,
            max_header_list_size,
            ..Config::default()
        });
        let stream = pair.open(1);
        assert!(pair.server.wants_input());
        assert_eq!(pair.server.room(stream), Room::Bytes(65_535));
        pair.server.send(stream, Bytes::from(vec![7; 40_000]));
        let mut received = 0;
        while received < 40_000 {
            let frames = pair.read();
            assert!(!frames.is_empty());
            received += frames.iter().map(|(head, _)| head.length).sum::<usize>();
            pair.server.next_turn();
        }
    }
}

#[test]
fn chunks_of_a_kibibyte_are_not_copied() {
    let mut pair = Pair::new();
    let stream = pair.open(1);
    let chunk = Bytes::from(vec![7; 2_000]);
    pair.server.send(stream, chunk.clone());
    let mut slices = [IoSlice::new(&[]); 4];
    let count = pair.server.output(&mut slices);
    assert_eq!(count, 2);
    assert_eq!(slices[1].as_ptr(), chunk.as_ptr());
}

#[test]
fn streams_that_share_a_window_have_turns() {
    let mut pair = Pair::new();
    let streams = [1, 3, 5, 7].map(|id| pair.open(id));
    let mut sent = [0; 4];
    let mut send = |server: &mut Connection<Sent>, at: usize| {
        while matches!(server.room(streams[at]), Room::Bytes(_)) {
            server.send(streams[at], Bytes::from(vec![7; 10_000]));
            sent[at] += 10_000;
        }
    };
    for at in 0..4 {
        send(&mut pair.server, at);
    }
    for _ in 0..400 {
        pair.read();
        pair.send_quietly(&window_update(0, 10_000));
        for id in [1, 3, 5, 7] {
            pair.send_quietly(&window_update(id, 10_000));
        }
        while let Some(stream) = pair.server.next_turn() {
            let at = streams.iter().position(|known| *known == stream).unwrap();
            send(&mut pair.server, at);
        }
    }
    let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
    assert!(most - least <= 140_000, "{sent:?}");
}

#[test]
fn header_block_longer_than_a_frame_goes_in_several() {
    let mut pair = Pair::new();
    let stream = pair.open(1);
    let mut trailers = HeaderMap::new();
    for at in 0..40 {
        let name = http::HeaderName::try_from(format!("name-{at}")).unwrap();
        trailers.insert(name, HeaderValue::try_from("x".repeat(1_000)).unwrap());
    }
    pair.server.finish(stream, Some(trailers.clone()));
    let frames = pair.read();
    assert_eq!(
        kinds(&frames),
        [(HEADERS, 1), (CONTINUATION, 1), (CONTINUATION, 1)]
    );
    assert!(frames[0].0.has(END_STREAM) && !frames[0].0.has(END_HEADERS));
    assert!(frames[2].0.has(END_HEADERS) && !frames[1].0.has(END_HEADERS));
    let block: Vec<u8> = frames
        .into_iter()
        .flat_map(|(_, payload)| payload)
        .collect();
    let mut count = 0;
    hpack::Decoder::new()
        .decode(&block, |_| {
            count += 1;
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(count, trailers.len());
}

/// A message with them is malformed (RFC 9113, section 8.2.2), and services that also speak HTTP/1.1 set them.
#[test]
fn fields_of_a_connection_are_not_sent() {
    let mut pair = Pair::new();
    pair.send(&request(1, END_STREAM)).unwrap();
    let mut fields = HeaderMap::new();
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "x",
    ] {
        fields.insert(name, HeaderValue::from_static("v"));
    }
    pair.server
        .respond(StreamId(1), StatusCode::OK, &fields, false);
    pair.server.finish(StreamId(1), Some(fields));
    let frames = pair.read();
    let x = ("x".to_owned(), "v".to_owned());
    let status = (":status".to_owned(), "200".to_owned());
    assert_eq!(fields_of(&frames[0].1), [status, x.clone()]);
    assert_eq!(fields_of(&frames[1].1), [x]);
}

#[test]
fn smaller_table_of_the_peer_is_acknowledged_once() {
    let mut pair = Pair::new();
    pair.send_quietly(&settings(&[(1, 100), (1, 4_096)]));
    pair.read();
    pair.send(&[request(1, END_STREAM), request(3, END_STREAM)].concat())
        .unwrap();
    for stream in [1, 3] {
        pair.server
            .respond(StreamId(stream), StatusCode::OK, &HeaderMap::new(), false);
    }
    let frames = pair.read();
    assert_eq!(
        (&*frames[0].1, &*frames[1].1),
        (&[0x20, 0x88][..], &[0x88][..])
    );
}
