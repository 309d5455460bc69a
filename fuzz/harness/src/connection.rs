//! The bytes of a connection after its preface, into hyper and the service.

use std::{future::Future, time::Duration};

use hyper::{rt::Executor, server::conn::http2};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tidegate::{EventService, Hub, HubConfig, ServiceConfig, resettable};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split},
    time::timeout,
};

use crate::runtime;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The most concurrent streams: few, so that inputs of a fuzzer reach the limit.
const STREAMS: u32 = 16;
/// How long a connection may go on without its peer, on a paused clock that skips every wait.
const PATIENCE: Duration = Duration::from_secs(3_600);

#[derive(Clone)]
struct Streams;

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(resettable(stream));
    }
}

/// Sends a preface and then the bytes, and closes the connection.
///
/// # Panics
/// If the connection does not end, or leaves a subscription behind.
pub fn connection(bytes: &[u8]) {
    let hub = Hub::new(HubConfig::new(1));
    let service = EventService::new(hub.clone(), ServiceConfig::default());
    let runtime = runtime();
    runtime.block_on(async {
        let (peer, transport) = duplex(1 << 20);
        let mut builder = http2::Builder::new(Streams);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_local_error_reset_streams(1_024)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        let served =
            builder.serve_connection(TokioIo::new(transport), TowerToHyperService::new(service));
        let served = tokio::spawn(served);
        let (mut reader, mut writer) = split(peer);
        let reading = tokio::spawn(async move {
            let mut said = Vec::new();
            _ = reader.read_to_end(&mut said).await;
        });
        // This fails if the connection has ended in the middle.
        if writer.write_all(PREFACE).await.is_ok() && writer.write_all(bytes).await.is_ok() {
            _ = writer.shutdown().await;
        }
        // Arbitrary bytes often end a connection with an error.
        _ = timeout(PATIENCE, served)
            .await
            .expect("it goes on without a peer");
        reading.await.expect("reading does not panic");
    });
    // The tasks of its streams end with the runtime, if not before.
    drop(runtime);
    assert_eq!(hub.stats().subscriptions, 0);
}
