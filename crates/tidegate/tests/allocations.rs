//! Allocations of a delivery. These numbers may fall; one that grows is a regression.

use std::{
    ops::RangeInclusive,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Instant,
};

use allocation_counter::measure;
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::Body;
use http_body_util::Full;
use prost::Message as _;
use tidegate::{
    ClientIdPolicy, Encoded, EventService, Hub, HubConfig, ServiceConfig, encode,
    proto::{NewEvent, SubscribeRequest},
};
use tower_service::Service as _;

fn hub() -> Hub<Encoded> {
    Hub::new(HubConfig {
        client_ids: ClientIdPolicy::Several,
        ..HubConfig::new(1)
    })
}

fn event() -> NewEvent {
    NewEvent {
        topic: "orders.eu.created".into(),
        payload: Bytes::from_static(&[7; 256]),
        ..NewEvent::default()
    }
}

fn publish(hub: &Hub<Encoded>, count: usize) {
    let events: Vec<_> = (0..count).map(|_| encode(event()).unwrap()).collect();
    hub.publish(events, Instant::now()).unwrap();
}

/// Opens this number of streams of the service, as hyper would hold them, and takes all that they have to send:
/// that they are subscribed.
async fn subscribe(hub: &Hub<Encoded>, streams: usize) -> Vec<impl Body<Data = Bytes> + Unpin> {
    let mut service = EventService::new(hub.clone(), ServiceConfig::default());
    let request = SubscribeRequest {
        filters: vec!["orders.>".into()],
        ..SubscribeRequest::default()
    };
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(u32::try_from(request.encoded_len()).unwrap());
    request.encode(&mut message).unwrap();
    let message = message.freeze();
    let mut bodies = Vec::new();
    for _ in 0..streams {
        let request = http::Request::post("/tidegate.v1.EventService/Subscribe")
            .header("content-type", "application/grpc")
            .body(Full::new(message.clone()))
            .unwrap();
        let mut body = service.call(request).await.unwrap().into_body();
        assert!(poll(&mut body).is_some(), "subscribed");
        assert!(poll(&mut body).is_none(), "nothing more");
        bodies.push(body);
    }
    bodies
}

/// The next chunk, if there is one.
fn poll(body: &mut (impl Body<Data = Bytes> + Unpin)) -> Option<Bytes> {
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(body).poll_frame(&mut cx) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
        _ => None,
    }
}

#[tokio::test]
async fn delivery_allocates_only_its_chunk() {
    assert_allocations(7, 100..=101).await;
}

#[tokio::test]
async fn subscribers_at_one_position_share_a_chunk() {
    // The chunk, and what counts its holders; and once for all streams, the lists of what history lets go of after its lock.
    assert_allocations(8, 2..=4).await;
    assert_allocations(50, 2..=4).await;
}

/// Checks the number of allocations with which 100 streams deliver this number of events that each has ready.
async fn assert_allocations(events: usize, expected: RangeInclusive<u64>) {
    let hub = hub();
    let mut streams = subscribe(&hub, 100).await;
    // The first rounds make what is kept for the next ones: a thread keeps sixteen chunks.
    for round in 0..40 {
        publish(&hub, events);
        let allocations = measure(|| {
            for stream in &mut streams {
                assert!(poll(stream).is_some());
                assert!(poll(stream).is_none());
            }
        });
        // The feed may give back the memory of its ring, once for all streams.
        let count = allocations.count_total;
        assert!(round < 20 || expected.contains(&count), "{events}: {count}");
    }
}

#[tokio::test]
async fn publishing_allocates_the_same_for_any_audience() {
    let mut counts = Vec::new();
    for subscribers in [1, 100] {
        let hub = hub();
        let _streams = subscribe(&hub, subscribers).await;
        publish(&hub, 1);
        // Nobody is parked any more, so nobody is woken.
        let event = encode(event()).unwrap();
        let mut event = Some(event);
        let published = measure(|| {
            hub.publish(event.take(), Instant::now()).unwrap();
        });
        counts.push(published.count_total);
    }
    assert_eq!(counts[0], counts[1]);
    assert!(counts[0] <= 4, "{counts:?}");
}
