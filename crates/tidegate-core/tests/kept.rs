//! Ranges that a consumer has kept: a poll that leaves them out is otherwise like one that does not.

use std::{
    collections::HashMap,
    num::NonZeroU64,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use proptest::{prelude::*, sample::Index};
use tidegate_core::{
    Batch, ClientId, EventRange, Filter, Hub, HubConfig, NewEvent, Overflow, Room,
    SubscribeOptions, Subscription, Topic,
};

/// The filters of the subscriptions: two that share a feed, one with the same events in a feed of its own, one with two
/// feeds, one with more feeds than are looked at, and one of everything.
const FILTERS: [&[&str]; 6] = [
    &["a"],
    &["a"],
    &["a.>", "a"],
    &["a", "b"],
    &["a", "b", "c", "d", "e"],
    &[">"],
];

#[derive(Debug, Clone)]
enum Step {
    /// Events of this size, on these topics.
    Publish(Vec<usize>, usize),
    /// A poll of one of the subscriptions, with this room and one of the ranges.
    Poll(usize, usize, u64, u64, Index),
    /// Sequences begin anew.
    BeginEpoch,
}

fn step() -> impl Strategy<Value = Step> {
    let topics = prop::collection::vec(0..3_usize, 1..12);
    let mostly_one = prop_oneof![3 => (1..12_usize).prop_map(|count| vec![0; count]), 1 => topics];
    let bytes = prop_oneof![3 => Just(u64::MAX), 1 => 0..300_u64];
    let events = prop_oneof![3 => Just(usize::MAX), 1 => 0..9_usize];
    prop_oneof![
        4 => (mostly_one, 0..60_usize).prop_map(|(topics, size)| Step::Publish(topics, size)),
        8 => (0..FILTERS.len(), events, bytes, 0..40_u64, any::<Index>())
            .prop_map(|(which, events, bytes, overhead, any)| {
                Step::Poll(which, events, bytes, overhead, any)
            }),
        1 => Just(Step::BeginEpoch),
    ]
}

fn subscribe(
    hub: &Hub<Bytes>,
    client: &str,
    filters: &[&str],
    max_events: u64,
) -> Subscription<Bytes> {
    let filters = filters.iter().map(|filter| Filter::new(filter).unwrap());
    let mut options = SubscribeOptions::new(ClientId::new(client).unwrap(), filters.collect());
    options.limits.max_events = NonZeroU64::new(max_events).unwrap();
    options.limits.overflow = Overflow::DropOldest;
    hub.subscribe(options, Instant::now()).unwrap()
}

fn sequences(batch: &Batch<Bytes>) -> Vec<u64> {
    batch.events.iter().map(|event| event.sequence()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Each subscription has a twin that keeps nothing. Both are polled at the same moments with the same room.
    #[test]
    fn poll_that_leaves_out_a_range_is_otherwise_the_same(
        steps in prop::collection::vec(step(), 1..60),
        max_events in 1..40_u64,
    ) {
        let hub: Hub<Bytes> = Hub::new(HubConfig::new(1));
        let mut epoch = 1;
        let both = |which: usize| {
            [("keeps", max_events), ("does-not", max_events)]
                .map(|(name, max)| subscribe(&hub, &format!("{name}-{which}"), FILTERS[which], max))
        };
        let mut subscriptions: Vec<_> = (0..FILTERS.len()).map(both).collect();
        let mut kept: Vec<EventRange> = Vec::new();
        let mut seen: HashMap<EventRange, Vec<u64>> = HashMap::new();
        let mut cx = Context::from_waker(Waker::noop());
        for step in steps {
            match step {
                Step::Publish(topics, size) => {
                    let events = topics.into_iter().map(|topic| {
                        let topic = Topic::new(["a", "b", "a.x"][topic]).unwrap();
                        NewEvent::new(topic, Bytes::from(vec![0; size]))
                    });
                    hub.publish(events, Instant::now()).unwrap();
                }
                Step::BeginEpoch => {
                    epoch += 1;
                    hub.begin_epoch(epoch, 0).unwrap();
                    subscriptions = (0..FILTERS.len()).map(both).collect();
                }
                Step::Poll(which, events, bytes, overhead, any) => {
                    let [keeps, does_not] = &mut subscriptions[which];
                    let room = Room { events, bytes, overhead, ..Room::events(1) };
                    let mut all = Batch::default();
                    let expected = does_not.poll_next(&mut cx, room, &mut all);
                    // Where no other is known to be next, any is as good: the poll itself looks.
                    let mut ranges = kept.iter().copied();
                    let next = ranges.find(|range| keeps.stands_at(range)).or((!kept.is_empty()).then(|| *any.get(&kept)));
                    let mut batch = Batch::default();
                    let polled = keeps.poll_next_unless_kept(&mut cx, room, next, &mut batch);

                    prop_assert_eq!(polled, expected);
                    prop_assert_eq!(&batch.gaps, &all.gaps);
                    prop_assert_eq!(batch.range, all.range);
                    prop_assert_eq!(keeps.position(), does_not.position());
                    prop_assert_eq!(keeps.next_index(), does_not.next_index());
                    prop_assert_eq!(batch.is_empty(), all.is_empty());
                    prop_assert_eq!(batch.is_empty(), polled != Poll::Ready(Ok(())));
                    if batch.is_kept() {
                        prop_assert_eq!(batch.range, next);
                        prop_assert!(batch.gaps.is_empty());
                    } else {
                        prop_assert!(next.is_none() || batch.range != next);
                        prop_assert_eq!(sequences(&batch), sequences(&all));
                    }
                    prop_assert!(!all.is_kept());
                    if let Some(range) = all.range {
                        prop_assert_eq!(range.count(), all.events.len() as u64);
                        let known = seen.entry(range).or_insert_with(|| sequences(&all));
                        // Whoever is handed it has the same.
                        prop_assert_eq!(known, &sequences(&all));
                        if !kept.contains(&range) {
                            kept.insert(0, range);
                        }
                    }
                }
            }
        }
    }
}

/// The room counts what each event takes besides its size, and takes one in any case.
#[test]
fn range_is_as_long_as_the_room_takes() {
    let hub: Hub<Bytes> = Hub::new(HubConfig::new(1));
    let mut cx = Context::from_waker(Waker::noop());
    let mut subscription = subscribe(&hub, "a", &["a"], 100);
    let events =
        [10, 20, 30, 40].map(|size| NewEvent::new(Topic::new("a").unwrap(), vec![0; size].into()));
    hub.publish(events, Instant::now()).unwrap();
    let mut taken = Vec::new();
    for bytes in [40, 79, 1] {
        let room = Room {
            bytes,
            overhead: 5,
            ..Room::events(9)
        };
        let mut batch = Batch::default();
        assert!(subscription.poll_next(&mut cx, room, &mut batch).is_ready());
        let range = batch.range.unwrap();
        assert_eq!(range.count(), batch.events.len() as u64);
        taken.push(range.count());
    }
    // 15 and 25 fit, 35 and 45 do not, and one is taken in any case.
    assert_eq!(taken, [2, 1, 1]);
    assert_eq!(subscription.next_index(), 4);
}
