//! Isolation: a waker or a transport that panics costs nobody else their wake-up, or their end.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, ClientIdPolicy, CloseReason, Filter, Hub, HubConfig, NewEvent, Room,
    StallPolicy, SubscribeOptions, Subscription, SweepRules, Topic, Transport,
};

/// A waker and a transport of which the first call panics, and the others count.
#[derive(Debug, Default)]
struct Calls(AtomicUsize);

impl Calls {
    fn call(&self) {
        assert!(self.0.fetch_add(1, SeqCst) > 0, "the fault of the first");
    }
}

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.call();
    }
}

impl Transport for Calls {
    fn taken(&self) -> u64 {
        0
    }

    fn reset(&self) {
        self.call();
    }
}

fn hub(client_ids: ClientIdPolicy) -> Hub<Bytes> {
    Hub::new(HubConfig {
        client_ids,
        ..HubConfig::new(1)
    })
}

fn options(client: &str) -> SubscribeOptions {
    SubscribeOptions::new(ClientId::new(client).unwrap(), vec![Filter::everything()])
}

/// Subscriptions of these clients, parked with the waker.
fn parked(hub: &Hub<Bytes>, clients: &[&str], calls: &Arc<Calls>) -> Vec<Subscription<Bytes>> {
    let waker = Waker::from(Arc::clone(calls));
    let mut cx = Context::from_waker(&waker);
    let subscribe = |client: &&str| {
        let options = SubscribeOptions {
            transport: Some(Arc::clone(calls) as _),
            ..options(client)
        };
        let mut subscription = hub.subscribe(options, Instant::now()).unwrap();
        let polled = subscription.poll_next(&mut cx, Room::events(1), &mut Batch::default());
        assert_eq!(polled, Poll::Pending);
        subscription
    };
    clients.iter().map(subscribe).collect()
}

/// Runs `act`, which panics with the fault of the first, and returns how many calls there were.
fn calls_of(calls: &Calls, act: impl FnOnce()) -> usize {
    let before = calls.0.load(SeqCst);
    let panic = catch_unwind(AssertUnwindSafe(act)).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"the fault of the first"));
    calls.0.load(SeqCst) - before
}

#[test]
fn panicking_waker_keeps_no_other_from_being_woken_by_a_close() {
    let (hub, calls) = (hub(ClientIdPolicy::Takeover), Arc::default());
    let _parked = parked(&hub, &["1", "2", "3"], &calls);
    let woken = calls_of(&calls, || hub.close(CloseReason::ShuttingDown));
    assert_eq!(woken, 3);
}

#[test]
fn panicking_waker_keeps_no_other_from_being_woken_by_a_disconnect() {
    let (hub, calls) = (hub(ClientIdPolicy::Several), Arc::default());
    let _parked = parked(&hub, &["1", "1", "1"], &calls);
    let client = ClientId::new("1").unwrap();
    let woken = calls_of(&calls, || _ = hub.disconnect(&client));
    assert_eq!(woken, 3);
}

#[test]
fn panicking_waker_of_a_takeover_leaves_the_client_id_free() {
    let (hub, calls) = (hub(ClientIdPolicy::Takeover), Arc::default());
    let old = parked(&hub, &["1"], &calls);
    let woken = calls_of(&calls, || {
        drop(hub.subscribe(options("1"), Instant::now()));
    });
    assert_eq!(woken, 1);
    assert_eq!(old[0].close_reason(), Some(CloseReason::TakenOver));
    assert_eq!(hub.stats().clients, 0);
    drop(old);
    assert!(hub.subscribe(options("1"), Instant::now()).is_ok());
}

/// Each of them has an event to take, and is woken for it before.
#[test]
fn panicking_transport_keeps_no_other_from_being_reset_by_a_sweep() {
    let (hub, calls) = (hub(ClientIdPolicy::Takeover), Arc::default());
    let now = Instant::now();
    let mut parked = parked(&hub, &["1", "2", "3"], &calls);
    let waker = Waker::noop();
    for subscription in &mut parked {
        // The one waker of each is another's, which does nothing.
        let _ = subscription.poll_next(
            &mut Context::from_waker(waker),
            Room::events(1),
            &mut Batch::default(),
        );
    }
    let event = NewEvent::new(Topic::new("a").unwrap(), Bytes::new());
    hub.publish([event], now).unwrap();
    let rules = SweepRules {
        stall_timeout: Some(Duration::ZERO),
        on_stall: StallPolicy::Close,
        reset_grace: Duration::ZERO,
    };
    assert_eq!(hub.sweep(&rules, now).closed, 3);
    let reset = calls_of(&calls, || _ = hub.sweep(&rules, now));
    assert_eq!(reset, 3);
}

/// A commit is noted before anybody is woken, so that a publisher is counted out once. Were it twice, the next
/// would not be counted in, and who subscribes while that one searches would miss the batch.
#[test]
fn panicking_waker_lets_no_later_subscription_miss_a_batch() {
    let (hub, calls) = (hub(ClientIdPolicy::Takeover), Arc::default());
    let _parked = parked(&hub, &["1"], &calls);
    let now = Instant::now();
    let event = |topic: &str| NewEvent::new(Topic::new(topic).unwrap(), Bytes::new());
    calls_of(&calls, || _ = hub.publish([event("a")], now));

    // More than one step searches for.
    let mut publishing = hub.begin_publish((0..20_000).map(|i| event(&format!("b.{i}"))));
    assert_eq!(publishing.step(now), Ok(None));
    let options = SubscribeOptions::new(
        ClientId::new("2").unwrap(),
        vec![Filter::new("b.*").unwrap()],
    );
    let subscription = hub.subscribe(options, now).unwrap();
    while publishing.step(now).unwrap().is_none() {}
    assert_eq!(subscription.backlog(), 20_000);
}

/// Even where the panic comes between its parts.
#[test]
fn panicking_waker_leaves_no_batch_in_halves() {
    let (hub, calls) = (hub(ClientIdPolicy::Takeover), Arc::default());
    let _parked = parked(&hub, &["1"], &calls);
    let event = NewEvent::new(Topic::new("a").unwrap(), Bytes::new());
    let batch = vec![event; 150_000];
    calls_of(&calls, || _ = hub.publish(batch, Instant::now()));
    assert_eq!(hub.position().sequence, 150_000);
    let sequenced = (150_001..=160_000).map(|sequence| {
        let event = NewEvent::new(Topic::new("a").unwrap(), Bytes::new());
        (sequence, event)
    });
    hub.append(sequenced, Instant::now()).unwrap();
}

/// Its memory is needed, so its transport is told to give up. That panics; its task is woken all the same.
#[test]
fn panicking_transport_keeps_no_task_from_being_woken_for_its_memory() {
    let hub = Hub::new(HubConfig {
        memory_budget: 2_400,
        ..HubConfig::new(1)
    });
    let now = Instant::now();
    let (transport, waker) = (
        Arc::<Calls>::default(),
        Arc::new(Calls(AtomicUsize::new(1))),
    );
    let mut first = hub
        .subscribe(
            SubscribeOptions {
                transport: Some(Arc::clone(&transport) as _),
                ..options("1")
            },
            now,
        )
        .unwrap();
    let mut second = hub.subscribe(options("2"), now).unwrap();
    let large = || NewEvent::new(Topic::new("a").unwrap(), Bytes::from(vec![0; 400]));
    let mut batch = Batch::default();
    let noop = &mut Context::from_waker(Waker::noop());
    hub.publish([large()], now).unwrap();
    assert!(
        first
            .poll_next(noop, Room::events(1), &mut batch)
            .is_ready()
    );
    let _sending = first.send(Arc::clone(&batch.events[0]));
    assert!(
        second
            .poll_next(noop, Room::events(1), &mut batch)
            .is_ready()
    );
    hub.publish([large()], now).unwrap();
    assert!(
        second
            .poll_next(noop, Room::events(1), &mut batch)
            .is_ready()
    );
    assert!(
        first
            .poll_next(noop, Room::events(1), &mut Batch::default())
            .is_ready()
    );
    let parked = Waker::from(Arc::clone(&waker));
    let cx = &mut Context::from_waker(&parked);
    assert!(
        first
            .poll_next(cx, Room::events(1), &mut Batch::default())
            .is_pending()
    );

    let resets = calls_of(&transport, || _ = second.send(Arc::clone(&batch.events[0])));
    assert_eq!((resets, waker.0.load(SeqCst)), (1, 2));
}
