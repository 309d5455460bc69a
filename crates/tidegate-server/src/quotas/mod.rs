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
//! connection stays without an owner; each further call tries again. A subscription that takes over the last stream of
//! another connection of the principal takes its place over, too: that connection, which is often dead, has no owner from
//! then on.
//!
//! # Filters
//! Filters are bounded in units of what they cost others, and not by their number alone: one filter may cost as much as
//! a thousand. Each distinct filter or set of filters of a user counts once, as the hub keeps it once for all that share
//! it.
//!
//! # Takeovers
//! A client that comes back takes over from its old stream, whose connection is often dead and which nobody else can
//! end. So the stream that a subscription is going to supersede does not count against it, and from the takeover on
//! does not count at all, although it may take some seconds to go. What a user may have ending in that way is bounded by
//! the same quotas, so for those seconds a user has at most twice as much.
//!
//! # Locks
//! Standing of a subscription, owner of a connection -> user (address -> principal). The locks of all users, of the
//! clients and of the connections are taken and given back before any of these, and two owners are never locked together. Filters are hashed and their cost is found outside of all of them, so nobody
//! waits for another's filters; a user's own calls wait for one look-up a filter.
//!
//! # Observing
//! In observe-only mode a call over a quota is counted, logged and let pass. Like a refused call it takes nothing from
//! the buckets, so the counts are those that enforcing would give.

// A general rate limiter, such as governor's, refuses forever a batch that is larger than its bucket; and its buckets
// would stand in a map of their own beside the counts of subscriptions.

mod bucket;
mod config;
mod filters;
pub(crate) mod subscribers;
mod usage;

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use tidegate::{Caller, ClientId, ClientIdPolicy, Filter, OverQuota};

pub use self::config::{Quota, QuotaConfig};
pub(crate) use self::usage::CONNECTIONS;
use self::{
    filters::{CountedFilters, Keys},
    usage::{Kind, KnownUser, State, User, exceeds, users},
};
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
    /// The subscription that holds each client id, where the next one supersedes it.
    clients: Mutex<HashMap<Holder, Arc<Counted>>>,
    /// Whether a subscription supersedes an older one of its client.
    takes_over: bool,
    /// The connections whose calls have principals, by their remote addresses.
    connections: Mutex<HashMap<SocketAddr, Arc<Connection>>>,
    keys: Keys,
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

/// A client, and the principal that alone may take over from it.
type Holder = (ClientId, Option<Arc<str>>);

/// The use of one subscription, which counts until this is dropped.
#[derive(Debug)]
pub(crate) struct SubscriptionUsage {
    quotas: Arc<Quotas>,
    counted: Arc<Counted>,
}

/// A subscription as it is counted.
#[derive(Debug)]
struct Counted {
    holder: Holder,
    users: Vec<KnownUser>,
    filters: CountedFilters,
    /// Its connection, if the calls on it have principals.
    connection: Option<Arc<Connection>>,
    /// Its identity in the hub, once it has begun. The hub gives rising ones, so of two subscriptions of one client
    /// the one with the lower is superseded, whichever is told first that it has begun.
    id: OnceLock<u64>,
    standing: Mutex<Standing>,
}

/// The way in which a subscription counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// For the quotas.
    Counted,
    /// As one that is ending, since it was superseded.
    Ending,
    /// Not at all: it is gone.
    Gone,
}

/// A connection whose calls have principals. It counts for one of them, as soon as it has an owner and until this is
/// dropped.
#[derive(Debug)]
pub(crate) struct OwnedConnection {
    quotas: Arc<Quotas>,
    address: SocketAddr,
    connection: Arc<Connection>,
}

/// A connection as it is counted.
#[derive(Debug, Default)]
struct Connection {
    owner: Mutex<Owner>,
    /// Its subscriptions that count.
    subscriptions: AtomicUsize,
}

/// The principal of a connection.
#[derive(Debug, Default)]
struct Owner {
    /// The one that it counts for.
    user: Option<KnownUser>,
    /// The last one that it was claimed for, which has too many connections if it does not count for it.
    claimant: Option<Arc<str>>,
}

/// The call for which a connection claims an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// None has come yet. If the principal has too many connections, nobody is told so, and nothing is counted.
    BeforeCalls,
    /// A subscription, which may take over the place of another connection. So the claim is left to it.
    Subscription,
    /// Any other.
    Call,
}

// ===== impl Quotas =====

impl Quotas {
    /// `policy` says whether a subscription takes over from an older one of its client.
    pub(crate) fn new(config: QuotaConfig, policy: ClientIdPolicy) -> Self {
        let state = State {
            config,
            users: HashMap::new(),
        };
        Self {
            measures_publishing: AtomicBool::new(config.has_rates()),
            state: Mutex::new(state),
            clients: Mutex::default(),
            takes_over: policy == ClientIdPolicy::Takeover,
            connections: Mutex::default(),
            keys: Keys::default(),
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

    /// Counts a subscription of `client`, which `caller` is or acts for. The stream that it supersedes does not count
    /// against it.
    ///
    /// # Errors
    /// [`OverQuota`], if its address or its principal has as many subscriptions or distinct filters as it may, or its
    /// filters cost as much.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        caller: &Caller,
        client: &ClientId,
        filters: &[Filter],
    ) -> Result<SubscriptionUsage, OverQuota> {
        let filters = CountedFilters::new(filters, &self.keys);
        let holder = (client.clone(), caller.principal.clone());
        let (config, users) = self.look_up(caller);
        let older = self.clients().get(&holder).map(Arc::clone);
        // Held until the new one is counted, so that the older one cannot go in between.
        let standing = older.as_ref().map(|older| older.standing());
        let is_counted = standing
            .as_ref()
            .is_some_and(|standing| **standing == Standing::Counted);
        let superseded = older.as_ref().filter(|_| is_counted);
        let connection = self.connection_of(caller);
        if let Some(connection) = &connection
            && let Some(principal) = connection.wants_owner()
        {
            let takes_place = superseded
                .and_then(|older| older.connection.as_ref())
                .is_some_and(|from| from.leaves_place(&principal, 1));
            if !takes_place {
                self.claim(connection, &principal, Claim::Call)?;
            }
        }
        // All users are locked over the checks and the counts: the quota must hold for calls at the same moment. All
        // are checked before any is counted, so a refusal leaves nothing to undo.
        let mut locked: Vec<_> = users.iter().map(KnownUser::usage).collect();
        for (user, usage) in users.iter().zip(&locked) {
            let is_of_user = |older: &&Arc<Counted>| older.users.iter().any(|of| of.is(user));
            let superseded = superseded.filter(is_of_user).map(|older| &older.filters);
            let exceeded = usage.count_exceeded(user.quota(&config), &filters, superseded);
            if let Some(kind) = exceeded {
                self.exceed(kind, COUNT_RETRY, config.observe_only)?;
            }
        }
        for usage in &mut locked {
            usage.add(&filters);
        }
        drop(locked);
        let counted = Counted {
            holder,
            users,
            filters,
            connection,
            id: OnceLock::new(),
            standing: Mutex::new(Standing::Counted),
        };
        if let Some(connection) = &counted.connection {
            connection.subscriptions.fetch_add(1, Relaxed);
        }
        Ok(SubscriptionUsage {
            quotas: Arc::clone(self),
            counted: Arc::new(counted),
        })
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
        let (config, users) = self.look_up(caller);
        let mut locked: Vec<_> = users.iter().map(KnownUser::usage).collect();
        let waits = users
            .iter()
            .zip(&locked)
            .filter_map(|(user, usage)| usage.rate_exceeded(user.quota(&config), now))
            .max_by_key(|(_, wait)| *wait);
        if let Some((kind, wait)) = waits {
            return self.exceed(kind, wait.max(MIN_RATE_RETRY), config.observe_only);
        }
        for (user, usage) in users.iter().zip(&mut locked) {
            usage.take(user.quota(&config), events as f64, bytes as f64, now);
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
        let (config, user) = self.find(User::Address(network_of(address)));
        let rate = config.address_auth_failures;
        let wait = user.usage().auth_failures.wait(rate, now);
        match wait {
            Some(wait) => {
                let wait = wait.max(MIN_RATE_RETRY);
                self.exceed(Kind::AuthFailures, wait, config.observe_only)
            }
            None => Ok(()),
        }
    }

    /// Counts bad credentials from `address`.
    pub(crate) fn note_auth_failure(&self, address: IpAddr, now: Instant) {
        let (config, user) = self.find(User::Address(network_of(address)));
        let rate = config.address_auth_failures;
        // Nothing is taken from an empty bucket. Where quotas are only observed, bad credentials go on to be verified
        // then, and the debt would grow without bound.
        if rate.is_some() {
            let mut usage = user.usage();
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

    /// Makes `principal` the owner of a connection, unless it has one.
    ///
    /// # Errors
    /// [`OverQuota`], if the principal has as many connections as it may.
    fn claim(
        &self,
        connection: &Connection,
        principal: &Arc<str>,
        claim: Claim,
    ) -> Result<(), OverQuota> {
        // Held over the claim: two first calls at once must claim one place.
        let mut owner = connection.owner();
        if owner.user.is_some() {
            return Ok(());
        }
        owner.claimant = Some(Arc::clone(principal));
        let (config, user) = self.find(User::Principal(Arc::clone(principal)));
        let mut usage = user.usage();
        if exceeds(usage.connections + 1, config.principal_connections) {
            match claim {
                Claim::BeforeCalls => return Ok(()),
                Claim::Subscription if self.takes_over => return Ok(()),
                Claim::Subscription | Claim::Call => {
                    self.exceed(Kind::Connections, COUNT_RETRY, config.observe_only)?;
                }
            }
        }
        usage.connections += 1;
        drop(usage);
        owner.user = Some(user);
        Ok(())
    }

    /// The connection of `caller`, if the calls on it have principals.
    fn connection_of(&self, caller: &Caller) -> Option<Arc<Connection>> {
        let address = caller.address.filter(|_| caller.principal.is_some())?;
        self.connections().get(&address).map(Arc::clone)
    }

    /// The limits in force, and the users that a call of `caller` counts for.
    fn look_up(&self, caller: &Caller) -> (QuotaConfig, Vec<KnownUser>) {
        let users = users(caller);
        let mut state = self.state();
        let users = users.map(|user| state.user(user)).collect();
        (state.config, users)
    }

    /// The limits in force, and one user.
    fn find(&self, user: User) -> (QuotaConfig, KnownUser) {
        let mut state = self.state();
        (state.config, state.user(user))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Connection>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Holder, Arc<Counted>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// ===== impl SubscriptionUsage =====

impl SubscriptionUsage {
    /// Notes that the subscription has begun, with its identity in the hub. The older one of its client is superseded
    /// by now and stops counting.
    pub(crate) fn begun(&self, id: u64) {
        let Self { quotas, counted } = self;
        if !quotas.takes_over || counted.id.set(id).is_err() {
            return;
        }
        let superseded = {
            let mut clients = quotas.clients();
            match clients.entry(counted.holder.clone()) {
                Entry::Vacant(free) => {
                    free.insert(Arc::clone(counted));
                    None
                }
                // Both began at once, and the other was told first.
                Entry::Occupied(newer) if newer.get().id.get() > Some(&id) => {
                    Some(Arc::clone(counted))
                }
                Entry::Occupied(mut older) => Some(older.insert(Arc::clone(counted))),
            }
        };
        if let Some(superseded) = superseded {
            let config = quotas.state().config;
            superseded.begin_ending(&config);
            if let (Some(from), Some(to)) = (&superseded.connection, &counted.connection) {
                from.leave_place_to(to);
            }
        }
    }
}

impl Drop for SubscriptionUsage {
    fn drop(&mut self) {
        let Self { quotas, counted } = self;
        counted.end();
        if let Entry::Occupied(newest) = quotas.clients().entry(counted.holder.clone())
            && Arc::ptr_eq(newest.get(), counted)
        {
            newest.remove();
        }
    }
}

// ===== impl Counted =====

impl Counted {
    /// Stops counting it for the quotas, if as much of each of its users may be ending.
    fn begin_ending(&self, config: &QuotaConfig) {
        let mut standing = self.standing();
        let mut locked: Vec<_> = self.users.iter().map(KnownUser::usage).collect();
        let mut users = self.users.iter().zip(&locked);
        let may_end = users.all(|(user, usage)| usage.may_end(user.quota(config), &self.filters));
        if *standing == Standing::Counted && may_end {
            *standing = Standing::Ending;
            self.leave_connection();
            for usage in &mut locked {
                usage.begin_ending(&self.filters);
            }
        }
    }

    /// Ends its use.
    fn end(&self) {
        let mut standing = self.standing();
        if *standing == Standing::Counted {
            self.leave_connection();
        }
        for user in &self.users {
            let mut usage = user.usage();
            match *standing {
                Standing::Counted => usage.subtract(&self.filters),
                Standing::Ending => usage.end(&self.filters),
                Standing::Gone => {}
            }
        }
        *standing = Standing::Gone;
    }

    fn leave_connection(&self) {
        if let Some(connection) = &self.connection {
            connection.subscriptions.fetch_sub(1, Relaxed);
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// ===== impl OwnedConnection =====

impl OwnedConnection {
    /// A connection from `address` that has no owner yet.
    pub(crate) fn new(quotas: &Arc<Quotas>, address: SocketAddr) -> Self {
        let connection = Arc::new(Connection::default());
        // An older one of this address is about to go: the kernel gives no address twice.
        let older = quotas
            .connections()
            .insert(address, Arc::clone(&connection));
        drop(older);
        Self {
            quotas: Arc::clone(quotas),
            address,
            connection,
        }
    }

    /// Makes `principal` its owner, unless it has one.
    ///
    /// # Errors
    /// [`OverQuota`], if the principal has as many connections as it may.
    pub(crate) fn claim(&self, principal: &Arc<str>, claim: Claim) -> Result<(), OverQuota> {
        self.quotas.claim(&self.connection, principal, claim)
    }
}

impl Drop for OwnedConnection {
    fn drop(&mut self) {
        if let Entry::Occupied(known) = self.quotas.connections().entry(self.address)
            && Arc::ptr_eq(known.get(), &self.connection)
        {
            known.remove();
        }
        if let Some(owner) = self.connection.owner().user.take() {
            owner.usage().connections -= 1;
        }
    }
}

// ===== impl Connection =====

impl Connection {
    /// The principal that it was claimed for, if it has no owner.
    fn wants_owner(&self) -> Option<Arc<str>> {
        let owner = self.owner();
        let claimant = owner.claimant.as_ref().filter(|_| owner.user.is_none());
        claimant.map(Arc::clone)
    }

    /// Whether it counts for `principal` and has no more than `most` subscriptions that count.
    fn leaves_place(&self, principal: &Arc<str>, most: usize) -> bool {
        let owner = self.owner();
        let is_owner = |user: &KnownUser| user.is_principal(principal);
        owner.user.as_ref().is_some_and(is_owner) && self.subscriptions.load(Relaxed) <= most
    }

    /// Gives its place to another connection that was claimed for the same principal and has none, if no subscription
    /// is left on it.
    fn leave_place_to(&self, other: &Self) {
        let Some(principal) = other.wants_owner() else {
            return;
        };
        if !self.leaves_place(&principal, 0) {
            return;
        }
        // One owner after the other, never both locks. So a call may find a place in between, and this one is then free.
        let mut place = self.owner().user.take();
        let mut owner = other.owner();
        if owner.user.is_none() {
            owner.user = place.take();
        }
        drop(owner);
        if let Some(place) = place {
            place.usage().connections -= 1;
        }
    }

    fn owner(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tidegate::FilterCost;

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

    fn filters(filters: &[&str]) -> Vec<Filter> {
        filters.iter().map(|f| Filter::new(f).unwrap()).collect()
    }

    fn quotas(address: Quota, principal: Quota) -> Arc<Quotas> {
        let config = QuotaConfig {
            address,
            principal,
            ..QuotaConfig::default()
        };
        Arc::new(Quotas::new(config, ClientIdPolicy::Takeover))
    }

    /// Subscribes as a client of its own.
    fn subscribe(
        quotas: &Arc<Quotas>,
        caller: &Caller,
        of: &[&str],
    ) -> Result<SubscriptionUsage, OverQuota> {
        let own = ClientId::new(&format!("own-{}", fastrand::u64(..))).unwrap();
        quotas.subscribe(caller, &own, &filters(of))
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
        let held = subscribe(&quotas, &known("192.0.2.1", "p"), &["a"]).unwrap();
        let refused = subscribe(&quotas, &known("192.0.2.2", "p"), &["a"]);
        assert_eq!(refused.unwrap_err().quota, "subscriptions");
        let _other = subscribe(&quotas, &known("192.0.2.2", "q"), &["a"]).unwrap();
        let _nobody = subscribe(&quotas, &from("192.0.2.1"), &["a"]).unwrap();
        drop(held);
        subscribe(&quotas, &known("192.0.2.2", "p"), &["a"]).unwrap();
    }

    #[test]
    fn filters_are_counted_once_however_many_hold_them() {
        let two = Quota {
            filters: Some(2),
            ..Quota::default()
        };
        let quotas = quotas(two, Quota::default());
        let caller = from("192.0.2.1");
        let first = subscribe(&quotas, &caller, &["a", "b", "a"]).unwrap();
        let _second = subscribe(&quotas, &caller, &["b"]).unwrap();
        let refused = subscribe(&quotas, &caller, &["c"]).unwrap_err();
        assert_eq!(refused.quota, "filters");
        drop(first);
        // Only b is held still.
        let _third = subscribe(&quotas, &caller, &["c"]).unwrap();
        subscribe(&quotas, &caller, &["a"]).unwrap_err();
    }

    #[test]
    fn filters_are_bounded_by_the_work_that_they_make() {
        let some = Quota {
            filter_work: Some(37),
            ..Quota::default()
        };
        let quotas = quotas(some, Quota::default());
        let caller = from("192.0.2.1");
        let ways = ["*.b", "a.*"];
        let work = FilterCost::of(&filters(&ways)).work;
        assert!((2..=20).contains(&work), "{work}");
        // Those who share a set share its work, in whatever order they write it.
        let same: Vec<_> = (0..100)
            .map(|_| subscribe(&quotas, &caller, &["a.*", "*.b", "*.b"]).unwrap())
            .collect();
        let others: Vec<_> = (0..100)
            .map_while(|i| subscribe(&quotas, &caller, &["*.b", &format!("a{i}.*")]).ok())
            .collect();
        assert_eq!(others.len() as u64, 37 / work - 1);
        let refused = subscribe(&quotas, &caller, &["c.*"]).unwrap_err();
        assert_eq!(refused.quota, "filter_work");
        // A topic goes one way past all of these, however many there are.
        let _literals: Vec<_> = (0..100)
            .map(|i| {
                subscribe(&quotas, &caller, &[&format!("l.{i}"), &format!("t.{i}.>")]).unwrap()
            })
            .collect();
        drop(same);
        subscribe(&quotas, &caller, &["c.*"]).unwrap();
    }

    #[test]
    fn filters_are_bounded_by_their_bytes_and_shared_ones_cost_little() {
        let some = Quota {
            filter_bytes: Some(1 << 20),
            ..Quota::default()
        };
        let quotas = quotas(Quota::default(), some);
        let caller = known("192.0.2.1", "p");
        let count = |shared: bool| {
            let all: Vec<_> = (0..100_000)
                .map_while(|i| {
                    let long = "x".repeat(200);
                    let own = if shared { long } else { format!("{long}{i}") };
                    subscribe(&quotas, &caller, &[&own]).ok()
                })
                .collect();
            let refused = subscribe(&quotas, &caller, &["y".repeat(200).as_str()]).unwrap_err();
            assert_eq!(refused.quota, "filter_bytes");
            all.len()
        };
        let (own, shared) = (count(false), count(true));
        assert!((100..1_000).contains(&own), "{own}");
        assert!(shared > own * 3, "{shared} {own}");
    }

    #[test]
    fn a_stream_that_is_superseded_frees_its_place_at_once() {
        let one = Quota {
            subscriptions: Some(1),
            filters: Some(2),
            ..Quota::default()
        };
        let quotas = quotas(one, one);
        let caller = known("192.0.2.1", "p");
        let come = |client: &str, of: &[&str]| {
            let id = ClientId::new(client).unwrap();
            quotas.subscribe(&caller, &id, &filters(of))
        };
        let first = come("c", &["a", "b"]).unwrap();
        first.begun(1);
        // Another client has no part in its place; more filters than the quota are too many for itself, too.
        assert_eq!(come("d", &["a"]).unwrap_err().quota, "subscriptions");
        assert_eq!(come("c", &["b", "c", "d"]).unwrap_err().quota, "filters");
        // The hub may refuse it after the quotas let it pass. Then the first goes on, and counts.
        drop(come("c", &["b", "c"]).unwrap());
        assert_eq!(come("d", &["a"]).unwrap_err().quota, "subscriptions");

        let second = come("c", &["b", "c"]).unwrap();
        second.begun(2);
        // From another address, for which the first does not count: the principal is the same.
        let elsewhere = known("192.0.2.7", "p");
        let id = ClientId::new("c").unwrap();
        let third = quotas.subscribe(&elsewhere, &id, &filters(&["b"])).unwrap();
        third.begun(3);
        // The place at the first address is free for somebody else, while both old ones are still there.
        let stranger = subscribe(&quotas, &from("192.0.2.1"), &["a", "z"]).unwrap();
        drop((first, second));
        subscribe(&quotas, &from("192.0.2.1"), &["a"]).unwrap_err();
        drop((stranger, third));
        quotas.upkeep(Instant::now());
        assert!(quotas.state().users.is_empty(), "{:?}", quotas.state());
        assert!(quotas.clients().is_empty());
    }

    #[test]
    fn of_two_streams_that_begin_at_once_the_newer_counts() {
        let one = Quota {
            subscriptions: Some(1),
            ..Quota::default()
        };
        let quotas = quotas(one, Quota::default());
        let caller = from("192.0.2.1");
        let id = ClientId::new("c").unwrap();
        let first = quotas.subscribe(&caller, &id, &filters(&["a"])).unwrap();
        first.begun(1);
        let second = quotas.subscribe(&caller, &id, &filters(&["a"])).unwrap();
        let third = quotas.subscribe(&caller, &id, &filters(&["a"])).ok();
        // The third passes only once the second has begun: two places would be free for one that goes.
        assert!(third.is_none());
        second.begun(2);
        let third = quotas.subscribe(&caller, &id, &filters(&["a"])).unwrap();
        third.begun(4);
        // The hub gave 3 before 4, and was told so later.
        let late = quotas.subscribe(&caller, &id, &filters(&["a"])).unwrap();
        late.begun(3);
        drop((first, second, late));
        subscribe(&quotas, &caller, &["a"]).unwrap_err();
        drop(third);
        subscribe(&quotas, &caller, &["a"]).unwrap();
    }

    #[test]
    fn takeovers_give_nobody_more_than_twice_the_quota() {
        let limit = 64 << 10;
        let some = Quota {
            filter_bytes: Some(limit),
            ..Quota::default()
        };
        let quotas = quotas(some, Quota::default());
        let caller = from("192.0.2.1");
        let id = ClientId::new("c").unwrap();
        let mut all = Vec::new();
        // Each takes over from the one before, which does not go.
        for begun in 1..10_000 {
            let of = [Filter::new(&format!("{}{begun}", "x".repeat(200))).unwrap()];
            match quotas.subscribe(&caller, &id, &of) {
                Ok(usage) => {
                    usage.begun(begun);
                    all.push(usage);
                }
                Err(refused) => {
                    assert_eq!(refused.quota, "filter_bytes");
                    break;
                }
            }
        }
        let bytes: u64 = all.iter().map(|usage| usage.counted.filters.bytes()).sum();
        assert!(bytes > limit && bytes <= 2 * limit, "{bytes}");
    }

    /// The counts after any calls in any order are those that a count from the start gives.
    #[test]
    fn counts_are_those_of_a_count_from_the_start() {
        // Each seed has one of them that is exceeded easily.
        let quota = |seed| Quota {
            subscriptions: Some(if seed % 4 == 0 { 3 } else { 6 }),
            filters: Some(if seed % 4 == 1 { 4 } else { 9 }),
            filter_work: Some(if seed % 4 == 2 { 16 } else { 90 }),
            filter_bytes: Some(if seed % 4 == 3 { 5_000 } else { 20_000 }),
            ..Quota::default()
        };
        let pool = ["a", "b.c", "a.*", "*.c", "d.*.e", "f.>", "*", ">"];
        let mut refused = std::collections::BTreeMap::<_, u32>::new();
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let quotas = quotas(quota(seed), Quota::default());
            let caller = from("192.0.2.1");
            let mut open: Vec<SubscriptionUsage> = Vec::new();
            for begun in 1..80 {
                if random.bool() && !open.is_empty() {
                    drop(open.swap_remove(random.usize(..open.len())));
                } else {
                    let client = ClientId::new(&random.u8(..8).to_string()).unwrap();
                    let of: Vec<_> = (0..random.usize(1..4))
                        .map(|_| pool[random.usize(..pool.len())])
                        .collect();
                    match quotas.subscribe(&caller, &client, &filters(&of)) {
                        Ok(usage) => {
                            usage.begun(begun);
                            open.push(usage);
                        }
                        Err(over) => *refused.entry(over.quota).or_default() += 1,
                    }
                }
                let counting = open
                    .iter()
                    .filter(|usage| *usage.counted.standing() == Standing::Counted);
                let mut expected = usage::Usage::default();
                counting.for_each(|usage| expected.add(&usage.counted.filters));
                let user = quotas.look_up(&caller).1.remove(0);
                assert_eq!(user.usage().counts(), expected.counts(), "seed {seed}");
                assert!(user.usage().counts().0 <= 6);
            }
        }
        assert_eq!(refused.len(), 4, "every quota was exceeded: {refused:?}");
    }

    /// Beside a subscription with a sixteenth of the filters. It grew with the square.
    #[test]
    fn the_time_to_count_filters_grows_with_their_number() {
        let quota = Quota {
            filters: Some(1 << 20),
            ..Quota::default()
        };
        let quotas = quotas(quota, quota);
        let caller = known("192.0.2.1", "p");
        let time = |n: usize| {
            let names: Vec<_> = (0..n).map(|i| format!("filter.{i}")).collect();
            let all: Vec<_> = names.iter().map(String::as_str).collect();
            // Of this thread: what others do to the machine meanwhile does not count.
            let processor_time = || {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                Duration::new(
                    time.tv_sec.try_into().unwrap(),
                    time.tv_nsec.try_into().unwrap(),
                )
            };
            let began = processor_time();
            drop(subscribe(&quotas, &caller, &all).unwrap());
            processor_time() - began
        };
        let least = |n| (0..5).map(|_| time(n)).min().unwrap();
        let (few, many) = (least(1_024), least(16_384));
        assert!(many < few * 64, "{few:?} for 1,024, {many:?} for 16,384");
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
            let config = QuotaConfig {
                address: rate(10),
                observe_only,
                ..QuotaConfig::default()
            };
            let quotas = Quotas::new(config, ClientIdPolicy::Takeover);
            let (caller, began) = (from("192.0.2.1"), Instant::now());
            for i in 0..100 {
                let now = began + Duration::from_millis(i * 10);
                let passed = quotas.publish(&caller, 2, 0, now);
                assert!(!observe_only || passed.is_ok());
            }
            let counts = quotas.counts();
            let events = counts[Kind::PublishEvents as usize];
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
        let usage = subscribe(&quotas, &caller, &["a"]).unwrap();
        quotas.publish(&caller, 20, 0, now).unwrap();
        drop(usage);
        quotas.upkeep(now + Duration::from_secs(1));
        assert_eq!(quotas.state().users.len(), 1, "it has a debt");
        quotas.upkeep(now + Duration::from_secs(2));
        assert!(quotas.state().users.is_empty());
    }
}
