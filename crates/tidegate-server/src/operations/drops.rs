//! Events that subscriptions have lost, counted as soon as that is certain.
//!
//! A subscription is told of its losses when it is polled, and one whose client has stopped reading is not: the count of
//! told losses stands still while everything is lost to it. So the losses that are pending are sampled, about once a
//! second, with the lags.

use std::collections::HashMap;

use tidegate::SubscriptionInfo;

/// The losses of all subscriptions, told or pending.
#[derive(Debug, Default)]
pub(crate) struct Drops {
    /// By the id of a subscription: the most that it had lost at any sample. Without those that have lost nothing.
    seen: HashMap<u64, u64>,
    totals: DropTotals,
}

/// The sums of the last sample.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DropTotals {
    /// Events that open subscriptions have lost and were not told of.
    pub(crate) pending: u64,
    /// Events that subscriptions have lost, ever. It never falls: events that a client is rescued from by resuming, or that
    /// an estimate took for lost, stay counted.
    pub(crate) dropped: u64,
}

impl Drops {
    /// Samples all subscriptions. Subscriptions that have ended are forgotten.
    pub(crate) fn sample(&mut self, subscriptions: &[SubscriptionInfo]) {
        let before = std::mem::take(&mut self.seen);
        self.totals.pending = 0;
        for info in subscriptions {
            self.totals.pending += info.pending_loss;
            let lost = info.lost + info.pending_loss;
            if lost > 0 {
                let seen = before.get(&info.id).copied().unwrap_or(0);
                // An estimate may have been too high: it is counted once.
                self.totals.dropped += lost.saturating_sub(seen);
                self.seen.insert(info.id, lost.max(seen));
            }
        }
    }

    pub(crate) const fn totals(&self) -> DropTotals {
        self.totals
    }
}

#[cfg(test)]
mod tests {
    use tidegate::ClientId;

    use super::*;

    fn info(id: u64, lost: u64, pending_loss: u64) -> SubscriptionInfo {
        SubscriptionInfo {
            id,
            client_id: ClientId::new("c").unwrap(),
            principal: None,
            backlog: pending_loss,
            handed_off: 0,
            lost,
            conflated: 0,
            is_stalled: false,
            pending_loss,
            pending_conflation: 0,
        }
    }

    #[test]
    fn a_loss_is_counted_once_when_it_is_certain() {
        let mut drops = Drops::default();
        let mut after = |samples: &[SubscriptionInfo]| {
            drops.sample(samples);
            let DropTotals { pending, dropped } = drops.totals();
            (pending, dropped)
        };
        assert_eq!(after(&[info(1, 0, 0), info(2, 0, 10)]), (10, 10));
        assert_eq!(after(&[info(1, 0, 5), info(2, 0, 30)]), (35, 35));
        // One is told, and the other has ended.
        assert_eq!(after(&[info(1, 5, 0)]), (0, 35));
        // An estimate falls, and what is lost after that counts from the highest.
        assert_eq!(after(&[info(1, 5, 10)]), (10, 45));
        assert_eq!(after(&[info(1, 5, 8)]), (8, 45));
        assert_eq!(after(&[info(1, 16, 0)]), (0, 46));
    }
}
