//! Quotas: limits on the use of one address, or of one principal.
//!
//! Addresses are counted by their network: see [`network_of`]. The principal of a call is that of its credentials; a
//! call without credentials is held to the quotas of its address only.
//!
//! # Rates
//! A rate is a bucket that holds one second's allowance. A batch passes if anything is left, and may leave a debt. So a
//! batch that is larger than a second's allowance passes too, and the batches after it wait until the debt is paid. In
//! the long run nobody exceeds the rate.
//!
//! # Connections
//! A connection belongs to a principal until it ends: that of the client's certificate if there is one, else the first
//! one whose credentials were accepted on it. If that principal has too many connections, the call is refused and the
//! connection stays without an owner; each further call tries again.
//!
//! # Observing
//! In observe-only mode a call over a quota is counted, logged and let pass. Like a refused call it takes nothing from
//! the buckets, so the counts are those that enforcing would give.

// A general rate limiter, such as governor's, refuses forever a batch that is larger than its bucket; and its buckets
// would stand in a map of their own beside the counts of subscriptions.

mod bucket;
mod config;
pub(crate) mod subscribers;
mod usage;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use tidegate::{Caller, OverQuota};

pub use self::config::{Quota, QuotaConfig};
pub(crate) use self::usage::CONNECTIONS;
use self::usage::{Kind, State, User, exceeds, users};
use crate::address::network_of;

/// The delay that a refusal asks for where a count is exceeded. Nobody knows when another subscription or connection
/// ends, so it is a guess, short beside the life of a stream.
const COUNT_RETRY: Duration = Duration::from_secs(10);

/// The shortest delay that a refusal asks for where a rate is exceeded: that of trailers, which count milliseconds.
const MIN_RATE_RETRY: Duration = Duration::from_millis(1);

/// The refusals of one quota, from the start of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaCount {
    /// The name of the quota, as in the status of a refused call.
    pub quota: &'static str,
    /// Calls that were refused.
    pub refused: u64,
    /// Calls over the quota that passed, because quotas are only observed.
    pub observed: u64,
}

/// The quotas of a server, and their use.
#[derive(Debug)]
pub(crate) struct Quotas {
    /// Whether any rate is set. Every publish reads it first, and takes the lock only if one is.
    measures_publishing: AtomicBool,
    state: Mutex<State>,
    counts: [Counts; Kind::ALL.len()],
}

/// The counts of one quota.
#[derive(Debug, Default)]
struct Counts {
    refused: AtomicU64,
    observed: AtomicU64,
    /// The part of both that has been logged.
    logged: AtomicU64,
}

/// The use of one subscription, which counts until it is given to [`Quotas::release`].
#[derive(Debug)]
pub(crate) struct SubscriptionUsage {
    users: Vec<User>,
    filters: Arc<[Arc<str>]>,
}

/// A connection that counts for its principal, until this is dropped.
#[derive(Debug)]
pub(crate) struct OwnedConnection {
    quotas: Arc<Quotas>,
    owner: User,
}

// ===== impl Quotas =====

impl Quotas {
    pub(crate) fn new(config: QuotaConfig) -> Self {
        let state = State {
            config,
            users: HashMap::new(),
        };
        Self {
            measures_publishing: AtomicBool::new(config.has_rates()),
            state: Mutex::new(state),
            counts: Default::default(),
        }
    }

    /// Enforces `config` from now on. Subscriptions and connections beyond it stay until they end.
    pub(crate) fn set(&self, config: QuotaConfig) {
        self.state().config = config;
        self.measures_publishing.store(config.has_rates(), Release);
    }

    /// Whether a publish needs to be counted.
    pub(crate) fn measures_publishing(&self) -> bool {
        // Acquire, after the Release in `set`: a publish that sees the flag finds the new rates behind the lock.
        self.measures_publishing.load(Acquire)
    }

    /// The refusals of every quota.
    pub(crate) fn counts(&self) -> [QuotaCount; Kind::ALL.len()] {
        Kind::ALL.map(|kind| {
            let counts = &self.counts[kind as usize];
            QuotaCount {
                quota: kind.name(),
                refused: counts.refused.load(Relaxed),
                observed: counts.observed.load(Relaxed),
            }
        })
    }

    /// Counts a subscription of `caller`.
    ///
    /// # Errors
    /// [`OverQuota`], if its address or its principal has as many subscriptions or distinct filters as it may.
    pub(crate) fn subscribe(
        &self,
        caller: &Caller,
        filters: Arc<[Arc<str>]>,
    ) -> Result<SubscriptionUsage, OverQuota> {
        // One lock over the checks and the counts: the quota must hold for calls at the same moment. All users are
        // checked before any is counted, so a refusal leaves nothing to undo.
        let mut state = self.state();
        let users = users(caller);
        for user in &users {
            if let Some(kind) = state.count_exceeded(user, &filters) {
                self.exceed(kind, COUNT_RETRY, state.config.observe_only)?;
            }
        }
        for user in &users {
            state.users.entry(user.clone()).or_default().add(&filters);
        }
        Ok(SubscriptionUsage { users, filters })
    }

    /// Ends the use of a subscription.
    pub(crate) fn release(&self, held: &SubscriptionUsage) {
        let mut state = self.state();
        for user in &held.users {
            if let Some(usage) = state.users.get_mut(user) {
                usage.subtract(&held.filters);
            }
        }
    }

    /// Takes a batch from the buckets of `caller`. `bytes` are those of its events, encoded.
    ///
    /// # Errors
    /// [`OverQuota`], with the longest wait, if a bucket of its address or its principal is empty. Then nothing is
    /// taken.
    pub(crate) fn publish(
        &self,
        caller: &Caller,
        events: usize,
        bytes: u64,
        now: Instant,
    ) -> Result<(), OverQuota> {
        let mut state = self.state();
        let users = users(caller);
        let waits = users
            .iter()
            .filter_map(|user| state.rate_exceeded(user, now))
            .max_by_key(|(_, wait)| *wait);
        if let Some((kind, wait)) = waits {
            return self.exceed(kind, wait.max(MIN_RATE_RETRY), state.config.observe_only);
        }
        for user in &users {
            state.take(user, events as f64, bytes as f64, now);
        }
        Ok(())
    }

    /// Checks whether credentials from `address` may be verified, which are not known to be good.
    ///
    /// # Errors
    /// [`OverQuota`], while [`note_auth_failure`](Self::note_auth_failure) was called too often for the address.
    pub(crate) fn check_auth_failures(
        &self,
        address: IpAddr,
        now: Instant,
    ) -> Result<(), OverQuota> {
        let state = self.state();
        let rate = state.config.address_auth_failures;
        let usage = state.users.get(&User::Address(network_of(address)));
        match usage.and_then(|usage| usage.auth_failures.wait(rate, now)) {
            Some(wait) => {
                let wait = wait.max(MIN_RATE_RETRY);
                self.exceed(Kind::AuthFailures, wait, state.config.observe_only)
            }
            None => Ok(()),
        }
    }

    /// Counts bad credentials from `address`.
    pub(crate) fn note_auth_failure(&self, address: IpAddr, now: Instant) {
        let mut state = self.state();
        let rate = state.config.address_auth_failures;
        // Nothing is taken from an empty bucket. Where quotas are only observed, bad credentials go on to be verified
        // then, and the debt would grow without bound.
        if rate.is_some() {
            let user = User::Address(network_of(address));
            let usage = state.users.entry(user).or_default();
            if usage.auth_failures.wait(rate, now).is_none() {
                usage.auth_failures.take(1.0, rate, now);
            }
        }
    }

    /// Forgets users that use nothing any more, and logs each quota that was exceeded since the last time, in one line:
    /// a flood of calls must not become a flood of logs.
    pub(crate) fn upkeep(&self, now: Instant) {
        self.state().forget_idle(now);
        for kind in Kind::ALL {
            let Counts {
                refused,
                observed,
                logged,
            } = &self.counts[kind as usize];
            let (refused, observed) = (refused.load(Relaxed), observed.load(Relaxed));
            let news = refused + observed - logged.swap(refused + observed, Relaxed);
            if news > 0 {
                let quota = kind.name();
                tracing::warn!(quota, news, refused, observed, "calls over a quota");
            }
        }
    }

    /// Counts a call over a quota, and refuses it unless it is only observed.
    fn exceed(
        &self,
        kind: Kind,
        retry_after: Duration,
        is_observed: bool,
    ) -> Result<(), OverQuota> {
        let counts = &self.counts[kind as usize];
        if is_observed {
            counts.observed.fetch_add(1, Relaxed);
            return Ok(());
        }
        counts.refused.fetch_add(1, Relaxed);
        Err(kind.exceeded(retry_after))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// ===== impl OwnedConnection =====

impl OwnedConnection {
    /// Counts a connection for `principal`.
    ///
    /// # Errors
    /// [`OverQuota`], if the principal has as many as it may.
    pub(crate) fn claim(quotas: &Arc<Quotas>, principal: &Arc<str>) -> Result<Self, OverQuota> {
        Self::enter(quotas, principal, true)
    }

    /// The same before the first call of the connection: no call is refused yet, so none is counted as refused.
    pub(crate) fn claim_silently(quotas: &Arc<Quotas>, principal: &Arc<str>) -> Option<Self> {
        Self::enter(quotas, principal, false).ok()
    }

    fn enter(quotas: &Arc<Quotas>, principal: &Arc<str>, is_call: bool) -> Result<Self, OverQuota> {
        let owner = User::Principal(Arc::clone(principal));
        let mut state = quotas.state();
        let State { config, users } = &mut *state;
        let open = users.get(&owner).map_or(0, |usage| usage.connections);
        if exceeds(open + 1, config.principal_connections) {
            if !is_call {
                return Err(Kind::Connections.exceeded(COUNT_RETRY));
            }
            quotas.exceed(Kind::Connections, COUNT_RETRY, config.observe_only)?;
        }
        users.entry(owner.clone()).or_default().connections += 1;
        drop(state);
        Ok(Self {
            quotas: Arc::clone(quotas),
            owner,
        })
    }
}

impl Drop for OwnedConnection {
    fn drop(&mut self) {
        let mut state = self.quotas.state();
        if let Some(usage) = state.users.get_mut(&self.owner) {
            usage.connections -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> Caller {
        Caller {
            address: Some(format!("{address}:1").parse().unwrap()),
            principal: None,
        }
    }

    fn known(address: &str, principal: &str) -> Caller {
        Caller {
            principal: Some(principal.into()),
            ..from(address)
        }
    }

    fn filters(filters: &[&str]) -> Arc<[Arc<str>]> {
        filters.iter().map(|filter| Arc::from(*filter)).collect()
    }

    fn quotas(address: Quota, principal: Quota) -> Quotas {
        Quotas::new(QuotaConfig {
            address,
            principal,
            ..QuotaConfig::default()
        })
    }

    fn rate(events: u64) -> Quota {
        Quota {
            publish_events: Some(events),
            ..Quota::default()
        }
    }

    #[test]
    fn a_principal_has_one_quota_whatever_its_addresses() {
        let one = Quota {
            subscriptions: Some(1),
            ..Quota::default()
        };
        let quotas = quotas(Quota::default(), one);
        let held = quotas
            .subscribe(&known("192.0.2.1", "p"), filters(&["a"]))
            .unwrap();
        let refused = quotas.subscribe(&known("192.0.2.2", "p"), filters(&["a"]));
        assert_eq!(refused.unwrap_err().quota, "subscriptions");
        quotas
            .subscribe(&known("192.0.2.2", "q"), filters(&["a"]))
            .unwrap();
        quotas
            .subscribe(&from("192.0.2.1"), filters(&["a"]))
            .unwrap();
        quotas.release(&held);
        quotas
            .subscribe(&known("192.0.2.2", "p"), filters(&["a"]))
            .unwrap();
    }

    #[test]
    fn filters_are_counted_once_however_many_hold_them() {
        let two = Quota {
            filters: Some(2),
            ..Quota::default()
        };
        let quotas = quotas(two, Quota::default());
        let caller = from("192.0.2.1");
        let first = quotas
            .subscribe(&caller, filters(&["a", "b", "a"]))
            .unwrap();
        let second = quotas.subscribe(&caller, filters(&["b"])).unwrap();
        let refused = quotas.subscribe(&caller, filters(&["c"])).unwrap_err();
        assert_eq!(refused.quota, "filters");
        quotas.release(&first);
        // Only b is held still.
        quotas.subscribe(&caller, filters(&["c"])).unwrap();
        quotas.subscribe(&caller, filters(&["a"])).unwrap_err();
        quotas.release(&second);
    }

    #[test]
    fn a_large_batch_passes_and_is_paid_for_by_those_after_it() {
        let quotas = quotas(rate(100), Quota::default());
        let (caller, now) = (from("192.0.2.1"), Instant::now());
        quotas.publish(&caller, 350, 0, now).unwrap();
        let refused = quotas.publish(&caller, 1, 0, now).unwrap_err();
        assert_eq!(refused.quota, "publish_events");
        assert_eq!(refused.retry_after, Duration::from_millis(2_500));
        let just_before = now + Duration::from_millis(2_490);
        quotas.publish(&caller, 1, 0, just_before).unwrap_err();
        let after = now + Duration::from_millis(2_510);
        quotas.publish(&caller, 1, 0, after).unwrap();
        quotas.publish(&from("192.0.2.9"), 1, 0, now).unwrap();
    }

    #[test]
    fn a_user_publishes_no_more_than_the_rate() {
        let quotas = quotas(rate(100), Quota::default());
        let (caller, began) = (from("192.0.2.1"), Instant::now());
        let passed = (0..10_000)
            .filter(|i| {
                let now = began + Duration::from_millis(*i);
                quotas.publish(&caller, 3, 0, now).is_ok()
            })
            .count();
        // Ten seconds, what the bucket holds at first, and the debt of one batch.
        assert!((1_000..=1_103).contains(&(passed * 3)), "{passed}");
    }

    #[test]
    fn observing_counts_what_enforcing_would_refuse() {
        let publish = |observe_only| {
            let quotas = Quotas::new(QuotaConfig {
                address: rate(10),
                observe_only,
                ..QuotaConfig::default()
            });
            let (caller, began) = (from("192.0.2.1"), Instant::now());
            for i in 0..100 {
                let now = began + Duration::from_millis(i * 10);
                let passed = quotas.publish(&caller, 2, 0, now);
                assert!(!observe_only || passed.is_ok());
            }
            let [_, _, events, ..] = quotas.counts();
            (events.refused, events.observed)
        };
        let (refused, observed) = (publish(false), publish(true));
        assert!(refused.0 > 0);
        assert_eq!(refused, (observed.1, observed.0));
    }

    #[test]
    fn an_idle_user_is_forgotten_when_its_debt_is_paid() {
        let quotas = quotas(rate(10), Quota::default());
        let (caller, now) = (from("192.0.2.1"), Instant::now());
        let usage = quotas.subscribe(&caller, filters(&["a"])).unwrap();
        quotas.publish(&caller, 20, 0, now).unwrap();
        quotas.release(&usage);
        quotas.upkeep(now + Duration::from_secs(1));
        assert_eq!(quotas.state().users.len(), 1, "it has a debt");
        quotas.upkeep(now + Duration::from_secs(2));
        assert!(quotas.state().users.is_empty());
    }
}
