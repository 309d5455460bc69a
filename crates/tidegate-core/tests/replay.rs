//! Replay: a poll does bounded work, runs no predicate under a lock, and survives one that changes its mind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, CloseReason, Filter, HistoryLimits, Hub, HubConfig, NewEvent, Position,
    Predicate, Room, StallPolicy, Start, SubscribeOptions, Subscription, SweepRules, Topic,
};

const EPOCH: u64 = 7;

/// The bound of the work of one poll that `Subscription::work` documents, less one entry.
const WORK_PER_POLL: u64 = 4_096;

fn hub(max_events: usize) -> Hub<Bytes> {
    Hub::new(HubConfig {
        history: HistoryLimits {
            max_events,
            ..HistoryLimits::default()
        },
        // The bound of the work of a poll holds whatever the filters may cost.
        max_filter_work: u64::MAX,
        ..HubConfig::new(EPOCH)
    })
}

fn publish(hub: &Hub<Bytes>, topic: &str, count: usize) {
    let event = NewEvent::new(Topic::new(topic).unwrap(), Bytes::from_static(b"x"));
    for _ in 0..count {
        hub.publish([event.clone()], Instant::now()).unwrap();
    }
}

fn options(client: &str, filters: &[String], start: Start) -> SubscribeOptions {
    let filters = filters.iter().map(|filter| Filter::new(filter).unwrap());
    SubscribeOptions {
        start,
        ..SubscribeOptions::new(ClientId::new(client).unwrap(), filters.collect())
    }
}

fn poll(subscription: &mut Subscription<Bytes>, room: Room, batch: &mut Batch<Bytes>) -> Poll<()> {
    let mut cx = Context::from_waker(Waker::noop());
    subscription
        .poll_next(&mut cx, room, batch)
        .map(Result::unwrap)
}

/// 256 filters of 32 tokens. A topic of as many visits 6,655 of their 6,656 places, and matches none.
fn costly_filters() -> Vec<String> {
    let filter = |mask: usize| {
        let token = |i: usize| match i {
            31 => format!("z{mask}"),
            0..8 if mask >> i & 1 == 0 => "t".to_owned(),
            _ => "*".to_owned(),
        };
        (0..32).map(token).collect::<Vec<_>>().join(".")
    };
    (0..256).map(filter).collect()
}

const COSTLY_WORK: u64 = 7_000;

/// In looking back, in reading, in counting what history dropped meanwhile, and in joining live.
#[test]
fn a_poll_of_a_replay_does_bounded_work() {
    let costly_topic = ["t"; 32].join(".");
    let mut filters = costly_filters();
    filters.push("wanted".to_owned());
    for start in [
        Start::Last(u32::MAX),
        Start::After(Position {
            epoch: EPOCH,
            sequence: 0,
        }),
    ] {
        let hub = hub(400);
        for _ in 0..10 {
            publish(&hub, &costly_topic, 39);
            publish(&hub, "wanted", 1);
        }
        let mut subscription = hub
            .subscribe(options("c", &filters, start), Instant::now())
            .unwrap();
        let mut batch = Batch::default();
        let (mut polls, mut most, mut total, mut settled) = (0u64, 0, 0, 0);
        while batch.caught_up.is_none() {
            let _ = poll(&mut subscription, Room::events(1), &mut batch);
            polls += 1;
            most = most.max(subscription.work());
            total += subscription.work();
            settled +=
                batch.events.len() as u64 + batch.gaps.iter().map(|gap| gap.count).sum::<u64>();
            // Overtakes it in all that it does.
            if polls % 16 == 0 && polls < 1_000 {
                publish(&hub, &costly_topic, 1);
                publish(&hub, "wanted", 1);
            }
        }
        assert!(most <= WORK_PER_POLL + COSTLY_WORK, "{most} in one poll");
        assert!(
            total > 400 * COSTLY_WORK / 2 && settled >= 10,
            "{total}, {settled}"
        );
        assert_eq!(subscription.next_index(), settled);
        publish(&hub, "wanted", 1);
        assert!(poll(&mut subscription, Room::events(1), &mut batch).is_ready());
        assert_eq!(subscription.work(), 0, "it is live");
    }
}

/// The bound is on places visited, so filters that cost little go through many entries in a poll.
#[test]
fn a_replay_through_cheap_filters_takes_few_polls() {
    let hub = hub(10_000);
    publish(&hub, "other", 10_000);
    let start = Start::Last(5);
    let mut subscription = hub
        .subscribe(options("c", &["wanted".to_owned()], start), Instant::now())
        .unwrap();
    let mut batch = Batch::default();
    let mut polls = 0;
    while batch.caught_up.is_none() {
        let _ = poll(&mut subscription, Room::events(1), &mut batch);
        polls += 1;
    }
    assert!(polls <= 10, "{polls}");
}

/// The predicate takes the locks of the hub itself, so under any of them it would wait for itself. It is asked in the
/// look back, in reading, and for what came in between, up to the join.
#[test]
fn no_predicate_runs_under_a_lock_while_a_replay_joins_live() {
    let (is_done, done) = mpsc::channel();
    thread::spawn(move || {
        let hub = hub(1_000);
        publish(&hub, "a", 100);
        let asked = Arc::new(AtomicU64::new(0));
        let (inside, counts) = (hub.clone(), Arc::clone(&asked));
        let predicate = Predicate::new(move |_: &Bytes| {
            counts.fetch_add(1, Relaxed);
            let _ = inside.subscriptions();
            inside.stats().subscriptions == 1
        });
        let options = options("c", &["a".to_owned()], Start::Last(1_000));
        let mut subscription = hub
            .subscribe_matching(options, Some(&predicate), Instant::now())
            .unwrap();
        let mut batch = Batch::default();
        let mut given = Vec::new();
        while batch.caught_up.is_none() {
            let _ = poll(&mut subscription, Room::events(30), &mut batch);
            given.extend(batch.events.iter().map(|event| event.sequence()));
            // Many make another round; the few at the end are what it joins live with.
            if !batch.events.is_empty() && hub.position().sequence < 310 {
                publish(&hub, "a", 70);
            } else if given.len() > 300 && hub.position().sequence == 310 {
                publish(&hub, "a", 3);
            }
        }
        is_done.send((given, asked.load(Relaxed))).unwrap();
    });
    let (given, asked) = done
        .recv_timeout(Duration::from_secs(30))
        .expect("the predicate waits for itself");
    assert_eq!(given, (1..=given.len() as u64).collect::<Vec<_>>());
    assert!(given.len() == 313 && asked > 313, "{asked}");
}

/// Its counts are its own loss; nothing else may break.
#[test]
fn a_predicate_that_changes_its_mind_breaks_nothing() {
    for period in 1..12u64 {
        let hub = hub(40);
        publish(&hub, "a", 60);
        let asked = AtomicU64::new(0);
        // Changes its mind in runs of growing length, so that looking back, counting and reading disagree.
        let predicate = Predicate::new(move |_: &Bytes| {
            let turn = asked.fetch_add(1, Relaxed);
            (turn / period) % 3 != 1
        });
        for i in 0..20u32 {
            let options = options("c", &["a".to_owned()], Start::Last(5 + 3 * i));
            let mut subscription = hub
                .subscribe_matching(options, Some(&predicate), Instant::now())
                .unwrap();
            let mut batch = Batch::default();
            let (mut index, mut last) = (0, 0);
            for step in 0..200 {
                let _ = poll(&mut subscription, Room::events(4), &mut batch);
                for gap in &batch.gaps {
                    assert!(gap.count < 1 << 32 && gap.first_index == index);
                    index += gap.count;
                }
                for event in &batch.events {
                    assert!(event.sequence() > last);
                    last = event.sequence();
                    index += 1;
                }
                assert_eq!(subscription.next_index(), index);
                assert!(subscription.backlog() < 1 << 32, "it wrapped");
                if step < 60 && step % 2 == 0 {
                    publish(&hub, "a", 1 + (step + i as usize) % 5);
                }
            }
            assert!(!subscription.is_replaying(), "it never ends");
            drop(subscription);
        }
        let stats = hub.stats();
        assert!(stats.abandoned < 1 << 32, "it wrapped");
    }
}

/// Nothing is handed out while it searches, and still it moves: only a subscription that is not polled is stalled.
#[test]
fn a_replay_that_searches_is_not_stalled() {
    let hub = hub(1_000);
    publish(&hub, &["t"; 32].join("."), 1_000);
    let options = options("c", &costly_filters(), Start::Last(1));
    let begun = Instant::now();
    let mut subscription = hub.subscribe(options, begun).unwrap();
    let rules = SweepRules {
        stall_timeout: Some(Duration::from_secs(10)),
        on_stall: StallPolicy::Close,
        ..SweepRules::default()
    };
    let mut batch = Batch::default();
    for second in 0..40 {
        assert!(poll(&mut subscription, Room::events(1), &mut batch).is_pending());
        assert!(subscription.is_replaying());
        let swept = hub.sweep(&rules, begun + Duration::from_secs(second));
        assert_eq!((swept.stalled, swept.closed), (0, 0), "after {second} s");
    }
    hub.sweep(&rules, begun + Duration::from_secs(60));
    assert_eq!(subscription.close_reason(), Some(CloseReason::Stalled));
}
