//! Compares the hand-written encoding with the generated code.

use prost::Message as _;
use tidegate_proto::v1::{
    CaughtUp, Event, Gap, Heartbeat, NewEvent, Position, PublishRequest, PublishResponse,
    SubscribeRequest, SubscribeResponse, Subscribed, subscribe_response,
};

use super::*;

fn encoded(response: subscribe_response::Response) -> Vec<u8> {
    let response = SubscribeResponse {
        response: Some(response),
    };
    response.encode_to_vec()
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = vec![0; PREFIX];
    framed.extend_from_slice(message);
    finish_message(framed)
}

#[test]
fn a_return_is_followed_to_its_end() {
    let place = Some(Position {
        epoch: 1 << 60,
        sequence: 300,
    });
    let subscribed = encoded(subscribe_response::Response::Subscribed(Subscribed {
        client_id: "c".into(),
        position: place,
        ..Subscribed::default()
    }));
    let expected = Return::Subscribed(crate::target::Position {
        epoch: 1 << 60,
        sequence: 300,
    });
    assert_eq!(Return::parse(&subscribed).unwrap(), expected);
    let caught_up = encoded(subscribe_response::Response::CaughtUp(CaughtUp {
        position: place,
    }));
    assert_eq!(Return::parse(&caught_up).unwrap(), Return::CaughtUp);
    let gap = encoded(subscribe_response::Response::Gap(Gap {
        count: 5,
        ..Gap::default()
    }));
    assert_eq!(Return::parse(&gap).unwrap(), Return::Gap(5));
    let heartbeat = encoded(subscribe_response::Response::Heartbeat(Heartbeat {
        position: place,
    }));
    assert_eq!(Return::parse(&heartbeat).unwrap(), Return::Other);
}

#[test]
fn responses_are_parsed() {
    let position = Some(Position {
        epoch: u64::MAX,
        sequence: 300,
    });
    let subscribed = encoded(subscribe_response::Response::Subscribed(Subscribed {
        client_id: "c".into(),
        next_index: 1 << 40,
        position,
        ..Subscribed::default()
    }));
    assert_eq!(
        Response::parse(&subscribed).unwrap(),
        Response::Subscribed {
            next_index: 1 << 40
        }
    );
    let gap = encoded(subscribe_response::Response::Gap(Gap {
        first_sequence: 1,
        last_sequence: 9,
        count: 5,
        reason: 1,
        first_index: 77,
    }));
    assert_eq!(
        Response::parse(&gap).unwrap(),
        Response::Gap {
            first_index: 77,
            count: 5
        }
    );
    let heartbeat = encoded(subscribe_response::Response::Heartbeat(Heartbeat {
        position,
    }));
    assert_eq!(Response::parse(&heartbeat).unwrap(), Response::Other);
    assert_eq!(Response::parse(&[]).unwrap(), Response::Other);
}

#[test]
fn batch_is_parsed_to_count_index_and_payloads() {
    let payloads: [&[u8]; 3] = [b"one", b"", b"three"];
    let events = payloads.map(|payload| Event {
        sequence: 1_000_000,
        topic: "a.b".into(),
        payload: payload.into(),
        key: "k".into(),
        ..Event::default()
    });
    let batch = encoded(subscribe_response::Response::Batch(
        tidegate_proto::v1::Batch {
            events: events.into(),
            first_index: 12_345,
        },
    ));
    let Response::Batch(batch) = Response::parse(&batch).unwrap() else {
        panic!("not a batch");
    };
    assert_eq!((batch.count, batch.first_index), (3, 12_345));
    let found: Vec<_> = batch.payloads().collect();
    assert_eq!(found, [&b"one"[..], b"three"]);
}

#[test]
fn messages_are_assembled_from_any_chunks() {
    let sent: Vec<Vec<u8>> = [0, 1, 4, 5, 6, 200].map(|len| vec![len as u8; len]).into();
    let stream: Vec<u8> = sent.iter().flat_map(|message| framed(message)).collect();
    for size in 1..=stream.len() {
        let mut messages = Messages::default();
        let mut got = Vec::new();
        for chunk in stream.chunks(size) {
            let each = |message: &[u8]| {
                got.push(message.to_vec());
                Ok(())
            };
            messages.push(chunk, each).unwrap();
        }
        assert_eq!(got, sent, "chunks of {size}");
        assert!(messages.pending.is_empty());
    }
}

#[test]
fn malformed_responses_are_violations() {
    let mut messages = Messages::default();
    assert!(
        messages
            .push(b"HTTP/1.1 400 Bad Request", |_| Ok(()))
            .is_err()
    );
    for message in [&[0x12, 9][..], &[0xff; 12], &[0x0b]] {
        assert!(matches!(Response::parse(message), Err(Error::Violation(_))));
    }
}

#[test]
fn requests_equal_the_encoding_of_prost() {
    let filters = ["a.>".to_owned(), "b".repeat(200)];
    let request = SubscribeRequest {
        filters: filters.to_vec(),
        ..SubscribeRequest::default()
    };
    assert_eq!(
        subscribe_request(&filters, None),
        framed(&request.encode_to_vec())
    );
    for (epoch, sequence) in [(1 << 52, 300), (7, 0)] {
        let after = crate::target::Position { epoch, sequence };
        let request = SubscribeRequest {
            resume_after: Some(Position { epoch, sequence }),
            ..request.clone()
        };
        let encoded = subscribe_request(&filters, Some(after));
        let decoded = SubscribeRequest::decode(&encoded[PREFIX..]).unwrap();
        assert_eq!(decoded, request);
    }

    for size in [16, 127, 128, 300, 20_000] {
        let mut payload = b"head".to_vec();
        payload.resize(size, 0);
        let event = NewEvent {
            topic: "t".into(),
            payload: payload.into(),
            ..NewEvent::default()
        };
        let request = PublishRequest {
            events: vec![event.clone(), event],
        };
        let mut message = publish_request(0);
        put_event(&mut message, "t", b"head", size);
        put_event(&mut message, "t", b"head", size);
        assert_eq!(finish_message(message), framed(&request.encode_to_vec()));
    }
}

#[test]
fn numbers_are_found_by_their_tag() {
    let response = PublishResponse {
        epoch: 5,
        count: 300,
        ..PublishResponse::default()
    };
    let response = response.encode_to_vec();
    assert_eq!(number(&response, 1).unwrap(), 5);
    assert_eq!(number(&response, 3).unwrap(), 300);
    assert_eq!(number(&response, 4).unwrap(), 0);
}
