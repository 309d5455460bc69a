//! Honest endings: a panic in the task of a stream never looks like OK to its client, and its neighbors
//! on the connection live.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use http_body::{Body, Frame};
use hyper::{body::Incoming, rt::Executor, server::conn::http2};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tidegate::{EventService, Hub, HubConfig, ResponseBody, ServiceConfig, proto::PublishResponse};
use tidegate_checker::Rules;
use tokio::net::TcpListener;
use tonic::transport::Endpoint;
use tower::{Service as _, service_fn};

use crate::common::*;

/// A body that panics at the poll after the fuse was lit.
struct Fused {
    body: ResponseBody,
    is_lit: Arc<AtomicBool>,
}

impl Body for Fused {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        assert!(!self.is_lit.swap(false, Relaxed), "on purpose");
        polled
    }
}

#[derive(Clone)]
struct Streams;

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(async move {
            stream.await;
        });
    }
}

#[tokio::test]
async fn a_panic_in_a_stream_is_not_ok_and_spares_its_neighbors() {
    let hub = Hub::new(HubConfig::new(1));
    let service = EventService::new(hub.clone(), ServiceConfig::default());
    let is_lit = Arc::new(AtomicBool::new(false));
    let fuse = Arc::clone(&is_lit);
    let fused = service_fn(move |request: http::Request<Incoming>| {
        let (response, is_lit) = (service.clone().call(request), Arc::clone(&fuse));
        async move { Ok::<_, Infallible>(response.await.unwrap().map(|body| Fused { body, is_lit })) }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut builder = http2::Builder::new(Streams);
        builder.timer(TokioTimer::new());
        builder
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(fused))
            .await
    });

    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let journal = Journal::new(hub.clone(), Rules::default());
    let mut client = Client::new(endpoint.connect().await.unwrap(), journal.clone());
    let mut victim = subscribe(&mut client, filters(&["a"])).await;
    victim.is_disturbed = true;
    let mut neighbor = subscribe(&mut client, filters(&["b"])).await;
    is_lit.store(true, Relaxed);
    let publish = |topic| {
        let event = event(topic, "x");
        let encoded = tidegate::encode(event.clone()).unwrap();
        let published = hub.publish([encoded], std::time::Instant::now()).unwrap();
        let answer = PublishResponse {
            epoch: published.epoch,
            first_sequence: published.first_sequence,
            last_sequence: published.last_sequence,
            count: 1,
            ..Default::default()
        };
        journal.note(&[event], Some(&answer));
    };
    publish("a");
    let status = victim.next().await.unwrap_err();
    assert_ne!(status.code(), tonic::Code::Ok);
    publish("b");
    neighbor.events(1).await;
    assert_eq!(hub.stats().subscriptions, 1, "what the victim held is free");
}
