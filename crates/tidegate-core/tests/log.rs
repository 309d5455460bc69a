//! A hub that is fed from a log: it begins in its middle, moves over sequences without events, is told what is lost, and
//! begins anew when the log does.

use std::{
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, CloseReason, Filter, Gap, GapReason, HistoryLimits, Hub, HubConfig, Limits,
    NewEvent, Overflow, Position, PublishError, Room, Start, SubscribeError, SubscribeOptions,
    Subscription, Topic,
};

const EPOCH: u64 = 7;

fn at(sequence: u64) -> Position {
    Position {
        epoch: EPOCH,
        sequence,
    }
}

fn event(topic: &str) -> NewEvent<Bytes> {
    NewEvent::new(Topic::new(topic).unwrap(), Bytes::from_static(b"x"))
}

fn append(hub: &Hub<Bytes>, topic: &str, sequences: impl IntoIterator<Item = u64>) {
    let events = sequences.into_iter().map(|it| (it, event(topic)));
    hub.append(events, Instant::now()).unwrap();
}

fn options(client: &str, start: Start) -> SubscribeOptions {
    SubscribeOptions {
        start,
        ..SubscribeOptions::new(
            ClientId::new(client).unwrap(),
            vec![Filter::new("a").unwrap()],
        )
    }
}

fn subscribe(hub: &Hub<Bytes>, start: Start) -> Subscription<Bytes> {
    hub.subscribe(options("c", start), Instant::now()).unwrap()
}

/// Everything that a subscription is given, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    Event(u64),
    /// Reason, first and last sequence, count.
    Gap(GapReason, u64, u64, u64),
    CaughtUp(u64),
}

use Given::{CaughtUp, Event as Ev};

const fn lost(first: u64, last: u64) -> Given {
    Given::Gap(GapReason::Backplane, first, last, 0)
}

/// Takes what there is, and checks that the position is safe after each poll, and that gaps stand in order.
fn drain(subscription: &mut Subscription<Bytes>, room: Room) -> Vec<Given> {
    let mut given = Vec::new();
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..200 {
        while let Poll::Ready(taken) = subscription.poll_next(&mut cx, room, &mut batch) {
            taken.unwrap();
            let gap = |gap: &Gap| {
                Given::Gap(gap.reason, gap.first_sequence, gap.last_sequence, gap.count)
            };
            given.extend(batch.gaps.iter().map(gap));
            given.extend(batch.events.iter().map(|event| Ev(event.sequence())));
            given.extend(batch.caught_up.map(|position| CaughtUp(position.sequence)));
        }
    }
    given
}

fn all(subscription: &mut Subscription<Bytes>) -> Vec<Given> {
    drain(subscription, Room::events(3))
}

// ===== a beginning in mid-log =====

#[test]
fn a_hub_that_begins_in_mid_log_says_what_came_before_has_expired() {
    let hub = Hub::begin_at(HubConfig::new(EPOCH), 999);
    assert_eq!(hub.position(), at(999));
    // Before the first event: where it begins is a position like any other.
    let expired = Given::Gap(GapReason::Expired, 51, 999, 0);
    assert_eq!(
        all(&mut subscribe(&hub, Start::After(at(50)))),
        [expired, CaughtUp(999)]
    );
    assert_eq!(
        all(&mut subscribe(&hub, Start::After(at(999)))),
        [CaughtUp(999)]
    );
    let ahead = hub.subscribe(options("c", Start::After(at(1_000))), Instant::now());
    assert_eq!(
        ahead.unwrap_err(),
        SubscribeError::PositionAhead { head: 999 }
    );

    append(&hub, "a", 1_000..1_003);
    let events = [Ev(1_000), Ev(1_001), Ev(1_002), CaughtUp(1_002)];
    assert_eq!(all(&mut subscribe(&hub, Start::After(at(999)))), events);
    let whole: Vec<_> = [expired].into_iter().chain(events).collect();
    assert_eq!(all(&mut subscribe(&hub, Start::After(at(50)))), whole);
    assert_eq!(
        all(&mut subscribe(&hub, Start::After(at(0))))[0],
        Given::Gap(GapReason::Expired, 1, 999, 0)
    );
    assert_eq!(all(&mut subscribe(&hub, Start::Last(9))), events);
}

/// Nobody told it where it begins, so nobody knows what came before.
#[test]
fn a_hub_that_is_fed_from_mid_log_unasked_says_so_too() {
    for history in [HistoryLimits::default(), HistoryLimits::OFF] {
        let hub = Hub::new(HubConfig {
            history,
            ..HubConfig::new(EPOCH)
        });
        append(&hub, "a", 1_000..1_010);
        let given = all(&mut subscribe(&hub, Start::After(at(50))));
        assert!(
            matches!(given[0], Given::Gap(GapReason::Expired, 51, 999 | 1_009, 0)),
            "{given:?}"
        );
    }
}

#[test]
fn holes_between_sequences_are_no_loss() {
    let hub = Hub::begin_at(HubConfig::new(EPOCH), 10);
    append(&hub, "a", [15, 22, 40]);
    let given = all(&mut subscribe(&hub, Start::After(at(10))));
    assert_eq!(given, [Ev(15), Ev(22), Ev(40), CaughtUp(40)]);
}

#[test]
fn the_last_of_all_sequences_is_refused() {
    let hub = Hub::begin_at(HubConfig::new(EPOCH), u64::MAX);
    assert_eq!(hub.position(), at(u64::MAX - 1));
    let used_up = Err(PublishError::SequencesUsedUp);
    let now = Instant::now();
    assert_eq!(hub.publish([event("a")], now).map(|it| it.count), used_up);
    assert_eq!(
        hub.append([(u64::MAX, event("a"))], now).map(|it| it.count),
        used_up
    );
    assert_eq!(hub.advance(u64::MAX).map(|()| 0), used_up);
    assert_eq!(hub.lose(u64::MAX, u64::MAX).map(|()| 0), used_up);
    assert_eq!(hub.begin_epoch(8, u64::MAX).map(|()| 0), used_up);
    assert_eq!(
        (hub.position(), hub.stats().published),
        (at(u64::MAX - 1), 0)
    );
    // At the edge a replay works, and a new epoch goes on.
    assert_eq!(
        all(&mut subscribe(&hub, Start::After(at(u64::MAX - 1)))),
        [CaughtUp(u64::MAX - 1)]
    );
    hub.begin_epoch(8, 0).unwrap();
    assert_eq!(hub.publish([event("a")], now).unwrap().first_sequence, 1);
}

/// The log says when an event came. A time that goes back lets no event grow old before one that came earlier.
#[test]
fn age_is_that_of_the_log_and_never_goes_back() {
    let hub = Hub::begin_at(
        HubConfig {
            history: HistoryLimits {
                max_age: Duration::from_secs(60),
                ..HistoryLimits::default()
            },
            ..HubConfig::new(EPOCH)
        },
        0,
    );
    let begin = Instant::now();
    let second = |second| begin + Duration::from_secs(second);
    hub.append([(1, event("a"))], second(50)).unwrap();
    hub.append([(2, event("a"))], second(20)).unwrap();
    hub.expire_history(second(100));
    assert_eq!(
        hub.stats().history_events,
        2,
        "the second came after the first"
    );
    hub.expire_history(second(110));
    assert_eq!(hub.stats().history_events, 0);
}

// ===== sequences without events =====

#[test]
fn positions_move_over_sequences_without_events() {
    let hub = Hub::begin_at(HubConfig::new(EPOCH), 1_023);
    let mut live = subscribe(&hub, Start::Live);
    append(&hub, "a", [1_024]);
    hub.advance(2_047).unwrap();
    assert_eq!(hub.position(), at(2_047));
    // What is still to be handed out holds the position back.
    assert_eq!(live.position(), Some(at(1_023)));
    assert_eq!(all(&mut live), [Ev(1_024)]);
    assert_eq!(live.position(), Some(at(2_047)));
    assert_eq!(
        all(&mut subscribe(&hub, Start::After(at(1_500)))),
        [CaughtUp(2_047)]
    );

    hub.advance(2_047).unwrap();
    let back = hub.advance(2_046);
    assert_eq!(
        back,
        Err(PublishError::OutOfOrder {
            head: 2_047,
            given: 2_046
        })
    );
    let behind = hub.append([(2_047, event("a"))], Instant::now());
    assert_eq!(
        behind,
        Err(PublishError::OutOfOrder {
            head: 2_047,
            given: 2_047
        })
    );
}

// ===== what is lost =====

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn a_lost_range_is_told_at_its_place_to_everybody_who_is_live() {
    let hub = Hub::begin_at(HubConfig::new(EPOCH), 0);
    let mut behind = subscribe(&hub, Start::Live);
    let woken = Arc::<Woken>::default();
    let waker = Waker::from(Arc::clone(&woken));
    let elsewhere = SubscribeOptions::new(
        ClientId::new("elsewhere").unwrap(),
        vec![Filter::new("b").unwrap()],
    );
    let mut idle = hub.subscribe(elsewhere, Instant::now()).unwrap();
    let mut batch = Batch::default();
    let polled = idle.poll_next(
        &mut Context::from_waker(&waker),
        Room::events(9),
        &mut batch,
    );
    assert!(polled.is_pending());

    append(&hub, "a", [1, 2]);
    hub.lose(3, 9).unwrap();
    append(&hub, "a", [10, 11]);

    // Also one whose filters match nothing: nobody knows what was there. It is woken for it.
    assert_eq!(woken.0.load(Relaxed), 1);
    assert_eq!(all(&mut idle), [lost(3, 9)]);
    assert_eq!(idle.position(), Some(at(11)));
    assert_eq!(all(&mut behind), [Ev(1), Ev(2), lost(3, 9), Ev(10), Ev(11)]);
    // It takes no index.
    assert_eq!((behind.next_index(), idle.next_index()), (4, 0));
    assert_eq!(hub.stats().gaps.backplane, 2);
}

/// A release holds it back as it does an event, and the position with it.
#[test]
fn a_lost_range_waits_for_its_release() {
    let hub = Hub::begin_at(HubConfig::new(EPOCH), 0);
    let mut live = subscribe(&hub, Start::Live);
    append(&hub, "a", [1]);
    hub.lose(2, 3).unwrap();
    let release = Room {
        up_to: 1,
        ..Room::events(9)
    };
    assert_eq!(drain(&mut live, release), [Ev(1)]);
    assert_eq!(live.position(), Some(at(1)));
    assert_eq!(all(&mut live), [lost(2, 3)]);
    assert_eq!(live.position(), Some(at(3)));
}

#[test]
fn a_lost_range_is_told_in_every_replay_that_crosses_it() {
    let hub = Hub::begin_at(HubConfig::new(EPOCH), 0);
    append(&hub, "a", [1, 2]);
    hub.lose(3, 9).unwrap();
    append(&hub, "b", [10]);
    append(&hub, "a", [11]);
    hub.lose(12, 12).unwrap();
    let from = |start| all(&mut subscribe(&hub, start));
    let rest = [lost(3, 9), Ev(11), lost(12, 12), CaughtUp(12)];
    assert_eq!(from(Start::After(at(2))), rest);
    assert_eq!(from(Start::After(at(1)))[1..], rest);
    // From within it, the rest of it.
    assert_eq!(
        from(Start::After(at(6))),
        [lost(7, 9), Ev(11), lost(12, 12), CaughtUp(12)]
    );
    assert_eq!(
        from(Start::After(at(9))),
        [Ev(11), lost(12, 12), CaughtUp(12)]
    );
    assert_eq!(from(Start::After(at(11))), [lost(12, 12), CaughtUp(12)]);
    assert_eq!(from(Start::After(at(12))), [CaughtUp(12)]);
    // It is asked for nothing but the newest events, so what lies before them is no loss.
    assert_eq!(from(Start::Last(1)), [Ev(11), lost(12, 12), CaughtUp(12)]);
    assert_eq!(from(Start::Last(2))[..3], [Ev(2), lost(3, 9), Ev(11)]);
}

/// How many were lost before it and how many behind is not known any more. Their gap has all of them, and that of the range,
/// which goes first, begins where they do: whoever breaks off between the two was told of all up to there.
#[test]
fn a_lost_range_among_events_that_overflowed_begins_with_the_first_of_them() {
    let hub = Hub::begin_at(HubConfig::new(EPOCH), 0);
    let mut behind = hub
        .subscribe(
            SubscribeOptions {
                limits: Limits {
                    max_events: NonZeroU64::new(2).unwrap(),
                    ..Limits::default()
                },
                ..options("c", Start::Live)
            },
            Instant::now(),
        )
        .unwrap();
    append(&hub, "a", [1, 2, 3]);
    hub.lose(4, 9).unwrap();
    append(&hub, "a", [10, 11, 12, 13]);
    let overflow = Given::Gap(GapReason::Overflow, 1, 11, 5);
    assert_eq!(all(&mut behind), [lost(1, 9), overflow, Ev(12), Ev(13)]);
    assert_eq!(behind.next_index(), 7);
}

#[test]
fn a_range_that_cannot_be_lost_is_refused() {
    let hub = Hub::<Bytes>::begin_at(HubConfig::new(EPOCH), 10);
    let refused = |head, given| Err(PublishError::OutOfOrder { head, given });
    assert_eq!(hub.lose(10, 12), refused(10, 10));
    assert_eq!(hub.lose(13, 12), refused(12, 12));
    assert_eq!(hub.position(), at(10));
}

/// The hub remembers 64 ranges. With more, those who are far behind lose events too, and each of them is counted.
#[test]
fn beyond_64_lost_ranges_the_oldest_become_one_and_every_event_is_counted() {
    for overflow in [Overflow::DropOldest, Overflow::Conflate] {
        let hub = Hub::begin_at(HubConfig::new(EPOCH), 0);
        let live = |client: &str| {
            let options = SubscribeOptions {
                limits: Limits {
                    overflow,
                    ..Limits::default()
                },
                ..options(client, Start::Live)
            };
            hub.subscribe(options, Instant::now()).unwrap()
        };
        let (mut stalled, mut reader) = (live("stalled"), live("reader"));
        let mut replaying = hub
            .subscribe(options("replaying", Start::Live), Instant::now())
            .unwrap();
        // An event with a key of its own, and a lost range, in turn.
        let mut expected = Vec::new();
        for i in 0..80 {
            let (sequence, first) = (10 * i + 1, 10 * i + 2);
            let event = NewEvent {
                key: Some(i.to_string().into()),
                ..event("a")
            };
            hub.append([(sequence, event)], Instant::now()).unwrap();
            hub.lose(first, first + 3).unwrap();
            expected.extend([Ev(sequence), lost(first, first + 3)]);
            assert_eq!(all(&mut reader), expected[expected.len() - 2..]);
            if i == 40 {
                replaying = hub
                    .subscribe(options("replaying", Start::After(at(0))), Instant::now())
                    .unwrap();
                assert_eq!(drain_one(&mut replaying), [Ev(1)]);
            }
        }
        // 16 ranges are in the first, and the 15 events between them, with the one before it, are evicted.
        let first = [lost(1, 165), Given::Gap(GapReason::Evicted, 1, 161, 17)];
        let given = all(&mut stalled);
        assert_eq!(given[..2], first, "{overflow:?}");
        assert_eq!(given[2..], expected[34..]);
        assert_eq!(stalled.next_index(), 80);

        let given = all(&mut replaying);
        let first = [lost(2, 165), Given::Gap(GapReason::Evicted, 2, 165, 16)];
        assert_eq!(given[..2], first);
        assert_eq!(given[2..given.len() - 1], expected[34..]);
        assert_eq!(replaying.next_index(), 80);
        // Who comes now is told that it has expired.
        let given = all(&mut subscribe(&hub, Start::After(at(0))));
        assert_eq!(given[0], Given::Gap(GapReason::Expired, 1, 170, 0));
    }
}

fn drain_one(subscription: &mut Subscription<Bytes>) -> Vec<Given> {
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    while subscription
        .poll_next(&mut cx, Room::events(1), &mut batch)
        .is_pending()
    {}
    batch
        .events
        .iter()
        .map(|event| Ev(event.sequence()))
        .collect()
}

// ===== another epoch =====

#[test]
fn a_new_epoch_ends_everybody_with_a_position_of_the_old_one() {
    let hub = Hub::begin_at(HubConfig::new(EPOCH), 0);
    append(&hub, "a", 1..=10);
    let woken = Arc::<Woken>::default();
    let waker = Waker::from(Arc::clone(&woken));
    let mut batch = Batch::default();
    let mut caught_up = subscribe(&hub, Start::Live);
    let mut cx = Context::from_waker(&waker);
    assert!(
        caught_up
            .poll_next(&mut cx, Room::events(9), &mut batch)
            .is_pending()
    );
    let mut replaying = hub
        .subscribe(options("r", Start::After(at(2))), Instant::now())
        .unwrap();
    assert_eq!(drain_one(&mut replaying), [Ev(3)]);

    hub.begin_epoch(8, 100).unwrap();

    assert_eq!(woken.0.load(Relaxed), 1);
    for (subscription, position) in [(&mut caught_up, at(10)), (&mut replaying, at(3))] {
        let polled = subscription.poll_next(&mut cx, Room::events(9), &mut batch);
        assert_eq!(polled, Poll::Ready(Err(CloseReason::EpochChanged)));
        assert_eq!(subscription.position(), Some(position));
        assert_eq!(subscription.began_at().epoch, EPOCH);
    }
    assert_eq!(
        hub.position(),
        Position {
            epoch: 8,
            sequence: 100
        }
    );
    let stats = hub.stats();
    assert_eq!((stats.history_events, stats.feeds), (0, 0));

    // It goes on, with positions of its own. The old ones get all that there is.
    let published = hub.append([(101, event("a"))], Instant::now()).unwrap();
    assert_eq!((published.epoch, published.matched), (8, 0));
    let given = all(&mut subscribe(&hub, Start::After(at(10))));
    let changed = Given::Gap(GapReason::EpochChanged, 0, 100, 0);
    assert_eq!(given, [changed, Ev(101), CaughtUp(101)]);
    let before = Start::After(Position {
        epoch: 8,
        sequence: 99,
    });
    let given = all(&mut subscribe(&hub, before));
    assert_eq!(given[0], Given::Gap(GapReason::Expired, 100, 100, 0));
    assert_eq!(
        hub.begin_epoch(8, 0),
        Err(PublishError::EpochGoesOn { epoch: 8 })
    );
}

/// The memory of the old epoch is given back, although its subscriptions are still there.
#[test]
fn a_new_epoch_frees_what_the_old_one_held() {
    let hub = Hub::begin_at(HubConfig::new(EPOCH), 0);
    let behind = subscribe(&hub, Start::Live);
    append(&hub, "a", 1..=100);
    hub.lose(101, 120).unwrap();
    assert!(hub.stats().retained_bytes > 0);
    hub.begin_epoch(8, 0).unwrap();
    assert_eq!(hub.stats().retained_bytes, 0);
    drop(behind);
    let stats = hub.stats();
    assert_eq!((stats.subscriptions, stats.clients, stats.feeds), (0, 0, 0));
    assert_eq!(stats.matched, stats.abandoned);
    // Nothing of the old epoch was lost in this one.
    assert_eq!(
        all(&mut subscribe(
            &hub,
            Start::After(Position {
                epoch: 8,
                sequence: 0
            })
        )),
        [CaughtUp(0)]
    );
}

/// Subscribers come, drain and resume while epochs change under them: nobody is given an event of another epoch than its
/// own, or a position.
#[test]
fn epochs_change_under_subscribers_at_full_speed() {
    let hub = Hub::<Bytes>::begin_at(HubConfig::new(1), 0);
    let is_over = AtomicBool::new(false);
    let given = [const { AtomicU64::new(0) }; 3];
    thread::scope(|scope| {
        for (reader, given) in given.iter().enumerate() {
            let (hub, is_over) = (&hub, &is_over);
            scope.spawn(move || {
                let mut begun = 0;
                while !is_over.load(Relaxed) {
                    read_to_the_end(hub, reader, begun % 2 == 1, given, is_over);
                    begun += 1;
                }
            });
        }
        let (mut epoch, mut round) = (1, 0);
        // Until each of them has met many epochs.
        while given.iter().any(|given| given.load(Relaxed) < 500) {
            // Sequences of all epochs overlap.
            let after = hub.position().sequence;
            for i in 1..=20 {
                let topic = Topic::new(["a", "b", "c", "d"][(i % 4) as usize]).unwrap();
                let payload = Bytes::copy_from_slice(&u64::to_le_bytes(epoch));
                hub.append(
                    [(after + 3 * i, NewEvent::new(topic, payload))],
                    Instant::now(),
                )
                .unwrap();
            }
            if round % 7 == 0 {
                let head = hub.position().sequence;
                hub.lose(head + 1, head + 5).unwrap();
            }
            if round % 3 == 0 {
                epoch += 1;
                hub.begin_epoch(epoch, round % 50).unwrap();
            }
            round += 1;
        }
        is_over.store(true, Relaxed);
    });
}

/// Subscribes, live or with all of history, and takes all until the epoch ends.
fn read_to_the_end(
    hub: &Hub<Bytes>,
    reader: usize,
    replays: bool,
    given: &AtomicU64,
    is_over: &AtomicBool,
) {
    let filters = ["a", "b", "c"].map(|it| Filter::new(it).unwrap());
    let id = ClientId::new(&format!("c{reader}")).unwrap();
    let mut options = SubscribeOptions::new(id, filters.into());
    if reader == 1 {
        options.limits.overflow = Overflow::Conflate;
    }
    if replays {
        options.start = Start::Last(1_000_000);
    }
    let mut subscription = hub.subscribe(options, Instant::now()).unwrap();
    let epoch = subscription.began_at().epoch;
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    while !is_over.load(Relaxed) {
        match subscription.poll_next(&mut cx, Room::events(5), &mut batch) {
            Poll::Ready(Ok(())) => {
                for event in &batch.events {
                    // The payload is the epoch in which it was appended.
                    let bytes = event.payload()[..].try_into().unwrap();
                    assert_eq!(u64::from_le_bytes(bytes), epoch);
                }
                given.fetch_add(batch.events.len() as u64, Relaxed);
            }
            Poll::Ready(Err(reason)) => {
                assert_eq!(reason, CloseReason::EpochChanged);
                return;
            }
            Poll::Pending => {}
        }
        assert!(subscription.position().is_none_or(|it| it.epoch == epoch));
        assert!(hub.position().epoch >= epoch);
    }
}
