//! Budgets.

use super::*;

#[test]
fn floods_end_the_connection_and_the_same_over_hours_does_not() {
    let config = Config {
        max_faults: 100,
        max_cancellations: 100,
        max_idle_frames: 100,
        max_empty_frames: 100,
        ..Config::default()
    };
    let cancelled = |stream| {
        [
            request(stream, END_STREAM),
            frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        ]
        .concat()
    };
    let faulty = |stream| [request(stream, 0), window_update(stream, 0)].concat();
    let refused = |stream| {
        frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream,
            &block(&REQUEST[1..]),
        )
    };
    type Flood<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let floods: [(&str, Flood<'_>); 10] = [
        ("rapid resets", &cancelled),
        ("resets that it is made to send", &faulty),
        ("requests that are malformed", &refused),
        ("settings", &|_| settings(&[(4, 70_000)])),
        ("pings", &|_| frame(PING, 0, 0, &[0; 8])),
        ("priorities", &|_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 0])),
        ("unknown frames", &|_| frame(0x99, 0, 0, &[])),
        ("trailers of a call that is over", &|stream| match stream {
            1 => faulty(1),
            _ => frame(HEADERS, END_HEADERS, 1, &block(&[("a", "b")])),
        }),
        ("empty DATA", &|stream| match stream {
            1 => request(1, 0),
            _ => frame(DATA, 0, 1, &[]),
        }),
        ("DATA that is all padding", &|stream| match stream {
            1 => request(1, 0),
            _ => frame(DATA, PADDED, 1, &[2, 0, 0]),
        }),
    ];
    for (flood, bytes) in floods {
        let mut pair = Pair::with(config.clone());
        let ended = (0..200).find_map(|at| pair.send(&bytes(2 * at + 1)).err());
        assert_eq!(
            ended.map(|error| error.code()),
            Some(Code::ENHANCE_YOUR_CALM),
            "{flood}"
        );
        let mut pair = Pair::with(config.clone());
        for at in 0..10_000 {
            pair.send(&bytes(2 * at + 1))
                .unwrap_or_else(|error| panic!("{flood}: {error}"));
            pair.read();
            pair.pass(Duration::from_millis(120));
        }
    }
}

/// Each of them is decoded, and costs no call.
#[test]
fn flood_of_requests_that_nobody_takes_ends_the_connection() {
    let config = Config {
        max_header_list_size: 400,
        max_cancellations: 100,
        max_idle_frames: 100,
        ..Config::default()
    };
    let mut fields = REQUEST.to_vec();
    let large = "x".repeat(120);
    fields.extend([("a", &*large), ("b", &*large)]);
    let large = block(&fields);
    let mut pair = Pair::with(config.clone());
    let ended = (0..200).find_map(|at| {
        let id = 2 * at + 1;
        let ended = pair.send(&frame(HEADERS, END_HEADERS | END_STREAM, id, &large));
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        pair.server
            .respond(StreamId(id), status, &HeaderMap::new(), true);
        ended.err()
    });
    assert_eq!(
        ended.map(|error| error.code()),
        Some(Code::ENHANCE_YOUR_CALM)
    );
    // A list counts for more when it is large: 15 fields of 4 KiB.
    let mut pair = Pair::with(Config::default());
    pair.send(&[request(1, 0), window_update(1, 0)].concat())
        .unwrap();
    let field = [&[0x40, 0x7f, 0xe1, 0x1e][..], &[b'a'; 4_064], &[0]].concat();
    pair.send_quietly(&frame(HEADERS, END_HEADERS, 1, &field));
    let large = frame(HEADERS, END_HEADERS, 1, &[0xbe; 15]);
    let sent = (0..50_000).find(|_| pair.send(&large).is_err());
    assert_eq!(sent, Some(49_998 / 16));
    // Of calls that begin after the end the peer knows that they are not served.
    let mut pair = Pair::with(config.clone());
    pair.server.end();
    pair.pass(config.keep_alive_timeout);
    pair.server.on_timeout().unwrap();
    let ended = (0..200).find_map(|at| pair.send(&request(2 * at + 1, END_STREAM)).err());
    assert_eq!(
        ended.map(|error| error.code()),
        Some(Code::ENHANCE_YOUR_CALM)
    );
}

/// Each of them may give every stream its turn, for 15 bytes of the peer.
#[test]
fn settings_that_change_many_windows_count_for_more() {
    let mut counts = Vec::new();
    for streams in [0, 200] {
        let mut pair = Pair::with(Config {
            max_idle_frames: 1_000,
            ..Config::default()
        });
        for at in 0..streams {
            pair.open(2 * at + 1);
        }
        let ended = (0..).find(|at| {
            let changed = pair.send(&settings(&[(4, 70_000 + at % 2)]));
            pair.read();
            changed.is_err()
        });
        counts.push(ended.unwrap());
    }
    assert!(
        counts[0] > 900 && (10..100).contains(&counts[1]),
        "{counts:?}"
    );
}

#[test]
fn peer_that_does_not_read_is_not_read_either() {
    let mut pair = Pair::new();
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(100);
    let mut sent = 0;
    while pair.server.wants_input() {
        pair.send_quietly(&pings);
        sent += 100;
    }
    assert!(sent * 17 < 140_000, "{sent}");
    assert!(pair.server.output_len() < 140_000);
    pair.read();
    assert!(pair.server.wants_input());
}
