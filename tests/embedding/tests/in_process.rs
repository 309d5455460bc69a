//! Subscribers in the process itself.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_core::Stream as _;
use prost::Message as _;
use tidegate::{
    GapReason, Limits, Overflow, Position,
    typed::{Hub, LeaveReason, Publication, Shared},
};
use tidegate_embedding_tests::{missed, on, proto::ServerEvent, text};
use tokio_stream::StreamExt as _;

#[tokio::test]
async fn a_value_is_shared_and_not_cloned() {
    let hub = Hub::<ServerEvent>::new();
    let mut one = hub.subscribe().ignore_losses().open().unwrap();
    let mut other = hub.subscribe().topic("a").ignore_losses().open().unwrap();
    let published = hub
        .publish(Publication::new(text("1")).topic("a").key("k"))
        .unwrap();
    let one: Shared<ServerEvent> = one.next().await.unwrap().unwrap();
    let other = other.next().await.unwrap().unwrap();
    assert!(std::ptr::eq(&*one, &*other), "the same value");
    assert_eq!(one.encoding().as_ptr(), other.encoding().as_ptr());
    assert_eq!(one.topic().unwrap().as_str(), "a");
    assert_eq!(one.key(), Some("k"));
    let position = Position {
        epoch: published.epoch,
        sequence: published.last_sequence,
    };
    assert_eq!(one.position(), Some(position));
}

#[tokio::test]
async fn waiting_for_the_next_value_can_be_cancelled() {
    let hub = Hub::<ServerEvent>::new();
    let mut subscription = hub.subscribe().ignore_losses().open().unwrap();
    for number in 1..=100 {
        let mut cx = Context::from_waker(Waker::noop());
        // A future that was polled, and is dropped while it waits.
        assert!(pin!(subscription.next()).poll(&mut cx).is_pending());
        hub.publish_all([text(number.to_string()), text("and another")])
            .unwrap();
        // A future that is dropped before it is polled.
        drop(subscription.next());
        assert_eq!(
            subscription.next().await.unwrap().unwrap().text,
            number.to_string()
        );
        assert_eq!(
            subscription.next().await.unwrap().unwrap().text,
            "and another"
        );
    }
}

#[test]
fn poll_is_pending_once_per_frame_and_wakes_itself() {
    #[derive(Default)]
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }
    let hub = Hub::<ServerEvent>::new();
    let mut subscription = pin!(hub.subscribe().ignore_losses().open().unwrap());
    hub.publish_all(vec![text("x".repeat(250)); 200]).unwrap();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    let mut chunks = Vec::new();
    let mut chunk = 0;
    loop {
        match subscription.as_mut().poll_next(&mut cx) {
            Poll::Ready(item) => chunk += 5 + item.unwrap().unwrap().encoded_len(),
            Poll::Pending => {
                chunks.push(chunk);
                if woken.0.load(Relaxed) < chunks.len() {
                    break;
                }
                chunk = 0;
            }
        }
    }
    let last = chunks.pop().unwrap();
    assert!(chunks.iter().all(|chunk| (16_000..=16_384).contains(chunk)));
    assert_eq!(chunks.len(), 3);
    assert!(last < 8_192, "not worth it, so nobody is woken for nothing");
}

#[tokio::test]
async fn a_gap_that_needs_no_message_is_left_out() {
    let hub = Hub::<ServerEvent>::new();
    let limits = Limits {
        overflow: Overflow::Conflate,
        ..Limits::default()
    };
    let subscribe = hub.subscribe().limits(limits);
    let mut prices = subscribe
        .on_loss(|gap| (gap.reason != GapReason::Conflated).then(|| missed(gap.count)))
        .open()
        .unwrap();
    for number in 1..=3 {
        hub.publish(on("prices.x", &number.to_string())).unwrap();
    }
    assert_eq!(prices.next().await.unwrap().unwrap().text, "3");
    assert_eq!(hub.clients()[0].conflated, 2);
}

#[tokio::test]
async fn a_subscription_that_has_ended_yields_nothing_more() {
    let hub = Hub::<ServerEvent>::new();
    let mut subscription = hub.subscribe().ignore_losses().open().unwrap();
    let closed = subscription.closed();
    hub.close();
    assert!(subscription.next().await.unwrap().is_err());
    assert!(subscription.next().await.is_none());
    let mut cx = Context::from_waker(Waker::noop());
    let polled = pin!(&mut subscription).poll_next(&mut cx);
    assert!(matches!(polled, Poll::Ready(None)));
    drop(subscription);
    let reason = closed.await.reason;
    assert_eq!(
        reason,
        LeaveReason::Ended(tidegate::CloseReason::ShuttingDown)
    );
}

#[tokio::test]
async fn names_that_break_the_rules_are_refused() {
    let hub = Hub::<ServerEvent>::new();
    let refused = hub.subscribe().topic("a..b").ignore_losses().open();
    let status = tonic::Status::from(refused.unwrap_err());
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(hub.publish(on("no spaces", "1")).is_err());
    assert!(hub.send("a.b", text("1")).is_err());
    assert_eq!(hub.position().sequence, 0);
}

#[tokio::test]
async fn a_shared_value_is_a_message_like_the_value() {
    let hub = Hub::builder().sequence_field(3).epoch_field(4).build();
    let mut subscription = hub.subscribe().ignore_losses().open().unwrap();
    hub.publish(text("1")).unwrap();
    let published = subscription.next().await.unwrap().unwrap();
    let position = published.position().unwrap();
    let encoded = published.encode_to_vec();
    assert_eq!(encoded.len(), published.encoded_len());
    let received = ServerEvent::decode(&*encoded).unwrap();
    let expected = ServerEvent {
        sequence: position.sequence,
        epoch: position.epoch,
        ..text("1")
    };
    assert_eq!(received, expected);

    // A shared value can be a client's message too, and a merge into it leaves the other copies alone.
    let mut merged = published.clone();
    merged.merge(&*text("2").encode_to_vec()).unwrap();
    assert_eq!(merged.text, "2");
    assert_eq!(ServerEvent::decode(&*merged.encode_to_vec()), Ok(text("2")));
    assert_eq!(published.text, "1");
    let decoded = Shared::<ServerEvent>::decode(&*encoded).unwrap();
    assert_eq!(decoded, expected);
}
