//! Events on their way: how much of the memory budget they may hold, and how a slow peer is told from a stalled
//! one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, CloseReason, Filter, HistoryLimits, Hub, HubConfig, NewEvent, Room, Sending,
    StallPolicy, Start, SubscribeOptions, Subscription, SweepRules, Swept, Topic, Transport,
};

const EVENT: usize = 100_000;
const BUDGET: u64 = 1_000_000;

/// A transport that a test moves by hand.
#[derive(Debug, Default)]
struct Peer {
    taken: AtomicU64,
    is_reset: AtomicBool,
}

impl Transport for Peer {
    fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    fn reset(&self) {
        self.is_reset.store(true, Relaxed);
    }
}

fn hub() -> Hub<Bytes> {
    Hub::new(HubConfig {
        memory_budget: BUDGET,
        ..HubConfig::new(1)
    })
}

fn publish(hub: &Hub<Bytes>, topic: &str, size: usize) {
    let event = NewEvent::new(Topic::new(topic).unwrap(), Bytes::from(vec![0; size]));
    hub.publish([event], Instant::now()).unwrap();
}

/// A subscription to a topic of its own.
fn subscribe(hub: &Hub<Bytes>, topic: &str, start: Start) -> (Subscription<Bytes>, Arc<Peer>) {
    let peer = Arc::new(Peer::default());
    let client = ClientId::new(&format!("of-{topic}")).unwrap();
    let options = SubscribeOptions {
        transport: Some(Arc::clone(&peer) as _),
        start,
        ..SubscribeOptions::new(client, vec![Filter::new(topic).unwrap()])
    };
    (hub.subscribe(options, Instant::now()).unwrap(), peer)
}

fn poll(subscription: &mut Subscription<Bytes>, batch: &mut Batch<Bytes>) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    match subscription.poll_next(&mut cx, Room::events(100), batch) {
        Poll::Ready(polled) => polled.is_ok(),
        Poll::Pending => false,
    }
}

/// Takes the one event that is there, and begins to send it.
fn send(subscription: &mut Subscription<Bytes>) -> Sending<Bytes> {
    let mut batch = Batch::default();
    assert!(poll(subscription, &mut batch));
    subscription.send(batch.events.pop().unwrap())
}

#[test]
fn the_oldest_sendings_are_ended_when_they_need_more_than_half_of_the_budget() {
    let hub = hub();
    let mut streams: Vec<_> = (0..10)
        .map(|i| subscribe(&hub, &format!("t{i}"), Start::Live))
        .collect();
    let mut sendings = Vec::new();
    for (i, (subscription, _)) in streams.iter_mut().enumerate() {
        publish(&hub, &format!("t{i}"), EVENT);
        sendings.push(send(subscription));
    }
    // With what an event takes besides, four of them fit into half of the budget.
    for (i, (subscription, peer)) in streams.iter().enumerate() {
        let is_ended = i < 6;
        assert_eq!(peer.is_reset.load(Relaxed), is_ended, "{i}");
        let reason = is_ended.then_some(CloseReason::Stalled);
        assert_eq!(subscription.close_reason(), reason, "{i}");
    }
    let stats = hub.stats();
    assert_eq!((stats.ended_stalled, stats.reset), (6, 6));
    // The transports of the six give up.
    sendings.drain(..6);
    assert!(hub.stats().sending_bytes <= BUDGET / 2);
    // A sweep does not tell them again.
    let rules = SweepRules {
        reset_grace: Duration::ZERO,
        ..SweepRules::default()
    };
    assert_eq!(hub.sweep(&rules, Instant::now()).reset, 0);
    drop(sendings);
    assert_eq!(hub.stats().sending_bytes, 0);
}

#[test]
fn an_event_that_all_send_ends_nobody() {
    let hub = hub();
    let mut streams: Vec<_> = (0..100)
        .map(|i| {
            let client = ClientId::new(&format!("c{i}")).unwrap();
            let options = SubscribeOptions::new(client, vec![Filter::everything()]);
            hub.subscribe(options, Instant::now()).unwrap()
        })
        .collect();
    publish(&hub, "a", EVENT);
    let _sendings: Vec<_> = streams.iter_mut().map(send).collect();
    let stats = hub.stats();
    assert_eq!(stats.ended_stalled, 0);
    assert!((EVENT as u64..2 * EVENT as u64).contains(&stats.sending_bytes));
}

/// Transports that do not give up hold more than the whole budget, and history stays as it is but for its own half.
#[test]
fn sendings_evict_no_history_beyond_their_half() {
    let hub = hub();
    let mut sendings = Vec::new();
    for i in 0..20 {
        let (mut subscription, _) = subscribe(&hub, &format!("t{i}"), Start::Live);
        publish(&hub, &format!("t{i}"), EVENT);
        sendings.push(send(&mut subscription));
    }
    let nothing = HistoryLimits {
        max_events: 0,
        ..HistoryLimits::default()
    };
    hub.set_history_limits(nothing, Instant::now());
    hub.set_history_limits(HistoryLimits::default(), Instant::now());
    for _ in 0..100 {
        publish(&hub, "history", EVENT / 100);
    }
    let stats = hub.stats();
    assert!(stats.sending_bytes > BUDGET);
    assert_eq!(stats.history_events, 100);
    for _ in 0..2_000 {
        publish(&hub, "history", EVENT / 100);
    }
    let stats = hub.stats();
    let own = stats.retained_bytes - stats.sending_bytes;
    assert!((BUDGET * 4 / 10..=BUDGET / 2).contains(&own), "{own}");
}

/// Ends whoever took nothing since the sweep before, and had something to take.
fn sweep(hub: &Hub<Bytes>, now: &mut Instant) -> Swept {
    *now += Duration::from_secs(10);
    let rules = SweepRules {
        stall_timeout: Some(Duration::from_secs(5)),
        on_stall: StallPolicy::Close,
        reset_grace: Duration::from_secs(5),
    };
    hub.sweep(&rules, *now)
}

#[test]
fn peer_that_takes_bytes_of_a_large_event_is_not_stalled() {
    let hub = hub();
    let mut now = Instant::now();
    let (mut subscription, peer) = subscribe(&hub, "a", Start::Live);
    publish(&hub, "a", EVENT);
    let sending = send(&mut subscription);
    sweep(&hub, &mut now);
    for _ in 0..5 {
        peer.taken.fetch_add(1, Relaxed);
        assert_eq!(sweep(&hub, &mut now), Swept::default());
    }
    // Nothing else waits for it, and yet it has not taken all that it was sent.
    assert_eq!(sweep(&hub, &mut now).closed, 1);
    // It takes again: the grace counts from the last byte.
    for _ in 0..5 {
        peer.taken.fetch_add(1, Relaxed);
        assert_eq!(sweep(&hub, &mut now), Swept::default());
    }
    assert_eq!(sweep(&hub, &mut now).reset, 1);
    assert!(peer.is_reset.load(Relaxed));
    drop(sending);
}

#[test]
fn peer_that_has_taken_its_event_is_not_stalled() {
    let hub = hub();
    let mut now = Instant::now();
    let (mut subscription, _peer) = subscribe(&hub, "a", Start::Live);
    publish(&hub, "a", EVENT);
    drop(send(&mut subscription));
    for _ in 0..5 {
        assert_eq!(sweep(&hub, &mut now), Swept::default());
    }
}

/// History is long, nothing in it matches, and so a replay hands out nothing for many polls.
#[test]
fn replay_that_finds_nothing_is_not_stalled() {
    let hub = Hub::new(HubConfig::new(1));
    let mut now = Instant::now();
    for _ in 0..9_000 {
        publish(&hub, "other", 0);
    }
    let position = tidegate_core::Position {
        epoch: 1,
        sequence: 0,
    };
    let (mut subscription, _peer) = subscribe(&hub, "a", Start::After(position));
    let mut batch = Batch::default();
    let mut polls = 0;
    sweep(&hub, &mut now);
    while !poll(&mut subscription, &mut batch) {
        assert_eq!(sweep(&hub, &mut now), Swept::default());
        polls += 1;
    }
    assert!(
        polls > 0,
        "it must take more than one poll to prove anything"
    );
    assert!(batch.caught_up.is_some());
}
