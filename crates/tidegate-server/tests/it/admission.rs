//! The admission of connections: limits on their number, over real sockets.

use std::{io, net::SocketAddr, time::Duration};

use tidegate_server::{BindError, Http2Config, Server, ServerConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time,
};

use crate::common::*;

async fn connect_from(local: &str, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    let local = SocketAddr::new(local.parse().unwrap(), 0);
    socket.bind(local).unwrap();
    socket.connect(server).await
}

/// Waits for the server to close what it refused, which it says at once, without a byte, and maybe before the
/// socket is looked at.
async fn is_refused(connected: io::Result<TcpStream>) {
    let refused = async { connected?.read_u8().await };
    let error = time::timeout(PATIENCE, refused)
        .await
        .expect("it was neither served nor refused")
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_connection_beyond_the_cap_is_reset_and_the_others_live() {
    let server = Running::start(ServerConfig {
        max_connections: Some(2),
        ..ServerConfig::default()
    })
    .await;
    let mut publisher = server.client().await;
    let mut stream = subscribe(&mut server.client().await, filters(&["t"])).await;
    for _ in 0..100 {
        is_refused(TcpStream::connect(server.address).await).await;
    }
    publish(&mut publisher, vec![event("t", "x")])
        .await
        .unwrap();
    stream.events(1).await;
    assert_eq!(server.admission.stats().refused, 100);

    // A place that becomes free is given to the next.
    drop(stream);
    let stats = || server.admission.stats();
    until("the place is free", stats, |stats| stats.open <= 1).await;
    subscribe(&mut server.client().await, filters(&["t"])).await;
}

#[tokio::test]
async fn a_flood_from_one_address_leaves_room_for_the_others() {
    let server = Running::start(ServerConfig {
        max_connections: Some(200),
        max_connections_per_address: Some(10),
        ..ServerConfig::default()
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(connect_from("127.0.0.2", server.address).await.unwrap());
    }
    for _ in 0..300 {
        is_refused(connect_from("127.0.0.2", server.address).await).await;
    }
    let stats = server.admission.stats();
    assert_eq!((stats.open, stats.refused_by_address), (10, 300));
    // From 127.0.0.1.
    let mut client = server.client().await;
    let mut stream = subscribe(&mut client, filters(&["t"])).await;
    publish(&mut client, vec![event("t", "x")]).await.unwrap();
    stream.events(1).await;
    assert_eq!(server.admission.stats().refused, 0);
}

#[tokio::test]
async fn a_connection_without_a_preface_gives_up_its_place() {
    let http2 = Http2Config {
        preface_timeout: Duration::from_millis(200),
        ..Http2Config::default()
    };
    let server = Running::start(ServerConfig {
        http2,
        ..ServerConfig::default()
    })
    .await;
    // Silent, halfway, and one who takes it for a web server.
    for said in [
        &b""[..],
        b"PRI * HTTP/2.0",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut peer = TcpStream::connect(server.address).await.unwrap();
        peer.write_all(said).await.unwrap();
        // Its end may be a reset, if the server has not read all that was said. One who speaks another protocol is told
        // so before.
        let mut told = Vec::new();
        let ended = time::timeout(PATIENCE, peer.read_to_end(&mut told)).await;
        let _ = ended.expect("it is still there");
        assert!(told.is_empty() || said.starts_with(b"GET"), "{told:?}");
        assert_eq!(server.admission.stats().open, 0);
    }
}

#[tokio::test]
async fn a_cap_beyond_the_descriptor_limit_stops_the_start() {
    let config = ServerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        max_connections: Some(usize::MAX),
        ..ServerConfig::default()
    };
    let error = Server::bind(config).await.unwrap_err();
    assert!(matches!(error, BindError::Descriptors { .. }));
    let message = error.to_string();
    assert!(message.contains("ulimit -Hn") && message.contains("lower the connection limit"));
}
