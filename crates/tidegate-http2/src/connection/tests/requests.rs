//! Requests: what is one, and what is none.

use super::*;

#[test]
fn authority_of_any_spelling_is_handed_on() {
    for authority in [
        "%2Frun%2Ftg.sock",
        "/run/tg.sock",
        "outbound|50051||x",
        "xds cluster",
        "a@b:c",
    ] {
        let mut pair = Pair::new();
        let fields = [&REQUEST[..2], &[(":authority", authority)], &REQUEST[3..]].concat();
        let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        let Some(Event::Request { request, .. }) = pair.server.receive(&mut &*bytes).unwrap()
        else {
            panic!("{authority}");
        };
        assert_eq!(request.uri().path(), "/p");
        let found = request.uri().authority().map_or_else(
            || request.headers()["host"].to_str().unwrap(),
            |authority| authority.as_str(),
        );
        assert_eq!(found, authority);
    }
}

/// The field `host` is never what a service goes by where there is an authority (RFC 9113, section 8.3.1).
#[test]
fn authority_that_no_uri_has_is_in_place_of_the_host() {
    let mut pair = Pair::new();
    let fields = [
        &REQUEST[..2],
        &[(":authority", "/run/tg.sock"), REQUEST[3]],
        &[("host", "elsewhere"), ("host", "anywhere")],
    ]
    .concat();
    let headers = received(&mut pair, &fields).into_parts().0.headers;
    let hosts: Vec<&HeaderValue> = headers.get_all("host").iter().collect();
    assert_eq!(hosts, ["/run/tg.sock"]);
}

#[test]
fn target_of_a_request_is_as_it_was_sent() {
    for (method, path, expected) in [
        ("OPTIONS", "*", Some("*")),
        ("GET", "/a?b=c", Some("/a?b=c")),
        ("GET", "a", None),
        ("GET", "http://elsewhere/a", None),
        ("GET", "/a b", None),
    ] {
        let mut pair = Pair::new();
        let fields = [(":method", method), REQUEST[1], REQUEST[2], (":path", path)];
        let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        let event = pair.server.receive(&mut &*bytes).unwrap();
        let found = match &event {
            Some(Event::Request { request, .. }) => {
                request.uri().path_and_query().map(|path| path.as_str())
            }
            _ => None,
        };
        assert_eq!(found, expected, "{path}");
    }
}

#[test]
fn crumbs_of_a_cookie_are_one_field() {
    let mut pair = Pair::new();
    let crumbs = [
        ("cookie", "a=1"),
        ("x", "y"),
        ("cookie", "b=2"),
        ("cookie", "c=3"),
    ];
    let headers = received(&mut pair, &[REQUEST, &crumbs].concat())
        .into_parts()
        .0
        .headers;
    let cookies: Vec<&HeaderValue> = headers.get_all("cookie").iter().collect();
    assert_eq!(cookies, ["a=1; b=2; c=3"]);
    // One that is never to be put into a table makes the whole so.
    let mut block = block(REQUEST);
    for (pattern, value) in [(0x10, "a=1"), (0x00, "b=2")] {
        block.extend([pattern, 6]);
        block.extend_from_slice(b"cookie");
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 3, &block);
    let Some(Event::Request { request, .. }) = pair.server.receive(&mut &*bytes).unwrap() else {
        panic!("no request");
    };
    assert_eq!(request.headers()["cookie"], "a=1; b=2");
    assert!(request.headers()["cookie"].is_sensitive());
}

#[test]
fn header_list_that_is_too_large_is_marked_and_truncated() {
    let mut pair = Pair::with(Config {
        max_header_list_size: 400,
        ..Config::default()
    });
    let mut fields = REQUEST.to_vec();
    let large = "x".repeat(120);
    fields.extend([
        ("content-type", "application/grpc"),
        ("large", &large),
        ("small", "y"),
    ]);
    fields.push(("other", "z"));
    fields.extend([("large", "x"); 3]);
    let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
    let Some(Event::Request {
        request,
        is_truncated,
        ..
    }) = pair.server.receive(&mut &*bytes).unwrap()
    else {
        panic!("no request");
    };
    assert!(is_truncated);
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert!(!request.headers().contains_key("other"));
}

/// A map of headers has room for 24,576 names, however large the list may be.
#[test]
fn more_names_than_a_map_has_room_for_are_malformed() {
    let config = Config {
        max_header_list_size: 16 << 20,
        ..Config::default()
    };
    // It is to be put into the map, in place of a host.
    let mut fields = block(&[&REQUEST[..2], &[(":authority", "/run/x"), REQUEST[3]]].concat());
    let mut pair = Pair::with(config);
    let mut seen = Vec::new();
    for name in 0..24_580_u32 {
        fields.extend_from_slice(&[0, 6]);
        fields.extend_from_slice(format!("x{name:05}").as_bytes());
        fields.push(0);
        if name < 24_572 {
            continue;
        }
        let stream = 2 * (name - 24_572) + 1;
        let (first, others) = fields.split_at(16_000);
        pair.send_quietly(&frame(HEADERS, END_STREAM, stream, first));
        for piece in others.chunks(16_000) {
            pair.send_quietly(&frame(CONTINUATION, 0, stream, piece));
        }
        let end = frame(CONTINUATION, END_HEADERS, stream, &[]);
        seen.push(!pair.send(&end).unwrap().is_empty());
    }
    // Those that have room, and all behind them.
    assert!(
        seen.is_sorted_by(|before, after| before >= after),
        "{seen:?}"
    );
    assert!(seen[0] && !seen[7], "{seen:?}");
}

/// Without their tail they would say something else, and there is no mark on them.
#[test]
fn trailers_that_are_too_large_reset_their_stream() {
    let config = Config {
        max_header_list_size: 400,
        ..Config::default()
    };
    let trailers = |stream, size| {
        let value = "x".repeat(size);
        let fields = ["a", "b", "c"].map(|name| (name, &*value));
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields))
    };
    let mut pair = Pair::with(config);
    for stream in [1, 3] {
        pair.send(&request(stream, 0)).unwrap();
    }
    // 400 bytes, with 33 for each besides its value.
    let seen = pair.send(&trailers(1, 100)).unwrap();
    assert!(matches!(&seen[..], [Seen::Trailers(1, whole)] if whole.len() == 3));
    let seen = pair.send(&trailers(3, 101)).unwrap();
    assert_eq!(seen, [Seen::Reset(3, Code::PROTOCOL_ERROR, false)]);
    assert_eq!(kinds(&pair.read()), [(RST_STREAM, 3)]);
    // The peer has ended it, and nothing of it is to be ignored.
    assert_eq!(pair.server.streams.know(3), Known::Closed);
}

#[test]
fn header_block_without_measure_ends_the_connection() {
    let begin = frame(HEADERS, 0, 1, &block(REQUEST));
    let mut pair = Pair::new();
    pair.send_quietly(&begin);
    let many = frame(CONTINUATION, 0, 1, &[]).repeat(100);
    assert_eq!(pair.send_breach(&many), Code::ENHANCE_YOUR_CALM);
    let mut pair = Pair::new();
    pair.send_quietly(&begin);
    let large = frame(CONTINUATION, 0, 1, &[0; 16_384]).repeat(3);
    assert_eq!(pair.send_breach(&large), Code::ENHANCE_YOUR_CALM);
}

/// Two bytes of a block name a field of 4 KiB: it ends before much of that is done, whether somebody wants it or not.
#[test]
fn header_block_that_brings_far_more_than_it_takes_ends_the_connection() {
    // The first counts 4,096 bytes in a list and in the table, and each of the others the same. The request counts 181.
    let names = |at: usize| {
        let mut block = block(REQUEST);
        block.extend([&[0x40, 0x7f, 0xe1, 0x1e][..], &[b'a'; 4_064], &[0]].concat());
        block.extend([0x7e, 0].repeat(at - 1));
        block
    };
    let headers = |stream, block: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, stream, block);
    let mut pair = Pair::new();
    // Up to four times the limit it is a list that is too large, which has a status.
    let seen = pair.send(&headers(1, &names(15))).unwrap();
    assert_eq!(seen.len(), 1);
    let breach = pair.send_breach(&headers(3, &names(16)));
    assert_eq!(breach, Code::ENHANCE_YOUR_CALM);
    let mut pair = Pair::new();
    pair.send(&[request(1, 0), window_update(1, 0)].concat())
        .unwrap();
    let breach = pair.send_breach(&headers(1, &names(16)));
    assert_eq!(breach, Code::ENHANCE_YOUR_CALM);
    // Fields that are in the table already, of a byte each.
    let mut pair = Pair::new();
    pair.send(&headers(1, &names(1))).unwrap();
    let breach = pair.send_breach(&headers(3, &[0xbe; 17]));
    assert_eq!(breach, Code::ENHANCE_YOUR_CALM);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_may_be_tried_again() {
    let mut pair = Pair::with(Config {
        max_concurrent_streams: 2,
        ..Config::default()
    });
    pair.open(1);
    pair.open(3);
    pair.send_quietly(&request(5, 0));
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(RST_STREAM, 5)]);
    assert_eq!(Code(number(&frames[0].1)), Code::REFUSED_STREAM);
    // What was under way.
    pair.send_quietly(&frame(DATA, END_STREAM, 5, b"body"));
    pair.server.finish(StreamId(1), None);
    pair.read();
    pair.open(7);
}
