//! A service with its own messages over `tidegate-transport`, in place of tonic's server.

use std::time::Duration;

use tidegate::{
    StallPolicy, SweepRules,
    typed::{Hub, LeaveReason},
};
use tidegate_embedding_tests::{
    PATIENCE, Running, Service, http2, next, on,
    proto::{ServerEvent, feed_client::FeedClient, feed_server::FeedServer},
    text, texts, watch, within_patience,
};
use tidegate_transport::{Http2Config, Server};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::sleep,
};
use tonic::{Code, Request, service::Routes};

async fn running(http2: Http2Config) -> Running {
    Running::start_on_transport(Hub::builder().build(), http2).await
}

/// Reads until the other end has closed the connection.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset closes the connection too.
    let _ = within_patience(stream.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn streams_get_all_in_order_and_a_clean_end() {
    let server = running(http2()).await;
    let mut client = server.client().await;
    let mut streams = Vec::new();
    for topic in ["a", "b"] {
        streams.push(client.watch(watch(topic)).await.unwrap().into_inner());
    }
    for i in 0..300 {
        server.hub.publish(on("a", &format!("a{i}"))).unwrap();
        server.hub.publish(on("b", &format!("b{i}"))).unwrap();
    }
    for (stream, topic) in streams.iter_mut().zip(["a", "b"]) {
        let expected: Vec<_> = (0..300).map(|i| format!("{topic}{i}")).collect();
        assert_eq!(texts(stream, 300).await, expected);
    }
    let stopped = tokio::spawn(server.stop());
    for stream in &mut streams {
        assert_eq!(next(stream).await.unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!(within_patience(stopped).await.unwrap(), Ok(()));
}

#[tokio::test]
async fn unread_stream_is_reset_and_its_neighbor_goes_on() {
    let (left, mut leaves) = mpsc::channel(8);
    let hub = Hub::builder().on_leave(move |departure| {
        // This fails if the receiver is gone.
        let _ = left.try_send(departure.reason);
    });
    let server = Running::start_on_transport(hub.build(), http2()).await;
    let mut client = server.client_with_small_windows().await;
    let mut stalled = client.watch(watch("a")).await.unwrap().into_inner();
    let mut neighbor = client.watch(watch("b")).await.unwrap().into_inner();
    let large = "x".repeat(1_000);
    for _ in 0..1_000 {
        server.hub.publish(on("a", &large)).unwrap();
    }
    let rules = SweepRules {
        stall_timeout: Some(Duration::from_millis(100)),
        on_stall: StallPolicy::Close,
        reset_grace: Duration::from_millis(100),
    };
    let sweeping = async {
        loop {
            server.hub.sweep(&rules);
            sleep(Duration::from_millis(20)).await;
        }
    };
    let reason = tokio::select! {
        reason = within_patience(leaves.recv()) => reason.unwrap(),
        () = sweeping => unreachable!("it has no end"),
    };
    assert!(matches!(reason, LeaveReason::Ended(_)), "{reason:?}");
    server.hub.publish(on("b", "still here")).unwrap();
    assert_eq!(texts(&mut neighbor, 1).await, ["still here"]);
    let status = loop {
        if let Err(status) = next(&mut stalled).await {
            break status;
        }
    };
    assert_ne!(status.code(), Code::Ok);
}

#[tokio::test]
async fn handler_sees_the_address_of_the_caller() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, mut addresses) = mpsc::channel(8);
    let service = Service {
        hub: Hub::<ServerEvent>::new(),
        counted: Hub::new(),
    };
    let service = FeedServer::with_interceptor(service, move |request: Request<()>| {
        seen.try_send((request.local_addr(), request.remote_addr()))
            .unwrap();
        Ok(request)
    });
    let server = Server::new(http2());
    let serving = tokio::spawn(server.serve(listener, Routes::new(service), async {
        std::future::pending().await
    }));
    let mut client = FeedClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    client.watch(watch("a")).await.unwrap();
    let (local, remote) = within_patience(addresses.recv()).await.unwrap();
    assert_eq!(local, Some(address));
    assert_eq!(remote.unwrap().ip(), address.ip());
    serving.abort();
}

#[tokio::test]
async fn connection_that_is_not_http2_is_closed() {
    let server = running(Http2Config {
        preface_timeout: PATIENCE * 2,
        ..http2()
    })
    .await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: tidegate\r\n\r\n")
        .await
        .unwrap();
    closed(&mut stream).await;
}

#[tokio::test]
async fn silent_connection_is_closed_at_the_deadline() {
    let server = running(Http2Config {
        preface_timeout: Duration::from_millis(100),
        ..http2()
    })
    .await;
    closed(&mut TcpStream::connect(server.address).await.unwrap()).await;
}

#[tokio::test]
async fn drain_does_not_wait_for_a_connection_without_a_preface() {
    let server = running(Http2Config {
        preface_timeout: PATIENCE * 2,
        ..http2()
    })
    .await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(server.stop().await, Ok(()));
    closed(&mut silent).await;
}

#[tokio::test]
async fn dropped_server_aborts_its_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hub = Hub::<ServerEvent>::new();
    let service = FeedServer::new(Service {
        hub: hub.clone(),
        counted: Hub::new(),
    });
    let (_never, stopped) = oneshot::channel::<()>();
    let server = Server::new(http2());
    let serving = tokio::spawn(server.serve(listener, Routes::new(service), async {
        _ = stopped.await;
    }));
    let mut client = FeedClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let mut stream = client.watch(watch("a")).await.unwrap().into_inner();
    hub.publish(text("first")).unwrap();
    serving.abort();
    assert!(within_patience(serving).await.unwrap_err().is_cancelled());
    while next(&mut stream).await.is_ok() {}
    assert!(hub.clients().is_empty());
}
