//! `grpc-timeout` on `Subscribe`, over real sockets.

use std::time::Duration;

use tidegate::proto::SubscribeResponse;
use tidegate_server::ServerConfig;
use tokio::time::{self, Instant};
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::common::*;

/// Reads to the end; the status, and the sequence of the last event.
async fn read_to_end(mut stream: Streaming<SubscribeResponse>) -> (Status, u64) {
    let mut last = 0;
    loop {
        let message = time::timeout(PATIENCE, stream.message()).await;
        match message.expect("it goes on beyond its deadline") {
            Ok(message) => {
                let response = message.expect("never OK").response;
                if let Some(Response::Batch(batch)) = response {
                    last = batch.events.last().unwrap().sequence;
                }
            }
            Err(status) => return (status, last),
        }
    }
}

#[tokio::test]
async fn a_deadline_ends_the_stream_with_its_position_idle_or_busy() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    let deadline = Duration::from_secs(1);
    let began = Instant::now();
    let mut streams = Vec::new();
    for filter in ["busy", "idle"] {
        let mut request = Request::new(filters(&[filter]));
        request.set_timeout(deadline);
        streams.push(client.subscribe(request).await.unwrap().into_inner());
    }
    let mut publisher = server.client().await;
    let publishing = tokio::spawn(async move {
        loop {
            let events = vec![event("busy", "x")];
            publish(&mut publisher, events).await.unwrap();
        }
    });
    for (stream, is_busy) in streams.into_iter().zip([true, false]) {
        let (status, last) = read_to_end(stream).await;
        let took = began.elapsed();
        assert!(took >= deadline && took < deadline * 2, "{took:?}");
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
        let info = status.get_details_error_info().unwrap();
        let sequence: u64 = info.metadata["resume_after_sequence"].parse().unwrap();
        // All up to there was delivered, or did not match.
        assert_eq!(last > 0, is_busy);
        assert!(if is_busy {
            sequence == last
        } else {
            sequence > 0
        });
    }
    publishing.abort();
    server
        .until("both are gone", |stats| stats.subscriptions == 0)
        .await;
}

#[tokio::test]
async fn a_malformed_deadline_is_refused() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    for bad in ["1", "S", "123456789S", "1s", "-1S", "soon"] {
        let mut request = Request::new(filters(&["t"]));
        let metadata = request.metadata_mut();
        metadata.insert("grpc-timeout", bad.parse().unwrap());
        let refused = client.subscribe(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad}");
        assert_eq!(reason(&refused), "INVALID_REQUEST");
    }
}
