//! How much one address, or one principal, may use.
//!
//! An address is what [`network_of`] makes of one. A principal is whom the credentials of a call
//! stand for; a call without one is held to the quotas of its address only.
//!
//! # Rates
//! A rate is a bucket that holds what one second allows. A batch passes if anything is left, and may leave a debt:
//! so a batch that is larger than a second's allowance passes as well, and is paid for by those after it. On the
//! whole nobody gets more than the rate.
//!
//! # Connections
//! A connection belongs to the first principal whose credentials were accepted on it, until it ends: that of the
//! client's certificate if it showed one. While its principal has too many, its calls are refused, and it stays
//! without an owner; each call tries again.
//!
//! # Observing
//! In observe-only mode what would be refused is counted and logged, and passes. It takes nothing from the
//! buckets, as what is refused does not, so the counts are those that enforcing would give.

// A general rate limiter, such as governor's, refuses forever what is larger than its bucket; and its buckets
// would stand in a map of their own beside the counts of subscriptions.

pub(crate) mod subscribers;

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

use crate::address::network_of;

/// When a place may be free again is not known; this is how long to wait before asking.
const RETRY_PLACE: Duration = Duration::from_secs(10);

/// No rate asks for less patience than this.
const SHORTEST_RETRY: Duration = Duration::from_millis(1);

/// How much everyone may use. Default: as much as they like, but for bad credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaConfig {
    /// What may come from one address.
    pub address: Quota,
    /// What one principal may use, whatever its addresses.
    pub principal: Quota,
    /// Connections at once that belong to one principal. A connection belongs to the first whose credentials were
    /// accepted on it. Default: `None`.
    pub principal_connections: Option<usize>,
    /// Bad credentials that are looked at from one address in a second. Beyond, what was not found good from there
    /// before is refused without a look. Default: 100.
    pub address_auth_failures: Option<u64>,
    /// Whether what is over a quota is counted and logged, but let pass. It holds for
    /// [`ServerConfig::max_connections_per_address`](crate::ServerConfig) too.
    pub observe_only: bool,
}

/// How much one may use. `None` is no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Subscriptions at once.
    pub subscriptions: Option<usize>,
    /// Distinct filters in all its subscriptions together.
    pub filters: Option<usize>,
    /// Events published in a second.
    pub publish_events: Option<u64>,
    /// Bytes published in a second, as encoded events.
    pub publish_bytes: Option<u64>,
}

/// How often one quota was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaCount {
    /// The name of the quota, as in the status of a call that was refused.
    pub quota: &'static str,
    /// Calls that were refused.
    pub refused: u64,
    /// Calls that were let pass because quotas are only observed.
    pub observed: u64,
}

/// What there is a quota of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
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

/// Keeps the quotas of a server.
#[derive(Debug)]
pub(crate) struct Quotas {
    /// Whether any rate is set. Read by every publisher, so that none takes the lock for nothing.
    measures_publishing: AtomicBool,
    state: Mutex<State>,
    counts: [Counts; Kind::ALL.len()],
}

#[derive(Debug, Default)]
struct Counts {
    refused: AtomicU64,
    observed: AtomicU64,
    /// How much of both has been logged.
    logged: AtomicU64,
}

#[derive(Debug)]
struct State {
    config: QuotaConfig,
    /// Who uses something, or did a moment ago.
    users: HashMap<User, Usage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum User {
    Address(IpAddr),
    Principal(Arc<str>),
}

#[derive(Debug, Default)]
struct Usage {
    subscriptions: usize,
    /// How many subscriptions hold each filter. None is 0.
    filters: HashMap<Arc<str>, usize>,
    events: Bucket,
    bytes: Bucket,
    connections: usize,
    auth_failures: Bucket,
}

/// What is left of a rate.
#[derive(Debug, Default)]
struct Bucket {
    /// When something was taken last, and what was left then. Nothing was ever taken: full.
    taken: Option<(Instant, f64)>,
}

/// What one subscription uses. Give it back with [`Quotas::give_back`].
#[derive(Debug)]
pub(crate) struct Used {
    users: Vec<User>,
    filters: Arc<[Arc<str>]>,
}

/// Counts a connection for its principal as long as it is there.
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

    /// Holds everyone to `config` from here on. What is in use stays.
    pub(crate) fn set(&self, config: QuotaConfig) {
        self.state().config = config;
        self.measures_publishing.store(config.has_rates(), Release);
    }

    pub(crate) fn measures_publishing(&self) -> bool {
        self.measures_publishing.load(Acquire)
    }

    /// How often each quota was exceeded.
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

    pub(crate) fn subscribe(
        &self,
        caller: &Caller,
        filters: Arc<[Arc<str>]>,
    ) -> Result<Used, OverQuota> {
        let mut state = self.state();
        let users = users(caller);
        for user in &users {
            if let Some(kind) = state.over_places(user, &filters) {
                self.exceed(kind, RETRY_PLACE, state.config.observe_only)?;
            }
        }
        for user in &users {
            state.users.entry(user.clone()).or_default().add(&filters);
        }
        Ok(Used { users, filters })
    }

    pub(crate) fn give_back(&self, used: &Used) {
        let mut state = self.state();
        for user in &used.users {
            if let Some(usage) = state.users.get_mut(user) {
                usage.subtract(&used.filters);
            }
        }
    }

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
            .filter_map(|user| state.over_rates(user, now))
            .max_by_key(|(_, wait)| *wait);
        if let Some((kind, wait)) = waits {
            return self.exceed(kind, wait.max(SHORTEST_RETRY), state.config.observe_only);
        }
        for user in &users {
            state.take(user, events as f64, bytes as f64, now);
        }
        Ok(())
    }

    /// Whether a look at credentials from `address` that were not found good before is too much.
    ///
    /// # Errors
    /// [`OverQuota`], until [`note_auth_failure`](Self::note_auth_failure) has been quiet for long enough.
    pub(crate) fn look_at_credentials(
        &self,
        address: IpAddr,
        now: Instant,
    ) -> Result<(), OverQuota> {
        let state = self.state();
        let rate = state.config.address_auth_failures;
        let usage = state.users.get(&User::Address(network_of(address)));
        match usage.and_then(|usage| usage.auth_failures.wait(rate, now)) {
            Some(wait) => {
                let wait = wait.max(SHORTEST_RETRY);
                self.exceed(Kind::AuthFailures, wait, state.config.observe_only)
            }
            None => Ok(()),
        }
    }

    /// Credentials from `address` were looked at and found bad.
    pub(crate) fn note_auth_failure(&self, address: IpAddr, now: Instant) {
        let mut state = self.state();
        let rate = state.config.address_auth_failures;
        // What is only observed goes on to be looked at, and makes no debt beyond the bucket.
        if rate.is_some() {
            let user = User::Address(network_of(address));
            let usage = state.users.entry(user).or_default();
            if usage.auth_failures.wait(rate, now).is_none() {
                usage.auth_failures.take(1.0, rate, now);
            }
        }
    }

    /// Forgets who uses nothing any more, and logs what was exceeded since the last time: a flood must not become
    /// one of logs.
    pub(crate) fn keep_up(&self, now: Instant) {
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

impl OwnedConnection {
    /// Counts a connection for `principal`, if that has not too many.
    ///
    /// # Errors
    /// [`OverQuota`].
    pub(crate) fn of(quotas: &Arc<Quotas>, principal: &Arc<str>) -> Result<Self, OverQuota> {
        Self::enter(quotas, principal, true)
    }

    /// The same before any call was made, which could be told or counted that it is too many.
    pub(crate) fn of_silent(quotas: &Arc<Quotas>, principal: &Arc<str>) -> Option<Self> {
        Self::enter(quotas, principal, false).ok()
    }

    fn enter(quotas: &Arc<Quotas>, principal: &Arc<str>, is_call: bool) -> Result<Self, OverQuota> {
        let owner = User::Principal(Arc::clone(principal));
        let mut state = quotas.state();
        let State { config, users } = &mut *state;
        let open = users.get(&owner).map_or(0, |usage| usage.connections);
        if exceeds(open + 1, config.principal_connections) {
            if !is_call {
                return Err(Kind::Connections.exceeded(RETRY_PLACE));
            }
            quotas.exceed(Kind::Connections, RETRY_PLACE, config.observe_only)?;
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

fn users(caller: &Caller) -> Vec<User> {
    let address = caller.address.map(|address| network_of(address.ip()));
    let principal = caller.principal.clone().map(User::Principal);
    address
        .map(User::Address)
        .into_iter()
        .chain(principal)
        .collect()
}

// ===== impl State =====

impl State {
    /// Of what `user` would have too much with one more subscription of `filters`.
    fn over_places(&self, user: &User, filters: &[Arc<str>]) -> Option<Kind> {
        let quota = user.quota(&self.config);
        let nothing = Usage::default();
        let usage = self.users.get(user).unwrap_or(&nothing);
        if exceeds(usage.subscriptions + 1, quota.subscriptions) {
            return Some(Kind::Subscriptions);
        }
        let max_filters = quota.filters?;
        let new = filters
            .iter()
            .enumerate()
            .filter(|(i, filter)| {
                !usage.filters.contains_key(*filter) && !filters[..*i].contains(filter)
            })
            .count();
        (usage.filters.len() + new > max_filters).then_some(Kind::Filters)
    }

    /// Of what `user` has published too much, and how long it has to wait.
    fn over_rates(&self, user: &User, now: Instant) -> Option<(Kind, Duration)> {
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

    fn take(&mut self, user: &User, events: f64, bytes: f64, now: Instant) {
        let quota = *user.quota(&self.config);
        if !quota.has_rates() {
            return;
        }
        let usage = self.users.entry(user.clone()).or_default();
        usage.events.take(events, quota.publish_events, now);
        usage.bytes.take(bytes, quota.publish_bytes, now);
    }

    fn forget_idle(&mut self, now: Instant) {
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

fn exceeds(count: usize, most: Option<usize>) -> bool {
    most.is_some_and(|most| count > most)
}

// ===== impl Usage =====

impl Usage {
    fn add(&mut self, filters: &[Arc<str>]) {
        self.subscriptions += 1;
        for filter in filters {
            *self.filters.entry(Arc::clone(filter)).or_default() += 1;
        }
    }

    fn subtract(&mut self, filters: &[Arc<str>]) {
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
    /// The quota of `config` that holds for it.
    const fn quota<'a>(&self, config: &'a QuotaConfig) -> &'a Quota {
        match self {
            Self::Address(_) => &config.address,
            Self::Principal(_) => &config.principal,
        }
    }
}

// ===== impl Bucket =====

impl Bucket {
    /// What is left of `rate` at `now`; below 0 is a debt.
    fn left(&self, rate: f64, now: Instant) -> f64 {
        self.taken.map_or(rate, |(at, left)| {
            let since = now.saturating_duration_since(at).as_secs_f64();
            (left + rate * since).min(rate)
        })
    }

    /// How long to wait until something is left; `None` if something is.
    fn wait(&self, rate: Option<u64>, now: Instant) -> Option<Duration> {
        let rate = rate? as f64;
        let left = self.left(rate, now);
        (left <= 0.0).then(|| Duration::from_secs_f64(-left / rate))
    }

    fn take(&mut self, amount: f64, rate: Option<u64>, now: Instant) {
        self.taken = rate.map(|rate| (now, self.left(rate as f64, now) - amount));
    }

    fn is_full(&self, rate: Option<u64>, now: Instant) -> bool {
        rate.is_none_or(|rate| self.left(rate as f64, now) >= rate as f64)
    }
}

// ===== impl the rest =====

impl Kind {
    const ALL: [Self; 6] = [
        Self::Subscriptions,
        Self::Filters,
        Self::PublishEvents,
        Self::PublishBytes,
        Self::Connections,
        Self::AuthFailures,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Subscriptions => "subscriptions",
            Self::Filters => "filters",
            Self::PublishEvents => "publish_events",
            Self::PublishBytes => "publish_bytes",
            Self::Connections => CONNECTIONS,
            Self::AuthFailures => "auth_failures",
        }
    }

    const fn exceeded(self, retry_after: Duration) -> OverQuota {
        OverQuota {
            quota: self.name(),
            retry_after,
        }
    }
}

impl Default for QuotaConfig {
    fn default() -> Self {
        Self {
            address: Quota::default(),
            principal: Quota::default(),
            principal_connections: None,
            address_auth_failures: Some(100),
            observe_only: false,
        }
    }
}

impl QuotaConfig {
    const fn has_rates(&self) -> bool {
        self.address.has_rates() || self.principal.has_rates()
    }
}

impl Quota {
    const fn has_rates(&self) -> bool {
        self.publish_events.is_some() || self.publish_bytes.is_some()
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
        quotas.give_back(&held);
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
        quotas.give_back(&first);
        // Only b is held still.
        quotas.subscribe(&caller, filters(&["c"])).unwrap();
        quotas.subscribe(&caller, filters(&["a"])).unwrap_err();
        quotas.give_back(&second);
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
    fn nobody_gets_more_than_the_rate() {
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
    fn who_uses_nothing_any_more_is_forgotten() {
        let quotas = quotas(rate(10), Quota::default());
        let (caller, now) = (from("192.0.2.1"), Instant::now());
        let used = quotas.subscribe(&caller, filters(&["a"])).unwrap();
        quotas.publish(&caller, 20, 0, now).unwrap();
        quotas.give_back(&used);
        quotas.keep_up(now + Duration::from_secs(1));
        assert_eq!(quotas.state().users.len(), 1, "it has a debt");
        quotas.keep_up(now + Duration::from_secs(2));
        assert!(quotas.state().users.is_empty());
    }
}
