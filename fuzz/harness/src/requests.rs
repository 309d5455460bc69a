//! The bodies of calls, through every layer that reads them: gRPC's framing, protobuf, the limits, the hub.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::Full;
use tidegate::{Encoded, EventService, Hub, HubConfig, ServiceConfig};
use tower::ServiceExt as _;

use crate::runtime;

/// Calls `Publish` and `PublishStream` with a body of these bytes.
///
/// # Panics
/// If a refused batch leaves events behind.
pub fn publish(bytes: &[u8]) {
    let hub = Hub::new(HubConfig::new(1));
    let status = call(&hub, "/tidegate.v1.EventService/Publish", bytes);
    let published = hub.stats().published;
    assert_eq!(status.as_deref() == Some("0"), published > 0, "{status:?}");
    call(&hub, "/tidegate.v1.EventService/PublishStream", bytes);
}

/// Calls `Subscribe` with a body of these bytes.
///
/// # Panics
/// If the end of the call leaves a subscription behind.
pub fn subscribe(bytes: &[u8]) {
    let hub = Hub::new(HubConfig::new(1));
    call(&hub, "/tidegate.v1.EventService/Subscribe", bytes);
    assert_eq!(hub.stats().subscriptions, 0);
}

/// Makes a call, and reads as much as comes at once. Returns the status, if it came.
fn call(hub: &Hub<Encoded>, path: &str, message: &[u8]) -> Option<String> {
    // The first byte selects a fault of the framing; 0 to 127 select none.
    let body = match message.split_first() {
        Some((0..128, message)) => {
            let length = u32::try_from(message.len()).expect("fuzzers make no such inputs");
            [&[0][..], &length.to_be_bytes(), message].concat()
        }
        Some((_, body)) => body.to_vec(),
        None => Vec::new(),
    };
    let request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(body)))
        .expect("it is well formed");
    let service = EventService::new(hub.clone(), ServiceConfig::default());
    // Subscriptions have timers.
    runtime().block_on(async {
        let Ok(response) = service.oneshot(request).await;
        let status = |headers: &http::HeaderMap| {
            let status = headers.get("grpc-status")?;
            Some(status.to_str().expect("it is a number").to_owned())
        };
        let mut said = status(response.headers());
        let mut body = Box::pin(response.into_body());
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx) {
            // No engine asks for more after them either.
            if let Some(trailers) = frame.trailers_ref() {
                said = status(trailers);
                break;
            }
        }
        said
    })
}
