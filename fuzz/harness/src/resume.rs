//! Positions to resume after, on a hub whose history moves.

use std::{
    num::NonZeroU64,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use tidegate::{
    Batch, ClientId, Filter, HistoryLimits, Hub, HubConfig, Limits, NewEvent, Overflow, Position,
    Room, Start, SubscribeError, SubscribeOptions, Subscription, Topic,
};

const EPOCH: u64 = 7;
const TOPICS: [&str; 3] = ["a", "b", "a.b"];
const FILTERS: [&str; 4] = ["a", "*", ">", "a.>"];

/// Runs a program of bytes: each byte publishes, subscribes from a position, or reads.
///
/// # Panics
/// If order, index or position of a subscription breaks the protocol.
pub fn resume(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    let mut next = move || bytes.next();
    let hub = Hub::<Bytes>::new(HubConfig {
        history: HistoryLimits {
            max_events: next().map_or(4, |most| usize::from(most % 32)),
            ..HistoryLimits::default()
        },
        ..HubConfig::new(EPOCH)
    });
    let mut audited: Option<Audited> = None;
    while let Some(action) = next() {
        match action % 4 {
            0 | 1 => {
                let topic = Topic::new(TOPICS[usize::from(action / 4) % 3]).expect("is one");
                let event = NewEvent::new(topic, Bytes::from_static(b"x"));
                hub.publish([event], Instant::now()).expect("it is open");
            }
            2 => {
                drop(audited.take());
                let start = match next() {
                    None => Start::Live,
                    Some(0) => Start::Last(u32::from(next().unwrap_or(0))),
                    Some(1) => after(EPOCH, u64::MAX),
                    Some(2) => after(EPOCH + 1, next().unwrap_or(0).into()),
                    Some(_) => after(EPOCH, next().unwrap_or(0).into()),
                };
                audited = Audited::begin(&hub, start, action);
            }
            _ => _ = audited.as_mut().map(|audited| audited.read(action)),
        }
    }
    if let Some(mut audited) = audited {
        while audited.read(u8::MAX) {}
        assert_eq!(audited.subscription.backlog(), 0);
    }
}

const fn after(epoch: u64, sequence: u64) -> Start {
    Start::After(Position { epoch, sequence })
}

struct Audited {
    subscription: Subscription<Bytes>,
    next_index: u64,
    floor: u64,
    batch: Batch<Bytes>,
}

impl Audited {
    fn begin(hub: &Hub<Bytes>, start: Start, choice: u8) -> Option<Self> {
        let filter = Filter::new(FILTERS[usize::from(choice / 4) % 4]).expect("is one");
        let options = SubscribeOptions {
            start,
            limits: Limits {
                max_events: NonZeroU64::new(u64::from(choice) / 16 + 1).expect("at least 1"),
                overflow: match choice & 16 {
                    0 => Overflow::DropOldest,
                    _ => Overflow::Conflate,
                },
                ..Limits::default()
            },
            ..SubscribeOptions::new(ClientId::new("c").expect("is one"), vec![filter])
        };
        let head = hub.position();
        let ahead = matches!(start, Start::After(Position { epoch: EPOCH, sequence }) if sequence > head.sequence);
        match hub.subscribe(options, Instant::now()) {
            Ok(subscription) => {
                assert!(!ahead, "{start:?} is ahead of {head:?}");
                Some(Self {
                    next_index: subscription.next_index(),
                    floor: 0,
                    subscription,
                    batch: Batch::default(),
                })
            }
            Err(SubscribeError::PositionAhead { .. }) => {
                assert!(ahead, "{start:?} is not ahead of {head:?}");
                None
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// Reads once. Returns whether something came.
    fn read(&mut self, room: u8) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.batch.clear();
        let room = Room::events(usize::from(room) / 4 + 1);
        match self.subscription.poll_next(&mut cx, room, &mut self.batch) {
            Poll::Pending => return false,
            Poll::Ready(Err(reason)) => panic!("ended: {reason:?}"),
            Poll::Ready(Ok(())) => {}
        }
        for gap in &self.batch.gaps {
            assert!(gap.first_sequence <= gap.last_sequence);
            if gap.count > 0 {
                assert_eq!(gap.first_index, self.next_index);
                self.next_index += gap.count;
            }
        }
        if !self.batch.events.is_empty() {
            assert_eq!(self.batch.first_index, self.next_index);
        }
        for event in &self.batch.events {
            assert!(event.sequence() > self.floor, "order");
            self.floor = event.sequence();
            self.next_index += 1;
        }
        assert_eq!(self.subscription.next_index(), self.next_index);
        true
    }
}
