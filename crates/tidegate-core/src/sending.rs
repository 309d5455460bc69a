//! Events that are being sent: large ones, of which the transport holds a part.
//!
//! # Why they are counted by themselves
//! A transport sends a large event from the event's own memory, piece by piece, and a peer that stops reading in the
//! middle keeps all of it. No eviction frees that: the hub cannot take back an event whose beginning was sent. If
//! it counted like the rest, a few hundred such peers would fill the memory budget, and the hub would evict everybody's
//! history in vain.
//!
//! So the distinct bytes of these events are counted beside the rest, an event that ten thousand streams send counts
//! once, and they have a share of the budget: half. When they need more, the streams that have been sending the
//! longest are ended as [stalled](crate::CloseReason::Stalled) and their transports told to give up, oldest first,
//! until the others are within the share. History and feeds have the other half for themselves.
//!
//! # Locks
//! One, which is taken when the sending of a large event begins and ends. No other is taken under it.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64 as AtomicCounter, Ordering::Relaxed},
    },
};

use crate::{event::Event, signal::Signal, sync::Mutex};

/// An event that is being sent, counted as such until it is dropped. [`Subscription::send`] makes it.
///
/// Keep it exactly as long as the transport holds bytes of the event. It dereferences to the event.
///
/// [`Subscription::send`]: crate::Subscription::send
pub struct Sending<P> {
    /// The event, which lives as long as this.
    event: Arc<Event<P>>,
    /// The count that it is part of.
    senders: Arc<Senders>,
    /// Its place in that count.
    ticket: u64,
    /// The signal of its subscription, which counts it too.
    signal: Arc<Signal>,
}

/// The events of a hub that are being sent, and by whom.
#[derive(Debug)]
pub(crate) struct Senders {
    /// The most bytes that they may hold together.
    share: u64,
    /// The distinct bytes that they hold. Written under the lock, read without it.
    bytes: AtomicCounter,
    /// Everything else.
    state: Mutex<State>,
}

/// The state behind the lock.
#[derive(Debug, Default)]
struct State {
    /// The next ticket: tickets are in the order in which sending began.
    next: u64,
    /// Sendings, by ticket, but for those whose streams were ended for their sake.
    going_on: BTreeMap<u64, Sender>,
    /// Addresses of the events of those, by ticket: they hold memory until their transports have given up.
    given_up: HashMap<u64, usize>,
    /// Every event that is being sent, by its address: while it is in here, it lives.
    events: HashMap<usize, Sent>,
    /// The distinct bytes of the sendings that go on.
    expected: u64,
}

/// One event that a stream is sending.
#[derive(Debug)]
struct Sender {
    /// The address of the event.
    event: usize,
    /// The signal of the subscription.
    signal: Arc<Signal>,
}

/// An event, and how many are sending it.
#[derive(Debug)]
struct Sent {
    /// The bytes that it holds.
    bytes: u64,
    /// Sendings of it.
    all: usize,
    /// Sendings of it that go on.
    going_on: usize,
}

// ===== impl Sending =====

impl<P> Sending<P> {
    /// Begins to count `event` as being sent by the subscription of `signal`. Returns the signals of those that have
    /// to make room for it, which the caller ends and resets, under no lock.
    pub(crate) fn begin(
        event: Arc<Event<P>>,
        senders: &Arc<Senders>,
        signal: &Arc<Signal>,
    ) -> (Self, Vec<Arc<Signal>>) {
        signal.note_sending(true);
        let (ticket, to_end) = senders.begin(address(&event), event.held(), signal);
        let sending = Self {
            event,
            senders: Arc::clone(senders),
            ticket,
            signal: Arc::clone(signal),
        };
        (sending, to_end)
    }
}

impl<P> Deref for Sending<P> {
    type Target = Event<P>;

    fn deref(&self) -> &Event<P> {
        &self.event
    }
}

impl<P> Drop for Sending<P> {
    fn drop(&mut self) {
        self.senders.finish(self.ticket);
        self.signal.note_sending(false);
    }
}

impl<P> fmt::Debug for Sending<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending")
            .field("sequence", &self.event.sequence())
            .finish_non_exhaustive()
    }
}

/// The identity of an event for as long as it lives.
fn address<P>(event: &Arc<Event<P>>) -> usize {
    Arc::as_ptr(event).addr()
}

// ===== impl Senders =====

impl Senders {
    /// No event yet, in a hub with this memory budget.
    pub(crate) fn new(memory_budget: u64) -> Self {
        Self {
            share: memory_budget / 2,
            bytes: AtomicCounter::new(0),
            state: Mutex::new(State::default()),
        }
    }

    /// The distinct bytes of the events that are being sent.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// The bytes beyond the share, which are about to be given up. Evicting something else for them would be in vain.
    pub(crate) fn excess(&self) -> u64 {
        self.bytes().saturating_sub(self.share)
    }

    /// Whether half of the share is used.
    pub(crate) fn is_half_used(&self) -> bool {
        self.bytes() > self.share / 2
    }

    /// Enters a sending. Returns its ticket, and the signals of the oldest ones that it takes to be within the
    /// share again. The new one is never among them: a stream may send one event, however small the budget.
    fn begin(&self, event: usize, bytes: u64, signal: &Arc<Signal>) -> (u64, Vec<Arc<Signal>>) {
        let mut state = self.state.lock();
        let ticket = state.next;
        state.next += 1;
        let signal = Arc::clone(signal);
        let sent = state.events.entry(event).or_insert(Sent {
            bytes,
            all: 0,
            going_on: 0,
        });
        sent.all += 1;
        sent.going_on += 1;
        let (is_new, is_expected) = (sent.all == 1, sent.going_on == 1);
        state.expected += if is_expected { bytes } else { 0 };
        if is_new {
            self.bytes.fetch_add(bytes, Relaxed);
        }
        let mut to_end = Vec::new();
        while state.expected > self.share
            && let Some((oldest, sender)) = state.going_on.pop_first()
        {
            state.give_up(oldest, sender.event);
            to_end.push(sender.signal);
        }
        // After the others had to go, and the newest: so it need not be told from them.
        state.going_on.insert(ticket, Sender { event, signal });
        (ticket, to_end)
    }

    /// Removes a sending.
    fn finish(&self, ticket: u64) {
        let mut state = self.state.lock();
        let sender = state.going_on.remove(&ticket);
        let event = match &sender {
            Some(sender) => {
                state.goes_on_no_more(sender.event);
                sender.event
            }
            None => state.given_up.remove(&ticket).expect("it was entered"),
        };
        let Entry::Occupied(mut sent) = state.events.entry(event) else {
            unreachable!("it is being sent");
        };
        sent.get_mut().all -= 1;
        if sent.get().all == 0 {
            let Sent { bytes, .. } = sent.remove();
            self.bytes.fetch_sub(bytes, Relaxed);
        }
        drop(state);
        // After the lock: with the last reference to a signal, wakers go.
        drop(sender);
    }
}

// ===== impl State =====

impl State {
    /// Counts a sending as given up.
    fn give_up(&mut self, ticket: u64, event: usize) {
        self.given_up.insert(ticket, event);
        self.goes_on_no_more(event);
    }

    /// Counts one sending of `event` less among those that go on.
    fn goes_on_no_more(&mut self, event: usize) {
        let sent = self.events.get_mut(&event).expect("it is being sent");
        sent.going_on -= 1;
        if sent.going_on == 0 {
            self.expected -= sent.bytes;
        }
    }
}

#[cfg(all(test, not(tidegate_loom)))]
mod tests {
    use super::*;

    fn signal() -> Arc<Signal> {
        Arc::new(Signal::new(false, None))
    }

    #[test]
    fn an_event_that_several_send_counts_once() {
        let (senders, signal) = (Senders::new(1_000), signal());
        let tickets: Vec<_> = (0..10)
            .map(|_| senders.begin(1, 100, &signal).0)
            .chain([senders.begin(2, 50, &signal).0])
            .collect();
        assert_eq!(senders.bytes(), 150);
        for ticket in &tickets[1..] {
            senders.finish(*ticket);
        }
        assert_eq!(senders.bytes(), 100);
        senders.finish(tickets[0]);
        assert_eq!(senders.bytes(), 0);
    }

    #[test]
    fn the_oldest_make_room_and_count_until_they_have_gone() {
        let senders = Senders::new(200);
        let signals = [(); 4].map(|()| signal());
        let is = |ended: &[Arc<Signal>], these: &[usize]| {
            ended.len() == these.len()
                && ended
                    .iter()
                    .zip(these)
                    .all(|(ended, i)| Arc::ptr_eq(ended, &signals[*i]))
        };
        let (first, ended) = senders.begin(1, 50, &signals[0]);
        assert!(is(&ended, &[]));
        let (second, ended) = senders.begin(2, 50, &signals[1]);
        assert!(is(&ended, &[]));
        let (third, ended) = senders.begin(3, 60, &signals[2]);
        assert!(is(&ended, &[0, 1]), "50 and 50 and 60 are more than 100");
        assert_eq!((senders.bytes(), senders.excess()), (160, 60));
        let (fourth, ended) = senders.begin(4, 40, &signals[3]);
        assert!(is(&ended, &[]), "those that have been ended count no more");
        for ticket in [first, second] {
            senders.finish(ticket);
        }
        assert_eq!((senders.bytes(), senders.excess()), (100, 0));
        senders.finish(third);
        senders.finish(fourth);
        assert_eq!(senders.bytes(), 0);
    }

    #[test]
    fn one_event_may_be_sent_whatever_the_budget() {
        let (senders, signal) = (Senders::new(10), signal());
        let (first, ended) = senders.begin(1, 1_000, &signal);
        assert!(ended.is_empty());
        let (second, ended) = senders.begin(2, 1_000, &signal);
        assert_eq!(ended.len(), 1);
        senders.finish(first);
        senders.finish(second);
        assert_eq!(senders.bytes(), 0);
    }
}
