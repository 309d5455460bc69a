//! The bytes of a connection after its preface, into each engine of HTTP/2 and the service.

use std::time::Duration;

use tidegate::{EventService, Hub, HubConfig, ServiceConfig};
use tidegate_transport::{Connection, Http2Config, Http2Engine, read_preface};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split},
    time::timeout,
};

use crate::{PREFACE, runtime};

/// The most concurrent streams: few, so that inputs of a fuzzer reach the limit.
const STREAMS: u32 = 16;
/// How long a connection may go on without its peer, on a paused clock that skips every wait.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Sends a preface and then the bytes, and closes the connection: once to each engine.
///
/// # Panics
/// If a connection does not end, or leaves a subscription behind.
pub fn connection(bytes: &[u8]) {
    for engine in [Http2Engine::Tidegate, Http2Engine::Hyper] {
        serve(bytes, engine);
    }
}

fn serve(bytes: &[u8], engine: Http2Engine) {
    let hub = Hub::new(HubConfig::new(1));
    let service = EventService::new(hub.clone(), ServiceConfig::default());
    let runtime = runtime();
    runtime.block_on(async {
        let (peer, transport) = duplex(1 << 20);
        let (mut reader, mut writer) = split(peer);
        writer.write_all(PREFACE).await.expect("there is room");
        let transport = read_preface(transport).await.expect("it was sent");
        let config = Http2Config {
            engine,
            max_concurrent_streams: STREAMS,
            ..Http2Config::default()
        };
        let served = tokio::spawn(Connection::new(transport, service, &config));
        let reading = tokio::spawn(async move {
            let mut said = Vec::new();
            _ = reader.read_to_end(&mut said).await;
        });
        // This fails if the connection has ended in the middle.
        if writer.write_all(bytes).await.is_ok() {
            _ = writer.shutdown().await;
        }
        let served = timeout(PATIENCE, served)
            .await
            .expect("it goes on without a peer");
        // Arbitrary bytes often end a connection with an error.
        _ = served.expect("it does not panic");
        reading.await.expect("reading does not panic");
    });
    // What else the service has begun ends with the runtime.
    drop(runtime);
    assert_eq!(hub.stats().subscriptions, 0, "{engine:?}");
}
