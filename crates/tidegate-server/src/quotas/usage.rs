//! The use of each address and principal.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate::{Caller, OverQuota};

use super::{
    bucket::Bucket,
    config::{Quota, QuotaConfig},
};
use crate::address::network_of;

/// The kinds of quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Subscriptions,
    Filters,
    PublishEvents,
    PublishBytes,
    Connections,
    AuthFailures,
}

/// The name of the quota on connections, of a principal here and of an address in
/// [`Admission`](crate::Admission).
pub(crate) const CONNECTIONS: &str = "connections";

/// The limits in force, and the use of every user.
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: QuotaConfig,
    /// Users that use something, or have a bucket that is not full.
    pub(super) users: HashMap<User, Usage>,
}

/// Somebody who is held to quotas.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum User {
    Address(IpAddr),
    Principal(Arc<str>),
}

/// The use of one user.
#[derive(Debug, Default)]
pub(super) struct Usage {
    subscriptions: usize,
    /// The number of subscriptions that hold each filter. No entry is 0, so the length is the number of filters.
    filters: HashMap<Arc<str>, usize>,
    events: Bucket,
    bytes: Bucket,
    pub(super) connections: usize,
    pub(super) auth_failures: Bucket,
}

// ===== impl State =====

impl State {
    /// The quota that `user` would exceed with one more subscription of `filters`.
    pub(super) fn count_exceeded(&self, user: &User, filters: &[Arc<str>]) -> Option<Kind> {
        let quota = user.quota(&self.config);
        let nothing = Usage::default();
        let usage = self.users.get(user).unwrap_or(&nothing);
        if exceeds(usage.subscriptions + 1, quota.subscriptions) {
            return Some(Kind::Subscriptions);
        }
        let max_filters = quota.filters?;
        // A request may repeat a filter, which counts once.
        let new = filters
            .iter()
            .enumerate()
            .filter(|(i, filter)| {
                !usage.filters.contains_key(*filter) && !filters[..*i].contains(filter)
            })
            .count();
        (usage.filters.len() + new > max_filters).then_some(Kind::Filters)
    }

    /// The rate that `user` has exceeded by publishing, and the wait until its bucket holds something. Of two, the one
    /// with the longer wait.
    pub(super) fn rate_exceeded(&self, user: &User, now: Instant) -> Option<(Kind, Duration)> {
        let quota = user.quota(&self.config);
        let usage = self.users.get(user)?;
        let events = usage.events.wait(quota.publish_events, now);
        let bytes = usage.bytes.wait(quota.publish_bytes, now);
        let waits = [(Kind::PublishEvents, events), (Kind::PublishBytes, bytes)];
        waits
            .into_iter()
            .filter_map(|(kind, wait)| Some((kind, wait?)))
            .max_by_key(|(_, wait)| *wait)
    }

    /// Takes a batch from the buckets of `user`.
    pub(super) fn take(&mut self, user: &User, events: f64, bytes: f64, now: Instant) {
        let quota = *user.quota(&self.config);
        if !quota.has_rates() {
            return;
        }
        let usage = self.users.entry(user.clone()).or_default();
        usage.events.take(events, quota.publish_events, now);
        usage.bytes.take(bytes, quota.publish_bytes, now);
    }

    /// Forgets users with no use and full buckets: they are as users that were never seen.
    pub(super) fn forget_idle(&mut self, now: Instant) {
        let config = self.config;
        self.users.retain(|user, usage| {
            let quota = user.quota(&config);
            usage.subscriptions > 0
                || usage.connections > 0
                || !usage
                    .auth_failures
                    .is_full(config.address_auth_failures, now)
                || !usage.events.is_full(quota.publish_events, now)
                || !usage.bytes.is_full(quota.publish_bytes, now)
        });
    }
}

/// Whether `count` is more than `limit` allows.
pub(super) fn exceeds(count: usize, limit: Option<usize>) -> bool {
    limit.is_some_and(|limit| count > limit)
}

/// The users that a call of `caller` counts for: its address, and its principal if it has one.
pub(super) fn users(caller: &Caller) -> Vec<User> {
    let address = caller.address.map(|address| network_of(address.ip()));
    let principal = caller.principal.clone().map(User::Principal);
    address
        .map(User::Address)
        .into_iter()
        .chain(principal)
        .collect()
}

// ===== impl Usage =====

impl Usage {
    /// Counts a subscription.
    pub(super) fn add(&mut self, filters: &[Arc<str>]) {
        self.subscriptions += 1;
        for filter in filters {
            *self.filters.entry(Arc::clone(filter)).or_default() += 1;
        }
    }

    /// Ends the count of a subscription.
    pub(super) fn subtract(&mut self, filters: &[Arc<str>]) {
        self.subscriptions -= 1;
        for filter in filters {
            if let Some(holders) = self.filters.get_mut(filter) {
                *holders -= 1;
                if *holders == 0 {
                    self.filters.remove(filter);
                }
            }
        }
    }
}

// ===== impl User =====

impl User {
    /// The limits that `config` sets for this user.
    const fn quota<'a>(&self, config: &'a QuotaConfig) -> &'a Quota {
        match self {
            Self::Address(_) => &config.address,
            Self::Principal(_) => &config.principal,
        }
    }
}

// ===== impl Kind =====

impl Kind {
    pub(super) const ALL: [Self; 6] = [
        Self::Subscriptions,
        Self::Filters,
        Self::PublishEvents,
        Self::PublishBytes,
        Self::Connections,
        Self::AuthFailures,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Subscriptions => "subscriptions",
            Self::Filters => "filters",
            Self::PublishEvents => "publish_events",
            Self::PublishBytes => "publish_bytes",
            Self::Connections => CONNECTIONS,
            Self::AuthFailures => "auth_failures",
        }
    }

    pub(super) const fn exceeded(self, retry_after: Duration) -> OverQuota {
        OverQuota {
            quota: self.name(),
            retry_after,
        }
    }
}
