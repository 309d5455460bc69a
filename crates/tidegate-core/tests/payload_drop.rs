//! Isolation: the `Drop` of a payload may do what it likes with the hub, because it never runs under a lock of it.

use std::{
    num::NonZeroU64,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    task::{Context, Waker},
    thread,
    time::{Duration, Instant},
};

use tidegate_core::{
    Batch, ClientId, Filter, HistoryLimits, Hub, HubConfig, NewEvent, Overflow, Payload, Position,
    Predicate, Publishing, Room, Start, SubscribeOptions, Subscription, Topic,
};

/// A payload that uses every part of its hub when it is dropped.
#[derive(Debug)]
struct Visitor {
    hub: Hub<Self>,
    dropped: Arc<AtomicU64>,
    /// Whether the hub numbers its events itself.
    is_numbered_here: bool,
    /// Whether it publishes in its turn a payload that does nothing.
    is_last: bool,
}

impl Payload for Visitor {
    fn size(&self) -> usize {
        100
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        if self.is_last {
            return;
        }
        self.dropped.fetch_add(1, Relaxed);
        let now = Instant::now();
        let event = NewEvent::new(Topic::new("visit").unwrap(), self.last());
        if self.is_numbered_here {
            self.hub.publish([event], now).unwrap();
        } else {
            let sequence = self.hub.position().sequence + 1;
            self.hub.append([(sequence, event)], now).unwrap();
            let _ = self.hub.advance(self.hub.position().sequence + 1);
        }
        self.hub.expire_history(now);
        drop(subscribe(
            &self.hub,
            "visitor",
            &["a", "visit", "other"],
            Overflow::DropOldest,
            Start::Last(1),
        ));
        let _ = self.hub.stats();
        let _ = self.hub.subscriptions();
    }
}

impl Visitor {
    fn last(&self) -> Self {
        Self {
            hub: self.hub.clone(),
            dropped: Arc::clone(&self.dropped),
            is_numbered_here: self.is_numbered_here,
            is_last: true,
        }
    }
}

/// A hub, and how many payloads were dropped.
struct Scene {
    hub: Hub<Visitor>,
    dropped: Arc<AtomicU64>,
    is_numbered_here: bool,
    _everything: Subscription<Visitor>,
}

impl Scene {
    fn new(config: HubConfig, is_numbered_here: bool) -> Self {
        let hub = Hub::new(config);
        let everything = subscribe(&hub, "stays", &["stays"], Overflow::DropOldest, Start::Live);
        Self {
            hub,
            dropped: Arc::default(),
            is_numbered_here,
            _everything: everything,
        }
    }

    fn event(&self) -> NewEvent<Visitor> {
        let visitor = Visitor {
            hub: self.hub.clone(),
            dropped: Arc::clone(&self.dropped),
            is_numbered_here: self.is_numbered_here,
            is_last: false,
        };
        NewEvent::new(Topic::new("a").unwrap(), visitor)
    }

    fn publish(&self, events: usize) {
        for _ in 0..events {
            if self.is_numbered_here {
                self.hub.publish([self.event()], Instant::now()).unwrap();
            } else {
                let sequence = self.hub.position().sequence + 1;
                self.hub
                    .append([(sequence, self.event())], Instant::now())
                    .unwrap();
            }
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

fn subscribe(
    hub: &Hub<Visitor>,
    client: &str,
    filters: &[&str],
    overflow: Overflow,
    start: Start,
) -> Subscription<Visitor> {
    let filters = filters.iter().map(|filter| Filter::new(filter).unwrap());
    let mut options = SubscribeOptions::new(ClientId::new(client).unwrap(), filters.collect());
    options.start = start;
    options.limits.overflow = overflow;
    options.limits.max_events = NonZeroU64::new(4).unwrap();
    hub.subscribe(options, Instant::now()).unwrap()
}

fn poll(subscription: &mut Subscription<Visitor>, events: usize) {
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    let _ = subscription.poll_next(&mut cx, Room::events(events), &mut batch);
}

/// Fails if `act` waits for itself.
fn in_time(act: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let acting = thread::spawn(move || {
        act();
        let _ = done.send(());
    });
    if is_done.recv_timeout(Duration::from_secs(60)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("a payload was dropped under a lock that its drop takes");
    }
    acting.join().unwrap();
}

fn no_history() -> HubConfig {
    HubConfig {
        history: HistoryLimits::OFF,
        ..HubConfig::new(1)
    }
}

#[test]
fn payload_that_history_drops_may_use_the_hub() {
    for is_numbered_here in [true, false] {
        in_time(move || {
            let history = HistoryLimits {
                max_events: 3,
                ..HistoryLimits::default()
            };
            let config = HubConfig {
                history,
                ..HubConfig::new(1)
            };
            let scene = Scene::new(config, is_numbered_here);
            scene.publish(10);
            assert!(scene.dropped() > 0);
            let before = scene.dropped();
            scene.publish(2);
            scene
                .hub
                .expire_history(Instant::now() + Duration::from_secs(1_000));
            assert!(scene.dropped() > before);
            let before = scene.dropped();
            scene.publish(2);
            scene
                .hub
                .set_history_limits(HistoryLimits::OFF, Instant::now());
            assert!(scene.dropped() > before);
        });
    }
}

#[test]
fn payload_that_no_subscription_wants_may_use_the_hub() {
    for is_numbered_here in [true, false] {
        in_time(move || {
            let scene = Scene::new(no_history(), is_numbered_here);
            scene.publish(1);
            assert_eq!(scene.dropped(), 1);
        });
    }
}

#[test]
fn payload_that_a_feed_drops_may_use_the_hub() {
    for overflow in [Overflow::DropOldest, Overflow::Conflate] {
        for filters in [&["a"][..], &["a", "visit"]] {
            in_time(move || {
                let scene = Scene::new(no_history(), true);
                // Beyond the limits of the feed, or replaced.
                let mut subscription = subscribe(&scene.hub, "1", filters, overflow, Start::Live);
                scene.publish(20);
                assert!(scene.dropped() > 0, "{overflow:?}");
                // Skipped and passed by a poll, in one feed and merged.
                while subscription.backlog() > 0 {
                    poll(&mut subscription, 2);
                }
                // Left by a subscription that goes.
                scene.publish(3);
                let before = scene.dropped();
                drop(subscription);
                assert!(scene.dropped() > before, "{overflow:?}");
            });
        }
    }
}

#[test]
fn payload_that_a_subscription_passes_over_may_use_the_hub() {
    in_time(|| {
        let scene = Scene::new(no_history(), true);
        let mut subscription = subscribe(
            &scene.hub,
            "1",
            &["a", "visit"],
            Overflow::DropOldest,
            Start::Live,
        );
        scene.publish(2);
        subscription.pass_over(scene.hub.position().sequence);
        assert_eq!(scene.dropped(), 2);
    });
}

#[test]
fn payload_that_the_budget_evicts_may_use_the_hub() {
    in_time(|| {
        let config = HubConfig {
            memory_budget: 10_000,
            ..HubConfig::new(1)
        };
        let scene = Scene::new(config, true);
        let limits = |overflow| {
            subscribe(
                &scene.hub,
                &format!("{overflow:?}"),
                &["a"],
                overflow,
                Start::Live,
            )
        };
        let _behind = [limits(Overflow::DropOldest), limits(Overflow::Conflate)];
        scene.publish(100);
        assert!(scene.dropped() > 0);
        assert!(scene.hub.stats().retained_bytes <= 10_000);
    });
}

#[test]
fn payload_of_an_epoch_that_ends_may_use_the_hub() {
    in_time(|| {
        let scene = Scene::new(HubConfig::new(1), false);
        let _behind = subscribe(&scene.hub, "1", &["a"], Overflow::DropOldest, Start::Live);
        scene.publish(3);
        scene.hub.begin_epoch(2, 0).unwrap();
        assert_eq!(scene.dropped(), 3);
        assert_eq!(scene.hub.position().epoch, 2);
    });
}

#[test]
fn payload_between_lost_ranges_may_use_the_hub() {
    in_time(|| {
        let scene = Scene::new(HubConfig::new(1), false);
        for _ in 0..70 {
            scene.publish(1);
            let head = scene.hub.position().sequence;
            scene.hub.lose(head + 1, head + 1).unwrap();
        }
        assert!(scene.dropped() > 0);
    });
}

#[test]
fn payload_of_a_replay_may_use_the_hub() {
    in_time(|| {
        let scene = Scene::new(HubConfig::new(1), true);
        scene.publish(100);
        let start = Start::After(Position {
            epoch: 1,
            sequence: 0,
        });
        let mut replaying = subscribe(&scene.hub, "1", &["a"], Overflow::DropOldest, start);
        poll(&mut replaying, 10);
        scene
            .hub
            .set_history_limits(HistoryLimits::OFF, Instant::now());
        while replaying.is_replaying() {
            poll(&mut replaying, 10);
        }
        assert_eq!(scene.dropped(), 100);
    });
}

/// It goes with the last reference to its feed, which publishers have too.
#[test]
fn captive_of_a_predicate_may_use_the_hub() {
    in_time(|| {
        let scene = Scene::new(no_history(), true);
        let captive = Mutex::new(scene.event().payload);
        let predicate = Predicate::new(move |_: &Visitor| captive.lock().is_ok());
        let mut publishing: Publishing<Visitor> = scene.hub.begin_publish([]);
        let filters = vec![Filter::new("a").unwrap()];
        let options = SubscribeOptions::new(ClientId::new("1").unwrap(), filters);
        let late = scene
            .hub
            .subscribe_matching(options, Some(&predicate), Instant::now())
            .unwrap();
        drop((late, predicate));
        assert_eq!(
            scene.dropped(),
            0,
            "it is late, while a publisher may need it"
        );
        publishing.step(Instant::now()).unwrap().unwrap();
        assert_eq!(scene.dropped(), 1);
    });
}
