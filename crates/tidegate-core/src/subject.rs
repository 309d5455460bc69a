//! The subject of an event, its topic and key, as a number.
//!
//! Conflation asks of each event which older one has the same topic and key, in each conflating feed that it reaches,
//! with the lock of that feed held. Names can be long: a key may have a megabyte. So they are hashed once for an event,
//! outside of all locks, and feeds compare the hashes alone. A hash has 128 bits and a key of the process (SipHash, as in
//! the maps of the standard library): nobody outside can find two names with one hash, and by chance it happens
//! once in 2^64 names.

use std::{
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState},
    num::NonZeroU64,
    sync::LazyLock,
};

use crate::topic::Topic;

/// The keys of the two halves of a hash.
static KEYS: LazyLock<[RandomState; 2]> =
    LazyLock::new(|| [RandomState::new(), RandomState::new()]);

#[cfg(test)]
thread_local! {
    static HASHED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// How many subjects this thread has hashed since the last call.
#[cfg(all(test, not(tidegate_loom)))]
pub(crate) fn hashed() -> u64 {
    HASHED.replace(0)
}

/// The topic and key of an event, hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subject {
    /// One half. Not zero, so that an event without a subject takes no more room.
    high: NonZeroU64,
    /// The other half.
    low: u64,
}

/// The way in which maps find a subject, which is a hash already.
pub(crate) type BySubject = BuildHasherDefault<Low>;

/// A hasher whose result is the number that it was given.
#[derive(Debug, Default)]
pub(crate) struct Low(u64);

impl Subject {
    /// The subject of an event. An event without a key has its topic as key; none if it stands for itself, as one
    /// without a key to a single client does.
    pub(crate) fn of(topic: &Topic, key: Option<&str>) -> Option<Self> {
        if key.is_none() && topic.is_reserved() {
            return None;
        }
        #[cfg(test)]
        HASHED.set(HASHED.get() + 1);
        let topic = topic.as_str();
        let [high, low] = [0, 1].map(|half| {
            let keys: &[RandomState; 2] = &KEYS;
            // As a pair, which marks where the one name ends and the other begins.
            keys[half].hash_one((topic, key.unwrap_or(topic)))
        });
        Some(Self {
            high: NonZeroU64::new(high).unwrap_or(NonZeroU64::MIN),
            low,
        })
    }
}

impl Hash for Subject {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low);
    }
}

impl Hasher for Low {
    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Nothing but subjects is hashed so.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::Subject;
    use crate::topic::Topic;

    #[test]
    fn subjects_are_equal_as_topic_and_key_are() {
        let subject = |topic, key| Subject::of(&Topic::new(topic).unwrap(), key);
        assert_eq!(subject("a", None), subject("a", Some("a")));
        assert_eq!(subject("a", Some("b")), subject("a", Some("b")));
        let all = [
            subject("a", None),
            subject("a", Some("")),
            subject("a", Some("b")),
            subject("ab", None),
            subject("ab", Some("")),
            subject("b", Some("a")),
            subject("$client.c", Some("a")),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(one.is_some());
            assert!(all[i + 1..].iter().all(|other| other != one), "{i}");
        }
        assert_eq!(subject("$client.c", None), None);
    }
}
