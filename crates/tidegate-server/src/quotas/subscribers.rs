//! The subscribers of a server: who is subscribed, from where, since when and to what, and how streams ended. The
//! gate of the event service records them, because it is asked before each subscription begins.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use tidegate::{Caller, Filter, Gate, Limits, OverQuota, Permit, Reason, SubscribeOptions};

use super::{Quotas, SubscriptionUsage};

/// The ending of a stream that the server did not end: its client left, or its connection broke.
pub(crate) const CLIENT_LEFT: &str = "CLIENT_LEFT";

/// The endings that are counted from 0 on, so that metrics have them before they happen. A stream that ends otherwise
/// is counted too, from then on.
const ENDINGS: [&str; 12] = [
    CLIENT_LEFT,
    Reason::CredentialsExpired.as_str(),
    Reason::CredentialsRevoked.as_str(),
    Reason::DeadlineExceeded.as_str(),
    Reason::Disconnected.as_str(),
    Reason::EpochChanged.as_str(),
    Reason::MaxConnectionAge.as_str(),
    Reason::NotAllowed.as_str(),
    Reason::ShuttingDown.as_str(),
    Reason::Stalled.as_str(),
    Reason::TakenOver.as_str(),
    Reason::TooSlow.as_str(),
];

/// The subscriptions of a server, and the quotas that they count for.
#[derive(Debug)]
pub(crate) struct Subscribers {
    pub(crate) quotas: Arc<Quotas>,
    records: Mutex<Records>,
}

/// The record of subscriptions, behind one lock.
#[derive(Debug)]
struct Records {
    /// The subscriptions that are open, by their ids.
    open: HashMap<u64, Subscriber>,
    /// Streams that have begun.
    begun: u64,
    /// Streams that have ended, by the reason.
    endings: BTreeMap<&'static str, u64>,
}

/// The record of one subscription.
#[derive(Debug, Clone)]
pub(crate) struct Subscriber {
    pub(crate) address: Option<SocketAddr>,
    pub(crate) filters: Arc<[Filter]>,
    pub(crate) limits: Limits,
    pub(crate) since: SystemTime,
}

/// The gate of the event service: it holds callers to their quotas, and records their subscriptions.
#[derive(Debug, Clone)]
pub(crate) struct QuotaGate(pub(crate) Arc<Subscribers>);

/// The permit of one subscription. Dropping it ends its record and its use of quotas.
#[derive(Debug)]
struct SubscriptionPermit {
    subscribers: Arc<Subscribers>,
    caller: Caller,
    filters: Arc<[Filter]>,
    /// Held for what it counts, until its drop.
    usage: SubscriptionUsage,
    /// The id of the subscription, as soon as it has begun.
    id: Option<u64>,
}

impl Subscribers {
    pub(crate) fn new(quotas: Quotas) -> Self {
        let records = Records {
            open: HashMap::new(),
            begun: 0,
            endings: ENDINGS.map(|ending| (ending, 0)).into(),
        };
        Self {
            quotas: Arc::new(quotas),
            records: Mutex::new(records),
        }
    }

    /// The record of an open subscription.
    pub(crate) fn subscriber(&self, id: u64) -> Option<Subscriber> {
        self.records().open.get(&id).cloned()
    }

    /// The number of streams that have begun.
    pub(crate) fn begun(&self) -> u64 {
        self.records().begun
    }

    /// The number of streams that have ended, by the reason.
    pub(crate) fn endings(&self) -> Vec<(&'static str, u64)> {
        let records = self.records();
        records
            .endings
            .iter()
            .map(|(name, n)| (*name, *n))
            .collect()
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate for QuotaGate {
    fn subscribe(
        &self,
        caller: &Caller,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Permit>, OverQuota> {
        let SubscribeOptions {
            client_id, filters, ..
        } = options;
        let usage = self.0.quotas.subscribe(caller, client_id, filters)?;
        Ok(Box::new(SubscriptionPermit {
            subscribers: Arc::clone(&self.0),
            caller: caller.clone(),
            filters: filters.as_slice().into(),
            usage,
            id: None,
        }))
    }

    fn limits_publishing(&self) -> bool {
        self.0.quotas.measures_publishing()
    }

    fn publish(&self, caller: &Caller, events: usize, bytes: u64) -> Result<(), OverQuota> {
        self.0.quotas.publish(caller, events, bytes, Instant::now())
    }
}

impl Permit for SubscriptionPermit {
    fn begun(&mut self, id: u64, limits: &Limits) {
        let subscriber = Subscriber {
            address: self.caller.address,
            filters: Arc::clone(&self.filters),
            limits: *limits,
            since: SystemTime::now(),
        };
        let mut records = self.subscribers.records();
        records.begun += 1;
        records.open.insert(id, subscriber);
        self.id = Some(id);
        drop(records);
        self.usage.begun(id);
    }

    fn ended(&mut self, reason: Option<Reason>) {
        let ending = reason.map_or(CLIENT_LEFT, Reason::as_str);
        *self
            .subscribers
            .records()
            .endings
            .entry(ending)
            .or_default() += 1;
    }
}

impl Drop for SubscriptionPermit {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.subscribers.records().open.remove(&id);
        }
    }
}
