//! Subscriptions whose consumer can take nothing: they are woken for their end alone, and lose nothing by it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, CloseReason, Filter, Hub, HubConfig, NewEvent, Room, SubscribeOptions,
    Subscription, Topic,
};

/// Counts how often it was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

struct Setup {
    hub: Hub<Bytes>,
    subscription: Subscription<Bytes>,
    wakes: Arc<Wakes>,
    waker: Waker,
}

impl Setup {
    fn new() -> Self {
        let hub = Hub::new(HubConfig::new(1));
        let client = ClientId::new("c").unwrap();
        let options = SubscribeOptions::new(client, vec![Filter::everything()]);
        let subscription = hub.subscribe(options, Instant::now()).unwrap();
        let wakes = Arc::<Wakes>::default();
        Self {
            hub,
            subscription,
            waker: Arc::clone(&wakes).into(),
            wakes,
        }
    }

    fn publish(&self) {
        let event = NewEvent::new(Topic::new("a").unwrap(), Bytes::new());
        self.hub.publish([event], Instant::now()).unwrap();
    }

    fn poll_end(&mut self) -> Poll<CloseReason> {
        let mut cx = Context::from_waker(&self.waker);
        self.subscription.poll_end(&mut cx)
    }

    /// The number of events of one poll, or the end.
    fn poll_next(&mut self) -> Poll<Result<usize, CloseReason>> {
        let mut batch = Batch::default();
        let mut cx = Context::from_waker(&self.waker);
        let polled = self
            .subscription
            .poll_next(&mut cx, Room::events(10), &mut batch);
        polled.map_ok(|()| batch.events.len())
    }

    fn wakes(&self) -> usize {
        self.wakes.0.load(SeqCst)
    }
}

#[test]
fn events_wake_nobody_who_waits_for_the_end() {
    let mut it = Setup::new();
    assert_eq!(it.poll_end(), Poll::Pending);
    it.publish();
    it.publish();
    assert_eq!(it.wakes(), 0);
    assert_eq!(it.poll_next(), Poll::Ready(Ok(2)));
    // From here on events wake it again.
    assert_eq!(it.poll_next(), Poll::Pending);
    it.publish();
    assert_eq!(it.wakes(), 1);
}

#[test]
fn who_waited_for_events_before_is_woken_for_the_end() {
    let mut it = Setup::new();
    assert_eq!(it.poll_next(), Poll::Pending);
    assert_eq!(it.poll_end(), Poll::Pending);
    it.publish();
    assert_eq!(it.wakes(), 0);
    it.hub.close(CloseReason::ShuttingDown);
    assert_eq!(it.wakes(), 1);
    assert_eq!(it.poll_end(), Poll::Ready(CloseReason::ShuttingDown));
    assert_eq!(it.poll_next(), Poll::Ready(Err(CloseReason::ShuttingDown)));
    assert_eq!(it.poll_end(), Poll::Ready(CloseReason::ShuttingDown));
}

#[test]
fn end_that_came_before_is_seen_at_once() {
    let mut it = Setup::new();
    it.publish();
    it.hub.close(CloseReason::ShuttingDown);
    assert_eq!(it.poll_end(), Poll::Ready(CloseReason::ShuttingDown));
    assert_eq!(it.wakes(), 0);
    assert_eq!(
        it.subscription.position().unwrap().sequence,
        0,
        "what it did not take is ahead of it"
    );
}
