//! Answers that come from no server of gRPC: the HTTP status decides, for every call.

mod support;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::server;
use http::Response;
use support::options;
use tidegate_client::{Client, Code, Error, NewEvent, PublisherOptions, Update};
use tokio::{io::AsyncWriteExt as _, net::TcpListener, task::JoinSet};

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
