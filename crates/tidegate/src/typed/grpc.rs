//! The handler of a method that streams shared values. The attribute [`encode_once`](crate::encode_once) puts
//! it in place of tonic's.
//!
//! tonic reads the request, calls the method and makes the response. If the method returned a [`Subscription`],
//! with nothing around it, the subscription then becomes the body itself: it knows all events that are ready,
//! where a stream yields one at a time, and its chunks are shared. tonic encodes any other stream, and one that
//! may be compressed or whose messages are limited in size.

use std::{any::Any, future::Future};

use futures_util::{
    future::{BoxFuture, Either},
    stream::{Empty, empty},
};
use http::{Request, Response};
use http_body::Body;
use tidegate_http2::StreamHandle;
use tokio::sync::oneshot;
use tonic::{
    Status, Streaming,
    codec::EnabledCompressionEncodings,
    server::{ClientStreamingService, ServerStreamingService, StreamingService, UnaryService},
};
use tonic_prost::ProstCodec;

use super::{
    body::{Messages, SubscriptionBody},
    shared::Shared,
    subscription::Subscription,
    value::Value,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Handler like `tonic::server::Grpc`, for methods whose responses are shared values.
#[derive(Debug)]
pub struct Grpc<C> {
    tonic: tonic::server::Grpc<C>,
    /// Whether messages go as they are: not compressed, and with no limit on their size.
    is_plain: bool,
}

/// A method whose subscription is attached to the stream of its call, and taken out of its response where the response can be
/// given another body.
struct Interceptor<M, T: Value> {
    method: M,
    intercepted: Option<oneshot::Sender<Intercepted<T>>>,
}

/// A subscription, and the stream of the call that it answers.
type Intercepted<T> = (Subscription<T>, Option<StreamHandle>);

// ===== impl Grpc =====

impl<T, D> Grpc<ProstCodec<Shared<T>, D>>
where
    T: Value + Default,
    D: prost::Message + Default + 'static,
{
    /// Makes a handler whose messages have this codec.
    #[must_use]
    pub fn new(codec: ProstCodec<Shared<T>, D>) -> Self {
        Self {
            tonic: tonic::server::Grpc::new(codec),
            is_plain: true,
        }
    }

    /// Like tonic's.
    #[must_use]
    pub fn apply_compression_config(
        self,
        accept: EnabledCompressionEncodings,
        send: EnabledCompressionEncodings,
    ) -> Self {
        Self {
            tonic: self.tonic.apply_compression_config(accept, send),
            is_plain: self.is_plain && send.is_empty(),
        }
    }

    /// Like tonic's.
    #[must_use]
    pub fn apply_max_message_size_config(
        self,
        decoding: Option<usize>,
        encoding: Option<usize>,
    ) -> Self {
        Self {
            tonic: self.tonic.apply_max_message_size_config(decoding, encoding),
            is_plain: self.is_plain && encoding.is_none(),
        }
    }

    /// Like tonic's.
    pub async fn unary<M, B>(
        &mut self,
        method: M,
        request: Request<B>,
    ) -> Response<tonic::body::Body>
    where
        M: UnaryService<D, Response = Shared<T>>,
        B: Body<Error: Into<BoxError> + Send> + Send + 'static,
    {
        self.tonic.unary(method, request).await
    }

    /// Like tonic's.
    pub async fn client_streaming<M, B>(
        &mut self,
        method: M,
        request: Request<B>,
    ) -> Response<tonic::body::Body>
    where
        M: ClientStreamingService<D, Response = Shared<T>>,
        B: Body<Error: Into<BoxError> + Send> + Send + 'static,
    {
        self.tonic.client_streaming(method, request).await
    }

    /// Like tonic's, but sends a subscription itself.
    pub async fn server_streaming<M, B>(
        &mut self,
        method: M,
        request: Request<B>,
    ) -> Response<tonic::body::Body>
    where
        M: ServerStreamingService<D, Response = Shared<T>>,
        M::ResponseStream: Send + 'static,
        M::Future: Send + 'static,
        B: Body<Error: Into<BoxError> + Send> + Send + 'static,
    {
        let (method, intercepted) = Interceptor::new(method, self.is_plain);
        let response = self.tonic.server_streaming(method, request).await;
        with_subscription(response, intercepted)
    }

    /// Like tonic's, but sends a subscription itself.
    pub async fn streaming<M, B>(
        &mut self,
        method: M,
        request: Request<B>,
    ) -> Response<tonic::body::Body>
    where
        M: StreamingService<D, Response = Shared<T>> + Send,
        M::ResponseStream: Send + 'static,
        M::Future: Send + 'static,
        B: Body<Error: Into<BoxError> + Send> + Send + 'static,
    {
        let (method, intercepted) = Interceptor::new(method, self.is_plain);
        let response = self.tonic.streaming(method, request).await;
        with_subscription(response, intercepted)
    }
}

/// Gives the response the subscription as its body, if one was intercepted.
fn with_subscription<T: Value>(
    response: Response<tonic::body::Body>,
    mut intercepted: oneshot::Receiver<Intercepted<T>>,
) -> Response<tonic::body::Body> {
    let Ok((subscription, stream)) = intercepted.try_recv() else {
        return response;
    };
    response.map(|_| {
        let messages = Messages::new(subscription, stream);
        tonic::body::Body::new(SubscriptionBody::new(messages))
    })
}

// ===== impl Interceptor =====

/// The stream of a method, or an empty one where the subscription was taken out.
type StreamOrEmpty<S, T> = Either<S, Empty<Result<Shared<T>, Status>>>;

impl<M, T: Value> Interceptor<M, T> {
    fn new(method: M, takes_out: bool) -> (Self, oneshot::Receiver<Intercepted<T>>) {
        let (intercepted, receiver) = oneshot::channel();
        let intercepted = takes_out.then_some(intercepted);
        (
            Self {
                method,
                intercepted,
            },
            receiver,
        )
    }

    /// Waits for the method's response. If its stream is a subscription, attaches it to the stream of the call, which the
    /// request has left here, and keeps it aside.
    fn intercept<S, F>(
        &mut self,
        call: Option<StreamHandle>,
        response: F,
    ) -> BoxFuture<'static, Result<tonic::Response<StreamOrEmpty<S, T>>, Status>>
    where
        S: Send + 'static,
        F: Future<Output = Result<tonic::Response<S>, Status>> + Send + 'static,
    {
        let intercepted = self.intercepted.take();
        Box::pin(async move {
            let response = response.await?;
            Ok(response.map(|stream| {
                // The type of the stream is the method's own choice, so only at run time can one see whether it is a
                // subscription.
                let mut stream = Some(stream);
                let subscription =
                    (&mut stream as &mut dyn Any).downcast_mut::<Option<Subscription<T>>>();
                if let Some(subscription) = subscription {
                    if let (Some(subscription), Some(call)) = (&subscription, &call) {
                        subscription.attach_to(call);
                    }
                    if let Some(intercepted) = intercepted
                        && let Some(subscription) = subscription.take()
                    {
                        // The other end is gone with the call.
                        let _ = intercepted.send((subscription, call));
                    }
                }
                stream.map_or_else(|| Either::Right(empty()), Either::Left)
            }))
        })
    }
}

impl<M, D, T> ServerStreamingService<D> for Interceptor<M, T>
where
    T: Value,
    M: ServerStreamingService<D, Response = Shared<T>>,
    M::ResponseStream: Send + 'static,
    M::Future: Send + 'static,
{
    type Response = Shared<T>;
    type ResponseStream = StreamOrEmpty<M::ResponseStream, T>;
    type Future = BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<D>) -> Self::Future {
        let call = request.extensions().get().cloned();
        let response = self.method.call(request);
        self.intercept(call, response)
    }
}

impl<M, D, T> StreamingService<D> for Interceptor<M, T>
where
    T: Value,
    M: StreamingService<D, Response = Shared<T>>,
    M::ResponseStream: Send + 'static,
    M::Future: Send + 'static,
{
    type Response = Shared<T>;
    type ResponseStream = StreamOrEmpty<M::ResponseStream, T>;
    type Future = BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<D>>) -> Self::Future {
        let call = request.extensions().get().cloned();
        let response = self.method.call(request);
        self.intercept(call, response)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{Ready, ready},
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{Arc, Mutex},
        time::Duration,
    };

    use bytes::{Bytes, BytesMut};
    use futures_core::Stream;
    use futures_util::StreamExt as _;
    use http_body_util::{BodyExt as _, Full};
    use proptest::prelude::*;
    use tidegate_core::{Limits, StallPolicy, SweepRules};
    use tidegate_proto::v1::{Event, Position};

    use super::{
        super::{hub::Hub, snapshot::Snapshot},
        *,
    };
    use crate::framing::{CHUNK_BYTES, PREFIX};

    /// A method that answers with the stream that it was given.
    struct Watch<S>(Option<S>);

    impl<S> ServerStreamingService<Position> for Watch<S>
    where
        S: Stream<Item = Result<Shared<Event>, Status>>,
    {
        type Response = Shared<Event>;
        type ResponseStream = S;
        type Future = Ready<Result<tonic::Response<S>, Status>>;

        fn call(&mut self, _: tonic::Request<Position>) -> Self::Future {
            let stream = self.0.take().expect("called once");
            let mut response = tonic::Response::new(stream);
            let metadata = response.metadata_mut();
            metadata.insert("served-by", "the method".parse().unwrap());
            ready(Ok(response))
        }
    }

    /// A hub whose events tell their sequences in a field.
    fn hub() -> Hub<Event> {
        Hub::builder().sequence_field(1).build()
    }

    fn open(hub: &Hub<Event>) -> Subscription<Event> {
        hub.subscribe().ignore_losses().open().unwrap()
    }

    fn event(size: usize) -> Event {
        Event {
            payload: vec![7; size].into(),
            ..Event::default()
        }
    }

    fn grpc() -> Grpc<ProstCodec<Shared<Event>, Position>> {
        Grpc::new(ProstCodec::default())
    }

    /// The body that a call is answered with, whose method answers with `stream`.
    async fn body_of<S>(
        mut grpc: Grpc<ProstCodec<Shared<Event>, Position>>,
        stream: S,
    ) -> tonic::body::Body
    where
        S: Stream<Item = Result<Shared<Event>, Status>> + Send + 'static,
    {
        let request = Request::new(Full::new(Bytes::from_static(&[0; 5])));
        let response = grpc.server_streaming(Watch(Some(stream)), request).await;
        assert_eq!(response.headers()["served-by"], "the method");
        assert_eq!(response.headers()["content-type"], "application/grpc");
        response.into_body()
    }

    async fn chunk(body: &mut tonic::body::Body) -> Bytes {
        let frame = body.frame().await.unwrap().unwrap();
        frame.into_data().expect("a chunk")
    }

    /// All that a body has until its status, as messages, and the code of the status.
    async fn messages_of(mut body: tonic::body::Body) -> (Vec<Event>, u32) {
        let mut bytes = BytesMut::new();
        let trailers = loop {
            let frame = body.frame().await.unwrap().unwrap();
            match frame.into_data() {
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(frame) => break frame.into_trailers().unwrap(),
            }
        };
        assert!(body.is_end_stream());
        let status = trailers["grpc-status"].to_str().unwrap().parse().unwrap();
        let mut bytes = bytes.freeze();
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(bytes[0], 0, "not compressed");
            let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            let message = bytes.split_to(PREFIX + len).slice(PREFIX..);
            messages.push(prost::Message::decode(message).unwrap());
        }
        (messages, status)
    }

    #[tokio::test]
    async fn subscribers_at_one_position_share_memory() {
        let hub = hub();
        let (one, other) = (open(&hub), open(&hub));
        let mut one = body_of(grpc(), one).await;
        let mut other = body_of(grpc(), other).await;
        hub.publish_all((0..20).map(|_| event(100))).unwrap();
        let (one, other) = (chunk(&mut one).await, chunk(&mut other).await);
        assert_eq!(one.as_ptr(), other.as_ptr());
        assert_eq!(one, other);
    }

    #[tokio::test]
    async fn chunk_fills_one_http2_frame_at_most() {
        let hub = hub();
        let mut body = body_of(grpc(), open(&hub)).await;
        hub.publish_all((0..1_000).map(|_| event(250))).unwrap();
        for _ in 0..10 {
            let chunk = chunk(&mut body).await;
            assert!((CHUNK_BYTES * 9 / 10..=CHUNK_BYTES).contains(&chunk.len()));
        }
    }

    #[tokio::test]
    async fn large_event_is_sent_from_shared_memory() {
        let hub = hub();
        let (mut one, mut other) = (
            body_of(grpc(), open(&hub)).await,
            body_of(grpc(), open(&hub)).await,
        );
        hub.publish(event(3 * CHUNK_BYTES)).unwrap();
        chunk(&mut one).await;
        chunk(&mut other).await;
        for _ in 0..3 {
            let (one, other) = (chunk(&mut one).await, chunk(&mut other).await);
            assert_eq!(one.len(), CHUNK_BYTES);
            assert_eq!(one.as_ptr(), other.as_ptr());
        }
    }

    #[tokio::test]
    async fn tonic_encodes_a_stream_around_a_subscription() {
        let hub = hub();
        let mut body = body_of(grpc(), open(&hub).map(|item| item)).await;
        hub.publish_all((0..1_000).map(|_| event(250))).unwrap();
        assert!(chunk(&mut body).await.len() > PREFIX + 250);
        hub.close();
        let (messages, status) = messages_of(body).await;
        assert!(messages.len() < 1_000);
        assert_eq!(status, tonic::Code::Unavailable as u32);
    }

    #[tokio::test]
    async fn message_size_limit_holds() {
        let hub = hub();
        let grpc = grpc().apply_max_message_size_config(None, Some(100));
        let body = body_of(grpc, open(&hub)).await;
        hub.publish(event(50)).unwrap();
        hub.publish(event(200)).unwrap();
        let (messages, status) = messages_of(body).await;
        assert!(messages.len() <= 1);
        assert_eq!(status, tonic::Code::OutOfRange as u32);
    }

    /// A hub, and a subscription that has taken the first of a million values of its snapshot.
    async fn in_a_long_snapshot() -> (Hub<Event>, Subscription<Event>) {
        let hub = hub();
        let at = hub.position();
        let mut subscription = hub
            .subscribe()
            .snapshot(
                move |_| async move { Ok(Snapshot::new(at, (0..1_000_000).map(|_| event(10)))) },
            )
            .ignore_losses()
            .open()
            .unwrap();
        subscription.next().await.unwrap().unwrap();
        (hub, subscription)
    }

    #[tokio::test]
    async fn close_during_a_snapshot_is_told_before_the_rest_of_it() {
        let (hub, mut subscription) = in_a_long_snapshot().await;
        hub.close();
        let status = subscription.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(subscription.next().await.is_none());
    }

    #[tokio::test]
    async fn close_during_a_snapshot_is_told_in_the_next_chunk() {
        let (hub, subscription) = in_a_long_snapshot().await;
        let mut body = body_of(grpc(), subscription).await;
        chunk(&mut body).await;
        hub.close();
        let (messages, status) = messages_of(body).await;
        assert_eq!(
            (messages.len(), status),
            (0, tonic::Code::Unavailable as u32)
        );
    }

    /// Sweeps that end whoever took nothing since the sweep before, and had something to take.
    fn sweep(hub: &Hub<Event>) -> u64 {
        let rules = SweepRules {
            stall_timeout: Some(Duration::from_nanos(1)),
            on_stall: StallPolicy::Close,
            ..SweepRules::default()
        };
        hub.sweep(&rules).closed
    }

    #[tokio::test]
    async fn client_that_takes_values_of_a_long_snapshot_is_not_stalled() {
        let (hub, mut subscription) = in_a_long_snapshot().await;
        hub.publish(event(1)).unwrap();
        for _ in 0..10 {
            subscription.next().await.unwrap().unwrap();
            assert_eq!(sweep(&hub), 0);
        }
        assert_eq!(sweep(&hub), 1, "it took nothing more");
    }

    #[tokio::test]
    async fn client_that_takes_chunks_of_a_long_snapshot_is_not_stalled() {
        let (hub, subscription) = in_a_long_snapshot().await;
        let mut body = body_of(grpc(), subscription).await;
        hub.publish(event(1)).unwrap();
        for _ in 0..10 {
            chunk(&mut body).await;
            assert_eq!(sweep(&hub), 0);
        }
        assert_eq!(sweep(&hub), 1, "it took nothing more");
    }

    #[tokio::test]
    async fn client_that_takes_pieces_of_a_large_event_is_not_stalled() {
        let hub = hub();
        let mut body = body_of(grpc(), open(&hub)).await;
        hub.publish(event(20 * CHUNK_BYTES)).unwrap();
        hub.publish(event(1)).unwrap();
        for _ in 0..10 {
            chunk(&mut body).await;
            assert_eq!(sweep(&hub), 0);
        }
        assert_eq!(sweep(&hub), 1, "it took nothing more");
    }

    #[tokio::test]
    async fn large_event_counts_as_sent_until_its_last_slice_is_dropped() {
        let hub = hub();
        // Once from the hub as chunks, and once after a message in place of a gap, item by item.
        let limits = Limits {
            max_events: 1.try_into().unwrap(),
            ..Limits::default()
        };
        let told = hub.subscribe().limits(limits);
        let told = told.on_loss(|_| Some(Event::default())).open().unwrap();
        let mut bodies = [
            body_of(grpc(), open(&hub)).await,
            body_of(grpc(), told).await,
        ];
        hub.publish(event(1)).unwrap();
        hub.publish(event(2 * CHUNK_BYTES)).unwrap();
        let size = 2 * CHUNK_BYTES as u64;
        let (mut slices, mut sent) = (Vec::new(), Vec::new());
        for body in &mut bodies {
            let mut len = 0;
            while len <= 2 * CHUNK_BYTES {
                let chunk = chunk(body).await;
                assert!(chunk.len() <= CHUNK_BYTES);
                len += chunk.len();
                slices.push(chunk);
            }
            sent.push(hub.stats().sending_bytes);
        }
        drop(bodies);
        sent.push(hub.stats().sending_bytes);
        assert!(sent[0] >= size);
        assert_eq!(sent, [sent[0]; 3], "both send the same event");
        drop(slices);
        assert_eq!(hub.stats().sending_bytes, 0);
    }

    #[test]
    fn panicking_hook_keeps_no_other_from_being_called() {
        let called = Arc::new(Mutex::new(Vec::new()));
        let (one, two) = (Arc::clone(&called), Arc::clone(&called));
        let hub = Hub::<Event>::builder()
            .on_leave(move |_| {
                one.lock().unwrap().push("leave");
                panic!("a fault of the application");
            })
            .on_last_subscriber(move |_| two.lock().unwrap().push("last"))
            .build();
        let subscription = open(&hub);
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(subscription)));
        assert_eq!(*called.lock().unwrap(), ["leave", "last"]);
        let panic = dropped.unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"a fault of the application"));
    }

    #[test]
    fn hook_that_panics_during_a_panic_leaves_the_first_to_go_on() {
        let hub = Hub::<Event>::builder()
            .on_leave(|_| panic!("a fault of the application"))
            .build();
        let subscription = open(&hub);
        let unwound = catch_unwind(AssertUnwindSafe(move || {
            let _held = subscription;
            panic!("the first");
        }));
        assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"the first"));
    }

    #[tokio::test]
    async fn dropped_body_unsubscribes() {
        let hub = hub();
        let body = body_of(grpc(), open(&hub)).await;
        assert_eq!(hub.clients().len(), 1);
        drop(body);
        assert_eq!(hub.clients().len(), 0);
    }

    #[tokio::test]
    async fn ended_subscription_is_not_ok() {
        let hub = hub();
        let mut subscription = open(&hub);
        hub.close();
        assert!(subscription.next().await.unwrap().is_err());
        let (messages, status) = messages_of(body_of(grpc(), subscription).await).await;
        assert_eq!((messages.len(), status), (0, tonic::Code::Internal as u32));
    }

    proptest! {
        /// Gaps, snapshots and what was taken before included: what is received is what was published, with the
        /// sequences, and each loss told where it is.
        #[test]
        fn body_carries_what_was_published(
            sizes in prop::collection::vec(0..40_000_usize, 1..40),
            most in 1..50_u64,
            taken in 0..3_usize,
        ) {
            let limits = Limits { max_events: most.try_into().unwrap(), ..Limits::default() };
            let hub = hub();
            let mut subscription = hub
                .subscribe()
                .limits(limits)
                .on_loss(|gap| Some(Event { topic: gap.count.to_string(), ..Event::default() }))
                .open()
                .unwrap();
            let (events, status) = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap()
                .block_on(async {
                    hub.publish_all(sizes.iter().map(|size| event(*size))).unwrap();
                    let mut before = Vec::new();
                    for _ in 0..taken.min(sizes.len()) {
                        let item = subscription.next().await.unwrap().unwrap();
                        let mut event = Event::clone(&item);
                        event.sequence = item.position().map_or(0, |position| position.sequence);
                        before.push(event);
                        if subscription.backlog() == 0 {
                            break;
                        }
                    }
                    let body = body_of(grpc(), subscription).await;
                    let events = tokio::spawn(messages_of(body));
                    tokio::task::yield_now().await;
                    hub.close();
                    let (events, status) = events.await.unwrap();
                    (before.into_iter().chain(events).collect::<Vec<_>>(), status)
                });
            prop_assert_eq!(status, tonic::Code::Unavailable as u32);
            let mut next = 0;
            for event in events {
                if event.sequence == 0 {
                    next += event.topic.parse::<usize>().unwrap();
                    continue;
                }
                prop_assert_eq!(event.sequence as usize, next + 1);
                prop_assert_eq!(event.payload.len(), sizes[next]);
                next += 1;
            }
            prop_assert_eq!(next, sizes.len());
        }
    }
}
