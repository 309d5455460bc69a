//! The counts of a check.

use std::collections::BTreeMap;

use tidegate_proto::v1::Gap;

use crate::record::{Ending, Stream};

/// The counts of the streams that were checked.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Streams that were opened.
    pub streams: u64,
    /// Streams among them that resumed from a position.
    pub resumed: u64,
    /// Events delivered.
    pub delivered: u64,
    /// Events counted by gaps, by reason.
    pub missed: BTreeMap<&'static str, u64>,
    /// Gaps, by reason.
    pub gaps: BTreeMap<&'static str, u64>,
    /// Endings, by reason.
    pub endings: BTreeMap<String, u64>,
}

// ===== impl Tally =====

impl Tally {
    /// Returns the delivery slots: events delivered, and events counted as missing.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.delivered + self.missed.values().sum::<u64>()
    }

    /// Adds the counts of another check.
    pub fn add(&mut self, other: &Self) {
        self.streams += other.streams;
        self.resumed += other.resumed;
        self.delivered += other.delivered;
        for (into, from) in [
            (&mut self.missed, &other.missed),
            (&mut self.gaps, &other.gaps),
        ] {
            for (name, count) in from {
                *into.entry(name).or_default() += count;
            }
        }
        for (name, count) in &other.endings {
            *self.endings.entry(name.clone()).or_default() += count;
        }
    }

    pub(super) fn open(&mut self, stream: &Stream) {
        self.streams += 1;
        self.resumed += u64::from(stream.request.resume_after.is_some());
        let ending = match &stream.ending {
            None | Some(Ending::Cancelled) => "cancelled by the client".to_owned(),
            Some(Ending::Finished) => "OK".to_owned(),
            Some(Ending::Status {
                reason: Some(reason),
                ..
            }) => reason.clone(),
            Some(Ending::Status { code, .. }) => format!("broken off ({code:?})"),
        };
        *self.endings.entry(ending).or_default() += 1;
    }

    pub(super) fn count(&mut self, gap: &Gap) {
        let reason = gap.reason().as_str_name().trim_start_matches("GAP_REASON_");
        if gap.count > 0 {
            *self.missed.entry(reason).or_default() += gap.count;
        }
        *self.gaps.entry(reason).or_default() += 1;
    }
}
