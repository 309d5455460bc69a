//! The ground truth: the events that were published, by the acknowledgments of the server.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher as _},
};

use tidegate_proto::v1::{NewEvent, PublishResponse};

use crate::violation::{Fault, Location, Violation};

/// An upper bound of the bytes that an event takes on the wire besides its topic, key, payload and attributes.
const EVENT_OVERHEAD: usize = 48;

/// The events that were published to a server, over all its epochs.
#[derive(Debug, Default)]
pub struct Truth {
    topics: Vec<String>,
    numbers: HashMap<String, u32>,
    logs: HashMap<u64, Log>,
    /// Batches that the server has not answered: stored or not.
    unanswered: Vec<Vec<Published>>,
}

/// The events that were published in one epoch, by sequence. A single server numbers from 1, without holes.
#[derive(Debug, Default)]
pub struct Log {
    events: Vec<Option<Published>>,
}

/// An event that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The number of its topic in [`Truth`].
    pub(crate) topic: u32,
    /// An upper bound of the bytes that it counts against limits.
    pub(crate) size: u32,
    /// A number that is equal for events of the same topic and key, which replace one another.
    pub(crate) identity: u64,
    /// A hash of everything that a subscriber gets of it.
    pub(crate) digest: u64,
    /// The number in its payload, for predicates.
    pub(crate) number: u64,
}

/// A predicate over the number in a payload: the remainder of a division, or [`LAST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remainder {
    /// The number to divide by, not 0.
    pub divisor: u64,
    /// The remainder that matches.
    pub remainder: u64,
}

/// The number that every predicate matches.
pub const LAST: u64 = u64::MAX;

/// Returns the number in the first bytes of a payload, 0 if it is shorter.
#[must_use]
pub fn number_of(payload: &[u8]) -> u64 {
    payload
        .first_chunk()
        .map_or(0, |first| u64::from_le_bytes(*first))
}

/// Returns a hash of the parts of an event that a subscriber gets.
#[must_use]
pub fn digest(
    topic: &[u8],
    key: &[u8],
    payload: &[u8],
    attributes: &BTreeMap<String, String>,
) -> u64 {
    hash((topic, key, payload, attributes))
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

// ===== impl Truth =====

impl Truth {
    /// Records an event that is about to be published.
    ///
    /// # Panics
    /// If the event is larger than 4 GiB, or there are more than 2^32 topics.
    pub fn prepare(&mut self, event: &NewEvent) -> Published {
        let topic = match self.numbers.get(&event.topic) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.topics.len()).expect("there are few topics");
                self.topics.push(event.topic.clone());
                self.numbers.insert(event.topic.clone(), number);
                number
            }
        };
        let digest = digest(
            event.topic.as_bytes(),
            event.key.as_bytes(),
            &event.payload,
            &event.attributes,
        );
        // Conflation replaces an event to one client only if it has a key.
        let is_unique = event.topic.starts_with('$') && event.key.is_empty();
        let attributes = event.attributes.iter();
        let attributes: usize = attributes
            .map(|(name, value)| name.len() + value.len() + 8)
            .sum();
        let named = event.topic.len() + event.key.len() + event.payload.len() + attributes;
        Published {
            topic,
            size: u32::try_from(named + EVENT_OVERHEAD).expect("events are far smaller"),
            identity: if is_unique {
                digest
            } else {
                hash((&event.topic, &event.key))
            },
            digest,
            number: number_of(&event.payload),
        }
    }

    /// Records that the server has acknowledged a batch.
    ///
    /// # Errors
    /// [`Violation::SilentLoss`] if the answer has another number of events, [`Violation::Order`] if it gives a
    /// sequence that another event has.
    pub fn acknowledge(
        &mut self,
        batch: &[Published],
        answer: &PublishResponse,
    ) -> Result<(), Violation> {
        let count = batch.len() as u64;
        let spans = answer.last_sequence.checked_sub(answer.first_sequence);
        if u64::from(answer.count) != count || spans.map(|span| span + 1) != Some(count) {
            return Err(Violation::SilentLoss(Fault::new(
                Location::Publisher,
                "a batch is acknowledged with another number of events than it has",
                count,
                answer.count.into(),
            )));
        }
        self.log_mut(answer.epoch)
            .place(answer.first_sequence, batch)
    }

    /// Records a batch without an answer: stored or not, until [`resolve`](Self::resolve) finds one of its events.
    pub fn leave_open(&mut self, batch: Vec<Published>) {
        self.unanswered.push(batch);
    }

    /// Finds out which unanswered batches were stored, and where, from `deliveries`: epoch, sequence and digest.
    ///
    /// # Errors
    /// [`Violation::Order`] if two events would have one sequence.
    pub fn resolve(
        &mut self,
        deliveries: impl IntoIterator<Item = (u64, u64, u64)>,
    ) -> Result<(), Violation> {
        let mut open = HashMap::new();
        for (number, batch) in self.unanswered.iter().enumerate() {
            open.extend(
                batch
                    .iter()
                    .zip(0u64..)
                    .map(|(event, i)| (event.digest, (number, i))),
            );
        }
        if open.is_empty() {
            return Ok(());
        }
        for (epoch, sequence, digest) in deliveries {
            let log = self.logs.entry(epoch).or_default();
            if log.get(sequence).is_none()
                && let Some((batch, i)) = open.get(&digest)
                && sequence > *i
            {
                log.place(sequence - i, &self.unanswered[*batch])?;
            }
        }
        Ok(())
    }

    /// Returns the log of `epoch`.
    #[must_use]
    pub fn log(&self, epoch: u64) -> Option<&Log> {
        self.logs.get(&epoch)
    }

    /// Returns the number of events that are known to be stored, over all epochs.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.logs
            .values()
            .map(|log| log.events.iter().flatten().count() as u64)
            .sum()
    }

    /// Returns, by number of topic, whether a subscription of `client` with `filters` gets it.
    #[must_use]
    pub(crate) fn wanted(&self, client: &str, filters: &[String]) -> Vec<bool> {
        let own = format!("$client.{client}");
        let is_wanted = |topic: &String| {
            *topic == own || filters.iter().any(|filter| filter_matches(filter, topic))
        };
        self.topics.iter().map(is_wanted).collect()
    }

    fn log_mut(&mut self, epoch: u64) -> &mut Log {
        self.logs.entry(epoch).or_default()
    }
}

// ===== impl Remainder =====

impl Remainder {
    /// Whether an event with this number in its payload matches.
    #[must_use]
    pub const fn matches(self, number: u64) -> bool {
        number == LAST || number % self.divisor == self.remainder
    }
}

// ===== impl Log =====

impl Log {
    /// Returns the sequence of the newest event, 0 if there is none.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.events.len() as u64
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<&Published> {
        self.events.get(slot(sequence)?)?.as_ref()
    }

    /// Returns, for each event by its sequence less 1, the sequence of the next event of the same topic and key that
    /// `predicate` matches; 0 if there is none.
    pub(crate) fn successors(&self, predicate: Option<Remainder>) -> Vec<u64> {
        let mut newest = HashMap::new();
        let mut successors = vec![0; self.events.len()];
        for (i, event) in self.events.iter().enumerate().rev() {
            if let Some(event) = event
                && predicate.is_none_or(|predicate| predicate.matches(event.number))
            {
                successors[i] = newest.insert(event.identity, i as u64 + 1).unwrap_or(0);
            }
        }
        successors
    }

    fn place(&mut self, first: u64, batch: &[Published]) -> Result<(), Violation> {
        for (sequence, event) in (first..).zip(batch) {
            let Some(slot) = slot(sequence) else { continue };
            if self.events.len() <= slot {
                self.events.resize(slot + 1, None);
            }
            if self.events[slot].is_some_and(|other| other != *event) {
                return Err(Violation::Order(Fault::new(
                    Location::Publisher,
                    "two events have one sequence",
                    self.events.len() as u64,
                    sequence,
                )));
            }
            self.events[slot] = Some(*event);
        }
        Ok(())
    }
}

fn slot(sequence: u64) -> Option<usize> {
    usize::try_from(sequence.checked_sub(1)?).ok()
}

/// Whether `filter` matches `topic`. A naive second implementation of the protocol's rules.
pub(crate) fn filter_matches(filter: &str, topic: &str) -> bool {
    let mut tokens = topic.split('.');
    let mut is_first = true;
    for wanted in filter.split('.') {
        let Some(token) = tokens.next() else {
            return false;
        };
        if matches!(wanted, "*" | ">") && is_first && token.starts_with('$') {
            return false;
        }
        match wanted {
            ">" => return true,
            "*" => {}
            _ if wanted == token => {}
            _ => return false,
        }
        is_first = false;
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_protocol_says() {
        for (filter, yes, no) in [
            ("orders.eu", &["orders.eu"][..], &["orders.eu.created"][..]),
            ("orders.*", &["orders.eu"], &["orders", "orders.eu.created"]),
            (
                "orders.*.created",
                &["orders.eu.created"],
                &["orders.created"],
            ),
            ("orders.>", &["orders.eu", "orders.eu.created"], &["orders"]),
            (">", &["a", "a.b"], &["$client.ann"]),
        ] {
            assert!(
                yes.iter().all(|topic| filter_matches(filter, topic)),
                "{filter}"
            );
            assert!(
                !no.iter().any(|topic| filter_matches(filter, topic)),
                "{filter}"
            );
        }
    }
}
