//! Answers that come from no server of gRPC: the HTTP status decides, for every call.

mod support;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::server::{self, Connection, SendResponse};
use http::Response;
use support::options;
use tidegate_client::{Client, Code, Error, NewEvent, PublisherOptions, PublisherState, Update};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A proxy that answers every call with one page.
struct Proxy {
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Proxy {
    async fn start(status: u16, headers: &'static [(&'static str, &'static str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut connection = server::handshake(socket).await.unwrap();
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        let mut response = Response::builder().status(status);
                        for (name, value) in headers {
                            response = response.header(*name, *value);
                        }
                        let page = Bytes::from_static(b"<html><h1>No entry</h1></html>");
                        let head = response.body(()).unwrap();
                        let mut body = respond.send_response(head, false).unwrap();
                        let _ = body.send_data(page, true);
                    }
                });
            }
        });
        Self {
            address,
            _task: task,
        }
    }

    fn client(&self) -> Client {
        Client::connect_lazy(format!("http://{}", self.address)).unwrap()
    }
}

const PAGE: &[(&str, &str)] = &[("content-type", "text/html")];

/// The errors of each kind of call, none of which is tried again.
async fn errors(client: &Client) -> Vec<Error> {
    let event = || NewEvent {
        topic: "a".into(),
        ..Default::default()
    };
    let mut publisher = client.publisher(PublisherOptions::default());
    publisher.send(event()).await.unwrap();
    let failure = publisher.finish().await.unwrap_err();
    assert!(failure.unknown.is_empty(), "it was sent without an answer");
    assert_eq!(failure.unpublished, [event()]);
    vec![
        client
            .subscribe(options().no_reconnect())
            .next()
            .await
            .unwrap()
            .unwrap_err(),
        client.publish(vec![event()]).await.unwrap_err(),
        failure.error,
        client.admin().server().await.unwrap_err(),
        client.admin().disconnect("a").await.unwrap_err(),
    ]
}

#[tokio::test]
async fn status_decides_for_every_call() {
    for (status, code, is_expected) in [
        (
            200,
            Code::Unknown,
            (|e| matches!(e, Error::Failed(_))) as fn(&Error) -> bool,
        ),
        (301, Code::Unknown, |e| matches!(e, Error::Failed(_))),
        (400, Code::Internal, |e| matches!(e, Error::Failed(_))),
        (401, Code::Unauthenticated, |e| {
            matches!(e, Error::Unauthenticated(_))
        }),
        (403, Code::PermissionDenied, |e| {
            matches!(e, Error::PermissionDenied(_))
        }),
        (404, Code::Unimplemented, |e| matches!(e, Error::Failed(_))),
        (413, Code::Unknown, |e| matches!(e, Error::Failed(_))),
        (429, Code::Unavailable, |e| {
            matches!(e, Error::Unavailable(_))
        }),
        (431, Code::Unknown, |e| matches!(e, Error::Failed(_))),
        (500, Code::Unknown, |e| matches!(e, Error::Failed(_))),
        (502, Code::Unavailable, |e| {
            matches!(e, Error::Unavailable(_))
        }),
        (503, Code::Unavailable, |e| {
            matches!(e, Error::Unavailable(_))
        }),
        (504, Code::Unavailable, |e| {
            matches!(e, Error::Unavailable(_))
        }),
    ] {
        let proxy = Proxy::start(status, PAGE).await;
        for error in errors(&proxy.client()).await {
            assert!(is_expected(&error), "{status}: {error:?}");
            assert_eq!(error.status().unwrap().code(), code, "{status}");
            let message = error.to_string();
            assert!(message.contains(&format!("HTTP {status}")), "{message}");
            assert!(message.contains("\"No entry\""), "{message}");
        }
    }
}

#[tokio::test]
async fn subscription_tries_again_where_the_status_says_so() {
    for (status, retries) in [
        (200, true),
        (301, false),
        (400, true),
        (401, false),
        (403, false),
        (404, false),
        (407, false),
        (408, true),
        (413, false),
        (429, true),
        (431, false),
        (500, true),
        (502, true),
        (503, true),
        (504, true),
    ] {
        let proxy = Proxy::start(status, PAGE).await;
        let mut subscription = proxy.client().subscribe(options());
        match subscription.next().await.unwrap() {
            Ok(Update::Reconnecting { .. }) => assert!(retries, "{status}"),
            other => assert!(!retries && other.is_err(), "{status}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn proxy_says_when_to_come_back() {
    let headers = &[("content-type", "text/html"), ("retry-after", "30")];
    let proxy = Proxy::start(503, headers).await;
    let mut subscription = proxy.client().subscribe(options());
    let update = subscription.next().await.unwrap().unwrap();
    let Update::Reconnecting { retry_in, .. } = update else {
        panic!("{update:?}")
    };
    assert!(retry_in >= Duration::from_secs(30), "{retry_in:?}");
    let error = proxy
        .client()
        .publish(vec![NewEvent::default()])
        .await
        .unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
}

#[tokio::test]
async fn status_of_grpc_in_the_headers_counts_before_that_of_http() {
    let headers = &[
        ("content-type", "text/html"),
        ("grpc-status", "7"),
        ("grpc-message", "by the gateway"),
    ];
    let proxy = Proxy::start(503, headers).await;
    for error in errors_of_calls(&proxy.client()).await {
        assert!(matches!(error, Error::PermissionDenied(_)), "{error:?}");
        assert!(error.to_string().contains("by the gateway"), "{error}");
    }
}

async fn errors_of_calls(client: &Client) -> [Error; 2] {
    let mut subscription = client.subscribe(options());
    [
        subscription.next().await.unwrap().unwrap_err(),
        client.publish(vec![NewEvent::default()]).await.unwrap_err(),
    ]
}

// ===== No answer at all =====

/// The first error of a subscription to a port that says `greeting` and nothing more.
async fn greeted(scheme: &str, greeting: &'static [u8]) -> Error {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    let peer = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.write_all(greeting).await;
            // Read first, or the greeting is lost to a reset.
            let mut bytes = [0; 4096];
            let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut bytes).await;
        }
    });
    let client = Client::connect_lazy(url).unwrap();
    let error = client.subscribe(options()).next().await.unwrap();
    peer.abort();
    error.unwrap_err()
}

#[tokio::test]
async fn something_else_at_the_address_is_named_and_ends_it() {
    for (scheme, greeting, words) in [
        (
            "http",
            &b"SSH-2.0-OpenSSH_9.2p1\r\n"[..],
            "SSH-2.0-OpenSSH_9.2p1",
        ),
        (
            "https",
            b"SSH-2.0-OpenSSH_9.2p1\r\n",
            "SSH-2.0-OpenSSH_9.2p1",
        ),
        (
            "http",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "HTTP/1.1 is spoken",
        ),
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "no TLS"),
        (
            "http",
            b"\x15\x03\x01\x00\x02\x02\x46",
            "use an https:// address",
        ),
        ("https", b"\0\0\0\x04\0\0\0\0\0", "use an http:// address"),
    ] {
        let error = greeted(scheme, greeting).await;
        assert!(matches!(error, Error::CannotConnect(_)), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.to_string().contains(scheme), "{error}");
    }
}

#[tokio::test]
async fn server_that_is_not_there_may_come() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    for (url, words) in [
        (format!("http://{address}"), "Connection refused"),
        (format!("https://{address}"), "Connection refused"),
        ("http://name.invalid:1".into(), "cannot be resolved"),
    ] {
        let client = Client::connect_lazy(url.clone()).unwrap();
        let update = client.subscribe(options()).next().await.unwrap();
        let Ok(Update::Reconnecting { status, .. }) = update else {
            panic!("{update:?}")
        };
        assert!(status.message().contains(words), "{status:?}");
        assert!(status.message().contains(&url), "{status:?}");
    }
}

/// The first update of a subscription to `url`, as the words of its status.
async fn first_words(client: &Client) -> String {
    match client.subscribe(options()).next().await.unwrap() {
        Ok(Update::Reconnecting { status, .. }) => status.message().to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn server_that_says_nothing_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let peer = tokio::spawn(async move {
        let mut sockets = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            sockets.push(socket);
        }
    });
    let client = Client::builder(url)
        .connect_timeout(Duration::from_millis(500))
        .connect_lazy()
        .unwrap();
    // Without the limit it is the 30 s of keep-alive.
    let words = tokio::time::timeout(Duration::from_secs(10), first_words(&client)).await;
    assert!(words.unwrap().contains("says nothing"));
    let event = NewEvent::default();
    let published = tokio::time::timeout(Duration::from_secs(10), client.publish(vec![event]));
    let error = published.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    peer.abort();
}

#[tokio::test]
async fn connection_that_was_cut_early_is_tried_again() {
    for (scheme, greeting) in [
        ("http", &b"HTTP/1.1 5"[..]),
        ("http", b"\x16"),
        ("https", b"\x16"),
        ("http", b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let peer = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut bytes = [0; 4096];
                let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut bytes).await;
                let _ = socket.write_all(greeting).await;
            }
        });
        first_words(&Client::connect_lazy(url).unwrap()).await;
        peer.abort();
    }
}

#[tokio::test]
async fn words_of_a_peer_control_no_terminal() {
    let headers = &[
        ("content-type", "application/grpc"),
        ("grpc-status", "14"),
        ("grpc-message", "a%0A%1B[2Jb%E2%80%AE"),
    ];
    let proxy = Proxy::start(200, headers).await;
    let words = first_words(&proxy.client()).await;
    assert_eq!(words, r"a\n\u{1b}[2Jb\u{202e}");
}

#[tokio::test]
async fn page_in_the_name_of_grpc_is_called_no_message() {
    let proxy = Proxy::start(200, &[("content-type", "application/grpc")]).await;
    let words = first_words(&proxy.client()).await;
    assert!(words.contains("no message of gRPC"), "{words}");
}

#[tokio::test]
async fn status_without_a_message_is_named() {
    let headers = &[("content-type", "application/grpc"), ("grpc-status", "14")];
    let proxy = Proxy::start(200, headers).await;
    let words = first_words(&proxy.client()).await;
    assert!(words.contains("Unavailable"), "{words}");
}

/// A client, and a peer that has one connection and answers its first call with `answer`.
async fn first_call<F>(
    answer: impl FnOnce(Connection<TcpStream, Bytes>, SendResponse<Bytes>) -> F + Send + 'static,
) -> (Client, JoinSet<()>)
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut peer = JoinSet::new();
    peer.spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = server::handshake(socket).await.unwrap();
        let (_request, respond) = connection.accept().await.unwrap().unwrap();
        answer(connection, respond).await;
    });
    (Client::connect_lazy(url).unwrap(), peer)
}

#[tokio::test]
async fn stream_that_ends_with_its_headers_was_never_open() {
    let (client, _peer) = first_call(|mut connection, mut respond| async move {
        let head = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "0")
            .body(())
            .unwrap();
        // The headers have the whole answer, so the end of the body is not waited for.
        let _body = respond.send_response(head, false).unwrap();
        connection.accept().await;
    })
    .await;
    let options = PublisherOptions {
        reconnect: Some(tidegate_client::Backoff::default()),
        ..Default::default()
    };
    let publisher = client.publisher(options);
    let state = publisher.progress().changed().await;
    let is_failure = matches!(state, Some(PublisherState::Reconnecting { .. }));
    assert!(is_failure, "{state:?}");
}

#[tokio::test]
async fn publisher_sends_one_event_to_a_proxy_that_holds_its_answer_back() {
    let (client, _peer) = first_call(|mut connection, mut respond| async move {
        let page = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let head = Response::builder().status(504).body(()).unwrap();
            respond.send_response(head, true).unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = connection.accept() => {}
            () = page => {}
        }
    })
    .await;
    let mut publisher = client.publisher(PublisherOptions::default());
    for _ in 0..10 {
        let event = NewEvent {
            topic: "a".into(),
            ..Default::default()
        };
        publisher.send(event).await.unwrap();
    }
    let failure = publisher.finish().await.unwrap_err();
    assert_eq!((failure.unknown.len(), failure.unpublished.len()), (1, 9));
}

#[tokio::test]
async fn heartbeat_that_is_too_short_is_refused_by_the_server_and_no_silence() {
    let headers = &[
        ("content-type", "application/grpc"),
        ("grpc-status", "3"),
        ("grpc-message", "1 s to 1 h"),
    ];
    let proxy = Proxy::start(200, headers).await;
    let options = options().heartbeat_interval(Duration::ZERO);
    let error = proxy.client().subscribe(options).next().await.unwrap();
    assert!(matches!(error, Err(Error::InvalidArgument(_))), "{error:?}");
}
