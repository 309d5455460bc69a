//! The end of `tidegate serve`, by a signal.
#![cfg(target_os = "linux")]

mod child;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use child::Serve;
use rustix::process::{Signal, kill_process};
use tidegate_client::{Client, SubscribeOptions, Update};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test]
async fn second_signal_ends_the_server_at_once_with_exit_code_130() {
    let mut server = Serve::start(&["--drain-timeout", "60s"]);
    let client = Client::connect_lazy(server.url()).unwrap();
    let mut subscription = client.subscribe(SubscribeOptions::new(["t"]).no_reconnect());
    let first = subscription.next().await.unwrap().unwrap();
    assert!(matches!(first, Update::Subscribed(_)));
    // This peer ignores GOAWAY, and so delays the end of the drain.
    let mut deaf = TcpStream::connect(server.address()).unwrap();
    deaf.write_all(PREFACE).unwrap();
    // The server's own preface shows that it serves the connection.
    deaf.read_exact(&mut [0; 9]).unwrap();
    kill_process(server.pid(), Signal::TERM).unwrap();
    while let Some(Ok(_)) = subscription.next().await {}
    assert!(server.child.try_wait().unwrap().is_none(), "it drains");
    let began = Instant::now();
    kill_process(server.pid(), Signal::INT).unwrap();
    let status = server.child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn hostile_peers_delay_the_end_by_at_most_the_drain_timeout() {
    let mut server = Serve::start(&["--drain-timeout", "1s"]);
    let _peers: Vec<_> = (0..100)
        .map(|i| {
            let mut peer = TcpStream::connect(server.address()).unwrap();
            peer.write_all([&b""[..], b"PRI * ", PREFACE][i % 3])
                .unwrap();
            peer
        })
        .collect();
    let began = Instant::now();
    kill_process(server.pid(), Signal::TERM).unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn drain_by_a_call_ends_with_a_code_that_supervisors_restart() {
    let mut server = Serve::start(&[]);
    let client = Client::connect_lazy(server.url()).unwrap();
    assert!(client.admin().drain().await.unwrap());
    drop(client);
    let status = tokio::task::spawn_blocking(move || server.child.wait().unwrap());
    assert_eq!(status.await.unwrap().code(), Some(10));
}

#[tokio::test]
async fn signal_in_a_drain_by_a_call_ends_with_success() {
    let mut server = Serve::start(&["--drain-timeout", "1s"]);
    // This peer ignores GOAWAY, and so delays the end of the drain.
    let mut deaf = TcpStream::connect(server.address()).unwrap();
    deaf.write_all(PREFACE).unwrap();
    deaf.read_exact(&mut [0; 9]).unwrap();
    let client = Client::connect_lazy(server.url()).unwrap();
    assert!(client.admin().drain().await.unwrap());
    kill_process(server.pid(), Signal::TERM).unwrap();
    let status = tokio::task::spawn_blocking(move || server.child.wait().unwrap());
    assert_eq!(status.await.unwrap().code(), Some(0));
}
