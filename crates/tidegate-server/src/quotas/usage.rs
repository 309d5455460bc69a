//! The use of each address and principal.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tidegate::{Caller, OverQuota};

use super::{
    bucket::Bucket,
    config::{Quota, QuotaConfig},
    filters::{CountedFilters, HeldFilters},
};
use crate::address::network_of;

/// The kinds of quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Subscriptions,
    Filters,
    FilterWork,
    FilterBytes,
    PublishEvents,
    PublishBytes,
    Connections,
    AuthFailures,
}

/// The name of the quota on connections, of a principal here and of an address in
/// [`Admission`](crate::Admission).
pub(crate) const CONNECTIONS: &str = "connections";

/// The most superseded streams of one user that do not count, where no quota says how many subscriptions it may have or
/// that is less.
const MIN_ENDING: usize = 16;

/// The limits in force, and the use of every user.
///
/// Its lock is held to find a user, and never for the work that a user's filters make: that is done under the lock of
/// the user, which only its own calls wait for.
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: QuotaConfig,
    /// Users that use something, or have a bucket that is not full.
    pub(super) users: HashMap<User, Arc<Mutex<Usage>>>,
}

/// Somebody who is held to quotas.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum User {
    Address(IpAddr),
    Principal(Arc<str>),
}

/// A user, with its use.
#[derive(Debug, Clone)]
pub(super) struct KnownUser {
    user: User,
    usage: Arc<Mutex<Usage>>,
}

/// The use of one user.
#[derive(Debug, Default)]
pub(super) struct Usage {
    subscriptions: usize,
    filters: HeldFilters,
    ending: Ending,
    events: Bucket,
    bytes: Bucket,
    pub(super) connections: usize,
    pub(super) auth_failures: Bucket,
}

/// The subscriptions of a user that a newer stream of the same client has superseded, and that are not gone yet. They
/// do not count for the quotas, but are bounded by them too: nobody may have more by taking over from itself.
#[derive(Debug, Default)]
struct Ending {
    subscriptions: usize,
    work: u64,
    bytes: u64,
}

// ===== impl State =====

impl State {
    /// `user` and its use, which is counted from now on.
    pub(super) fn user(&mut self, user: User) -> KnownUser {
        let usage = Arc::clone(self.users.entry(user.clone()).or_default());
        KnownUser { user, usage }
    }

    /// Forgets users with no use and full buckets: they are as users that were never seen.
    pub(super) fn forget_idle(&mut self, now: Instant) {
        let config = self.config;
        self.users.retain(|user, usage| {
            // Somebody else has found it, and may be about to count something.
            let Some(usage) = Arc::get_mut(usage) else {
                return true;
            };
            let usage = usage.get_mut().unwrap_or_else(PoisonError::into_inner);
            !usage.is_idle(user.quota(&config), &config, now)
        });
    }
}

// ===== impl KnownUser =====

impl KnownUser {
    /// Its use, locked. Of two users of one call, that of the address is locked first.
    pub(super) fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limits that `config` sets for it.
    pub(super) const fn quota<'a>(&self, config: &'a QuotaConfig) -> &'a Quota {
        self.user.quota(config)
    }

    /// Whether it is this principal.
    pub(super) fn is_principal(&self, principal: &Arc<str>) -> bool {
        matches!(&self.user, User::Principal(name) if name == principal)
    }

    /// Whether both are the same user.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.usage, &other.usage)
    }
}

/// Whether `count` is more than `limit` allows.
pub(super) fn exceeds(count: usize, limit: Option<usize>) -> bool {
    limit.is_some_and(|limit| count > limit)
}

/// The users that a call of `caller` counts for: its address, and its principal if it has one.
pub(super) fn users(caller: &Caller) -> impl Iterator<Item = User> {
    let address = caller.address.map(|address| network_of(address.ip()));
    let principal = caller.principal.clone().map(User::Principal);
    address.map(User::Address).into_iter().chain(principal)
}

// ===== impl Usage =====

impl Usage {
    /// The quota that one more subscription with `filters` would exceed, once `superseded` has ended.
    pub(super) fn count_exceeded(
        &self,
        quota: &Quota,
        filters: &CountedFilters,
        superseded: Option<&CountedFilters>,
    ) -> Option<Kind> {
        let superseded = superseded.filter(|superseded| self.may_end(quota, superseded));
        let subscriptions = self.subscriptions + 1 - usize::from(superseded.is_some());
        if exceeds(subscriptions, quota.subscriptions) {
            return Some(Kind::Subscriptions);
        }
        if quota.filters.is_none() && quota.filter_work.is_none() && quota.filter_bytes.is_none() {
            return None;
        }
        let total = self.filters.use_with(filters, superseded);
        if exceeds(total.filters, quota.filters) {
            return Some(Kind::Filters);
        }
        if quota.filter_work.is_some_and(|most| total.work > most) {
            return Some(Kind::FilterWork);
        }
        let too_large = quota.filter_bytes.is_some_and(|most| total.bytes > most);
        too_large.then_some(Kind::FilterBytes)
    }

    /// Whether a subscription with `filters` stops counting when it is superseded, although it is still there: not while
    /// as much of the user as its quotas allow is ending already.
    pub(super) fn may_end(&self, quota: &Quota, filters: &CountedFilters) -> bool {
        let most = quota
            .subscriptions
            .map_or(usize::MAX, |most| most.max(MIN_ENDING));
        let within = |use_: u64, most: Option<u64>| most.is_none_or(|most| use_ <= most);
        self.ending.subscriptions < most
            && within(self.ending.work + filters.work, quota.filter_work)
            && within(self.ending.bytes + filters.bytes(), quota.filter_bytes)
    }

    /// Counts a subscription.
    pub(super) fn add(&mut self, filters: &CountedFilters) {
        self.subscriptions += 1;
        self.filters.add(filters);
    }

    /// Ends the count of a subscription.
    pub(super) fn subtract(&mut self, filters: &CountedFilters) {
        self.subscriptions -= 1;
        self.filters.subtract(filters);
    }

    /// Moves a subscription to those that are ending.
    pub(super) fn begin_ending(&mut self, filters: &CountedFilters) {
        self.subtract(filters);
        self.ending.subscriptions += 1;
        self.ending.work += filters.work;
        self.ending.bytes += filters.bytes();
    }

    /// Removes a subscription from those that are ending.
    pub(super) fn end(&mut self, filters: &CountedFilters) {
        self.ending.subscriptions -= 1;
        self.ending.work -= filters.work;
        self.ending.bytes -= filters.bytes();
    }

    /// The rate that was exceeded by publishing, and the wait until its bucket holds something. Of two, the one with the
    /// longer wait.
    pub(super) fn rate_exceeded(&self, quota: &Quota, now: Instant) -> Option<(Kind, Duration)> {
        let events = self.events.wait(quota.publish_events, now);
        let bytes = self.bytes.wait(quota.publish_bytes, now);
        let waits = [(Kind::PublishEvents, events), (Kind::PublishBytes, bytes)];
        waits
            .into_iter()
            .filter_map(|(kind, wait)| Some((kind, wait?)))
            .max_by_key(|(_, wait)| *wait)
    }

    /// Takes a batch from the buckets.
    pub(super) fn take(&mut self, quota: &Quota, events: f64, bytes: f64, now: Instant) {
        if quota.has_rates() {
            self.events.take(events, quota.publish_events, now);
            self.bytes.take(bytes, quota.publish_bytes, now);
        }
    }

    /// The things that count for the quotas.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, super::filters::FilterUse) {
        (self.subscriptions, self.filters.total())
    }

    fn is_idle(&self, quota: &Quota, config: &QuotaConfig, now: Instant) -> bool {
        self.subscriptions + self.ending.subscriptions + self.connections == 0
            && self
                .auth_failures
                .is_full(config.address_auth_failures, now)
            && self.events.is_full(quota.publish_events, now)
            && self.bytes.is_full(quota.publish_bytes, now)
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
    pub(super) const ALL: [Self; 8] = [
        Self::Subscriptions,
        Self::Filters,
        Self::FilterWork,
        Self::FilterBytes,
        Self::PublishEvents,
        Self::PublishBytes,
        Self::Connections,
        Self::AuthFailures,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Subscriptions => "subscriptions",
            Self::Filters => "filters",
            Self::FilterWork => "filter_work",
            Self::FilterBytes => "filter_bytes",
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
