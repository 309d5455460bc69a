//! Predicates and passing over: a subscription is given exactly the events that pass, by comparison with a plain list.

use std::{
    sync::{Mutex, mpsc},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tidegate_core::{
    Batch, ClientId, Filter, Hub, HubConfig, Limits, NewEvent, Payload, Predicate, Room, Start,
    SubscribeOptions, Subscription, Topic,
};

/// A payload that predicates look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number(u64);

impl Payload for Number {
    fn size(&self) -> usize {
        8
    }
}

#[derive(Debug, Clone)]
enum Action {
    /// Publishes so many numbers, to `a` or `b` in turn.
    Publish(u64),
    /// Subscribes with one of three predicates or none, and limits.
    Subscribe {
        predicate: usize,
        max_events: u64,
        last: u32,
    },
    Poll(usize, usize),
    PassOver(usize),
    Drop(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (1..6u64).prop_map(Action::Publish),
        2 => (0..4usize, 1..8u64, 0..5u32).prop_map(|(predicate, max_events, last)| {
            Action::Subscribe { predicate, max_events, last }
        }),
        4 => (any::<usize>(), 1..5usize).prop_map(|(i, room)| Action::Poll(i, room)),
        1 => any::<usize>().prop_map(Action::PassOver),
        1 => any::<usize>().prop_map(Action::Drop),
    ]
}

/// A subscription, and the sequences of all that matches it, from its first index on.
struct Subscriber {
    subscription: Subscription<Number>,
    wants: fn(u64) -> bool,
    matching: Vec<u64>,
}

const WANTS: [fn(u64) -> bool; 4] = [|_| true, |n| n % 2 == 0, |n| n % 3 == 0, |_| false];

impl Subscriber {
    fn poll(&mut self, room: usize) -> Result<(), TestCaseError> {
        let mut batch = Batch::default();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(polled) =
            self.subscription
                .poll_next(&mut cx, Room::events(room), &mut batch)
        {
            prop_assert_eq!(polled, Ok(()));
            for gap in &batch.gaps {
                let first = usize::try_from(gap.first_index).unwrap();
                let last = first + usize::try_from(gap.count).unwrap() - 1;
                prop_assert!(self.matching[first] >= gap.first_sequence);
                prop_assert!(self.matching[last] <= gap.last_sequence);
            }
            for (i, event) in (batch.first_index..).zip(&batch.events) {
                let i = usize::try_from(i).unwrap();
                prop_assert_eq!(event.sequence(), self.matching[i], "at index {}", i);
                prop_assert!((self.wants)(event.payload().0));
            }
        }
        prop_assert_eq!(self.subscription.next_index(), self.matching.len() as u64);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// An event that does not pass is as if it had never been there: in order, indexes, gaps, backlog and accounts.
    #[test]
    fn a_predicate_selects_exactly_the_events_that_pass(actions in prop::collection::vec(action(), 1..60)) {
        let hub = Hub::new(HubConfig::new(1));
        let predicates: Vec<_> = WANTS[1..]
            .iter()
            .map(|wants| Predicate::new(|number: &Number| wants(number.0)))
            .collect();
        let mut published = Vec::new();
        let mut subscribers: Vec<Subscriber> = Vec::new();
        for (step, action) in actions.into_iter().enumerate() {
            match action {
                Action::Publish(count) => {
                    let topic = Topic::new(if step % 2 == 0 { "a" } else { "b" }).unwrap();
                    let head = published.len() as u64;
                    let numbers = head + 1..=head + count;
                    let events = numbers.clone().map(|n| NewEvent::new(topic.clone(), Number(n)));
                    hub.publish(events, Instant::now()).unwrap();
                    for number in numbers {
                        published.push(number);
                        for subscriber in &mut subscribers {
                            if (subscriber.wants)(number) {
                                subscriber.matching.push(number);
                            }
                        }
                    }
                }
                Action::Subscribe { predicate, max_events, last } => {
                    let id = ClientId::new(&format!("c{step}")).unwrap();
                    let mut options = SubscribeOptions::new(id, vec![Filter::everything()]);
                    options.limits = Limits { max_events: max_events.try_into().unwrap(), ..Limits::default() };
                    options.start = Start::Last(last);
                    let wants = WANTS[predicate];
                    let predicate = predicate.checked_sub(1).map(|i| &predicates[i]);
                    let subscription = hub.subscribe_matching(options, predicate, Instant::now()).unwrap();
                    let mut matching: Vec<_> = published.iter().rev().copied()
                        .filter(|number| wants(*number))
                        .take(last as usize)
                        .collect();
                    matching.reverse();
                    let mut subscriber = Subscriber { subscription, wants, matching };
                    // Its replay is over when it is looked at.
                    subscriber.poll(100)?;
                    subscribers.push(subscriber);
                }
                Action::Poll(i, room) if !subscribers.is_empty() => {
                    let i = i % subscribers.len();
                    subscribers[i].poll(room)?;
                }
                Action::PassOver(i) if !subscribers.is_empty() => {
                    let i = i % subscribers.len();
                    let Subscriber { subscription, matching, .. } = &mut subscribers[i];
                    let through = hub.position().sequence.saturating_sub(2);
                    let before = usize::try_from(subscription.next_index()).unwrap();
                    subscription.pass_over(through);
                    let after = usize::try_from(subscription.next_index()).unwrap();
                    prop_assert!(matching[before..after].iter().all(|number| *number <= through));
                    // The rest up to there is an overflow that reaches beyond.
                    let left = matching[after..].iter().filter(|number| **number <= through).count() as u64;
                    let behind = subscription.backlog();
                    prop_assert!(left == 0 || behind > subscription.limits().max_events.get());
                }
                Action::Drop(i) if !subscribers.is_empty() => {
                    let i = i % subscribers.len();
                    subscribers.swap_remove(i);
                }
                Action::Poll(..) | Action::PassOver(_) | Action::Drop(_) => {}
            }
            let listed = hub.subscriptions();
            prop_assert_eq!(listed.len(), subscribers.len());
            let mut behind = 0;
            for Subscriber { subscription, matching, .. } in &subscribers {
                let backlog = matching.len() as u64 - subscription.next_index();
                prop_assert_eq!(subscription.backlog(), backlog);
                let info = listed.iter().find(|info| info.id == subscription.id()).unwrap();
                prop_assert_eq!(info, &subscription.info());
                behind += backlog;
            }
            let stats = hub.stats();
            prop_assert_eq!(
                stats.matched + stats.replayed,
                stats.handed_off + stats.overflowed + stats.abandoned + behind
            );
        }
    }
}

/// Subscribes to everything that passes.
fn subscribe(
    hub: &Hub<Number>,
    client: &str,
    predicate: &Predicate<Number>,
) -> Subscription<Number> {
    let id = ClientId::new(client).unwrap();
    let options = SubscribeOptions::new(id, vec![Filter::everything()]);
    hub.subscribe_matching(options, Some(predicate), Instant::now())
        .unwrap()
}

/// A predicate that comes while a publisher is between running those that it found and taking its lock is run
/// as well, and under no lock: this one takes them itself.
#[test]
fn a_late_predicate_is_evaluated_outside_every_lock() {
    let hub = Hub::new(HubConfig::new(1));
    let (is_asked, asked) = mpsc::channel();
    let (answer, answers) = mpsc::channel();
    let answers = Mutex::new(answers);
    let first = Predicate::new(move |_: &Number| {
        is_asked.send(()).unwrap();
        answers.lock().unwrap().recv().unwrap()
    });
    let _waiting = subscribe(&hub, "first", &first);
    let (is_published, published) = mpsc::channel();
    let publisher = hub.clone();
    let publishing = thread::spawn(move || {
        let event = NewEvent::new(Topic::new("a").unwrap(), Number(1));
        let matched = publisher.publish([event], Instant::now()).unwrap().matched;
        is_published.send(matched).unwrap();
    });
    asked.recv().unwrap();
    let inside = hub.clone();
    let late = Predicate::new(move |_: &Number| inside.stats().subscriptions == 2);
    let mut late = subscribe(&hub, "late", &late);
    answer.send(true).unwrap();
    let matched = published.recv_timeout(Duration::from_secs(30));
    assert_eq!(matched, Ok(2), "it waits for itself, or was not asked");
    publishing.join().unwrap();
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    let polled = late.poll_next(&mut cx, Room::events(1), &mut batch);
    assert_eq!(polled, Poll::Ready(Ok(())));
    assert_eq!(batch.events[0].payload(), &Number(1));
}
