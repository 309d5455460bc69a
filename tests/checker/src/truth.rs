//! The ground truth: what was published, by the acknowledgments that publishers got.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher as _},
};

use tidegate_proto::v1::{NewEvent, PublishResponse};

use crate::check::{Fault, Location, Violation};

/// More than an event takes on the wire besides its topic, key, payload and attributes.
const EVENT_OVERHEAD: usize = 48;

/// Everything that was published to a server, over all its epochs.
#[derive(Debug, Default)]
pub struct Truth {
    topics: Vec<String>,
    numbers: HashMap<String, u32>,
    logs: HashMap<u64, Log>,
    /// Batches whose publisher never learned what became of them.
    unanswered: Vec<Vec<Published>>,
}

/// What was published in one epoch, by sequence. A single server numbers from 1, without holes.
#[derive(Debug, Default)]
pub struct Log {
    events: Vec<Option<Published>>,
}

/// An event that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The number of its topic in [`Truth`].
    pub(crate) topic: u32,
    /// The most bytes that it counts against limits.
    pub(crate) size: u32,
    /// What newer events of the same topic and key share with it.
    pub(crate) identity: u64,
    /// Stands for everything that a subscriber is to get of it.
    pub(crate) digest: u64,
}

/// A hash of what a subscriber gets of an event.
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
    /// Notes an event that is about to be published.
    ///
    /// # Panics
    /// When it is larger than 4 GiB, or there are that many topics.
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
        // An event to one client is replaced only if it has a key.
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
        }
    }

    /// Notes that a batch was stored, as its publisher was told.
    ///
    /// # Errors
    /// When the answer cannot be, with what was answered before.
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

    /// Notes that nobody knows whether a batch was stored. Who is delivered one of its events tells.
    pub fn leave_open(&mut self, batch: Vec<Published>) {
        self.unanswered.push(batch);
    }

    /// Finds out what became of unanswered batches, from `deliveries`: epoch, sequence and digest.
    ///
    /// # Errors
    /// When two batches would have to be in one place.
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

    /// What was published in `epoch`.
    #[must_use]
    pub fn log(&self, epoch: u64) -> Option<&Log> {
        self.logs.get(&epoch)
    }

    /// How many events are known to be stored, over all epochs.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.logs
            .values()
            .map(|log| log.events.iter().flatten().count() as u64)
            .sum()
    }

    /// Which topics a subscription of `client` with `filters` gets.
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

// ===== impl Log =====

impl Log {
    /// The sequence of the newest event.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.events.len() as u64
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<&Published> {
        self.events.get(slot(sequence)?)?.as_ref()
    }

    /// For each event, by sequence less one, the sequence of the next of the same topic and key; 0 if there
    /// is none.
    pub(crate) fn successors(&self) -> Vec<u64> {
        let mut newest = HashMap::new();
        let mut successors = vec![0; self.events.len()];
        for (i, event) in self.events.iter().enumerate().rev() {
            if let Some(event) = event {
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

/// Whether `filter` matches `topic`: the rules of the protocol once more, without anything clever.
fn filter_matches(filter: &str, topic: &str) -> bool {
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
