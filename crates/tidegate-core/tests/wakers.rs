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
