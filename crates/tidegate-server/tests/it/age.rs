//! The greatest age of a connection, over real sockets.

use std::time::Duration;

use tidegate::proto::*;
use tidegate_server::ServerConfig;
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::Instant};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::common::*;

fn aged(age: Duration) -> ServerConfig {
    ServerConfig {
        max_connection_age: Some(age),
        max_connection_age_grace: Duration::from_millis(300),
        ..ServerConfig::default()
    }
}

#[tokio::test]
async fn an_old_connection_ends_its_streams_with_positions() {
    let age = Duration::from_secs(3);
    let server = Running::start(aged(age)).await;
    let began = Instant::now();
    let mut old = server.client().await;
    let mut streams = [
        subscribe(&mut old, filters(&["t"])).await,
        subscribe(&mut old, filters(&["u"])).await,
    ];
    tokio::time::sleep(age / 2).await;
    let mut young = server.client().await;
    let mut other = subscribe(&mut young, filters(&["t"])).await;
    let answer = publish(&mut young, vec![event("t", "x")]).await.unwrap();
    streams[0].events(1).await;
    other.events(1).await;
    for stream in &mut streams {
        let (going_away, status) = stream.end().await;
        assert!(began.elapsed() >= age.mul_f64(0.9));
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(reason(&status), "MAX_CONNECTION_AGE");
        let going_away = going_away.expect("it is told before");
        let position = going_away.resume_after.unwrap();
        assert_eq!(position.sequence, answer.last_sequence);
        let delay = going_away.reconnect_after.unwrap();
        let retry = status.get_details_retry_info().unwrap().retry_delay;
        assert_eq!(retry, Some(delay.try_into().unwrap()));
    }
    // The other connection, whose time has not come, goes on.
    publish(&mut young, vec![event("t", "y")]).await.unwrap();
    other.events(1).await;
}

#[tokio::test]
async fn an_old_connection_ends_an_idle_publish_stream() {
    let server = Running::start(aged(Duration::from_millis(300))).await;
    let mut client = server.client().await;
    let (requests, queue) = tokio::sync::mpsc::channel(1);
    let queue = tokio_stream::wrappers::ReceiverStream::new(queue);
    let mut answers = client.publish_stream(queue).await.unwrap().into_inner();
    let events = vec![event("t", "x")];
    let request = PublishRequest { events };
    requests.send(request).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    let status = answers.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), "MAX_CONNECTION_AGE");
    assert_eq!(server.hub.position().sequence, answer.last_sequence);
}

#[tokio::test]
async fn an_old_connection_is_cut_after_the_grace() {
    let server = Running::start(aged(Duration::from_millis(300))).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    // The preface and empty settings, and then nothing: it takes no notice of GOAWAY.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    tokio::io::AsyncWriteExt::write_all(&mut silent, preface)
        .await
        .unwrap();
    let mut said = Vec::new();
    let read = silent.read_to_end(&mut said);
    _ = tokio::time::timeout(PATIENCE, read)
        .await
        .expect("it is still there");
    assert_eq!(server.admission.stats().open, 0);
}
