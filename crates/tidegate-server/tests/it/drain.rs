//! Reflection, and the end of a server with peers of every kind, over real sockets.

use std::time::Duration;

use tidegate::SweepRules;
use tidegate_server::ServerConfig;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::common::*;

const SERVICE: &str = "tidegate.v1.EventService";

#[tokio::test]
async fn reflection_describes_the_service_and_delays_no_drain() {
    let server = Running::start(ServerConfig::default()).await;
    let mut reflection = ServerReflectionClient::new(server.endpoint().connect().await.unwrap());
    let (requests, queue) = tokio::sync::mpsc::channel(1);
    let ask = |message| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message),
    };
    requests
        .send(ask(MessageRequest::ListServices(String::new())))
        .await
        .unwrap();
    let queue = ReceiverStream::new(queue);
    let answers = reflection.server_reflection_info(queue).await.unwrap();
    let mut answers = answers.into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let mut names: Vec<_> = list
        .service
        .iter()
        .map(|service| &service.name[..])
        .collect();
    names.sort_unstable();
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        // Served on a loopback address.
        "tidegate.v1.AdminService",
        SERVICE,
    ];
    assert_eq!(names, expected);

    requests
        .send(ask(MessageRequest::FileContainingSymbol(SERVICE.into())))
        .await
        .unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::FileDescriptorResponse(file)) = answer.message_response else {
        panic!("{answer:?}")
    };
    assert_eq!(file.file_descriptor_proto.len(), 1);
    // Its stream is still open.
    assert_eq!(server.stop().await.connections_cut, 0);
}

#[tokio::test]
async fn a_drain_tells_each_stream_where_and_when_to_resume() {
    let server = Running::start(ServerConfig::default()).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut client = server.client().await;
        for _ in 0..10 {
            streams.push(subscribe(&mut client, filters(&["t"])).await);
        }
    }
    let report = tokio::spawn(server.stop());
    let mut delays = Vec::new();
    for stream in &mut streams {
        let (going_away, status) = stream.end().await;
        assert_eq!(reason(&status), "SHUTTING_DOWN");
        let delay = going_away.unwrap().reconnect_after.unwrap();
        delays.push(Duration::try_from(delay).unwrap());
    }
    // Of the 5 s, no second has more than its share and a half of the 200.
    for second in 0..5 {
        let within = delays.iter().filter(|delay| delay.as_secs() == second);
        let count = within.count();
        assert!((20..=60).contains(&count), "second {second}: {count}");
    }
    let report = report.await.unwrap();
    assert_eq!(
        (report.connections_drained, report.connections_cut),
        (20, 0)
    );
    assert_eq!((report.streams_drained, report.streams_cut), (200, 0));
}

#[tokio::test]
async fn a_drain_ends_in_time_and_reports_the_cut_streams() {
    let drain_timeout = Duration::from_secs(2);
    let server = Running::start(ServerConfig {
        drain_timeout,
        ..ServerConfig::default()
    })
    .await;
    // A peer that reads nothing: the window of the stream is full, and the status cannot be sent.
    let mut reader = server.client_with_small_windows().await;
    let mut stalled = subscribe(&mut reader, filters(&["t"])).await;
    stalled.is_disturbed = true;
    let mut publisher = server.client().await;
    for _ in 0..4 {
        let events = (0..500).map(|_| event("t", [0; 1_000])).collect();
        publish(&mut publisher, events).await.unwrap();
    }
    // Peers that say nothing, half the preface, or the preface and then nothing.
    let mut hostile = Vec::new();
    for i in 0..99 {
        let mut peer = TcpStream::connect(server.address).await.unwrap();
        let said = [
            &b""[..],
            b"PRI * HTTP/2",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ][i % 3];
        peer.write_all(said).await.unwrap();
        hostile.push(peer);
    }
    let mut honest = subscribe(&mut server.client().await, filters(&["u"])).await;
    let began = Instant::now();
    let report = tokio::spawn(server.stop());
    let (_, status) = honest.end().await;
    assert_eq!(reason(&status), "SHUTTING_DOWN");
    assert!(
        began.elapsed() < drain_timeout / 2,
        "it need not wait for the others"
    );
    let report = report.await.unwrap();
    let took = began.elapsed();
    assert!(took < drain_timeout + Duration::from_secs(1), "{took:?}");
    assert_eq!((report.streams_drained, report.streams_cut), (1, 1));
    assert!(report.connections_cut > 0, "{report:?}");
}

#[tokio::test]
async fn a_drain_resets_unread_streams_and_ends_their_connection() {
    let sweep = SweepRules {
        reset_grace: Duration::from_millis(200),
        ..SweepRules::default()
    };
    let server = Running::start(ServerConfig {
        sweep,
        drain_timeout: Duration::from_secs(4),
        ..ServerConfig::default()
    })
    .await;
    let mut client = server.client_with_small_windows().await;
    let mut stalled = subscribe(&mut client, filters(&["t"])).await;
    stalled.is_disturbed = true;
    let mut publisher = server.client().await;
    for _ in 0..4 {
        let events = (0..500).map(|_| event("t", [0; 1_000])).collect();
        publish(&mut publisher, events).await.unwrap();
    }
    let report = server.stop().await;
    assert_eq!(
        (report.streams_cut, report.connections_cut),
        (1, 0),
        "{report:?}"
    );
}
