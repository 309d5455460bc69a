//! The subscribers of a server: who is subscribed, from where, since when and to what, and how streams ended. The
//! gate of the event service records them, because it is asked before each subscription begins.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use tidegate::{Caller, Gate, Limits, OverQuota, Permit, Reason};

use super::{Quotas, SubscriptionUsage};

/// How a stream ended whose client left, or whose connection broke.
pub(crate) const CLIENT_LEFT: &str = "CLIENT_LEFT";

/// What a stream that has begun can end with. Others may come to be written down too.
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

#[derive(Debug)]
pub(crate) struct Subscribers {
    pub(crate) quotas: Arc<Quotas>,
    records: Mutex<Records>,
}

#[derive(Debug)]
struct Records {
    /// The subscriptions that are open, by their ids.
    open: HashMap<u64, Subscriber>,
    begun: u64,
    endings: BTreeMap<&'static str, u64>,
}

/// What is written down of a subscription.
#[derive(Debug, Clone)]
pub(crate) struct Subscriber {
    pub(crate) address: Option<SocketAddr>,
    pub(crate) filters: Arc<[Arc<str>]>,
    pub(crate) limits: Limits,
    pub(crate) since: SystemTime,
}

/// The gate of the event service.
#[derive(Debug, Clone)]
pub(crate) struct QuotaGate(pub(crate) Arc<Subscribers>);

#[derive(Debug)]
struct SubscriptionPermit {
    subscribers: Arc<Subscribers>,
    caller: Caller,
    filters: Arc<[Arc<str>]>,
    usage: SubscriptionUsage,
    /// The id of the subscription, when it has begun and not ended.
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

    pub(crate) fn subscriber(&self, id: u64) -> Option<Subscriber> {
        self.records().open.get(&id).cloned()
    }

    /// How many streams have begun.
    pub(crate) fn begun(&self) -> u64 {
        self.records().begun
    }

    /// How many streams ended for each reason.
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
    fn subscribe(&self, caller: &Caller, filters: &[String]) -> Result<Box<dyn Permit>, OverQuota> {
        let filters: Arc<[Arc<str>]> = filters
            .iter()
            .map(|filter| filter.as_str().into())
            .collect();
        let usage = self.0.quotas.subscribe(caller, Arc::clone(&filters))?;
        Ok(Box::new(SubscriptionPermit {
            subscribers: Arc::clone(&self.0),
            caller: caller.clone(),
            filters,
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
        self.subscribers.quotas.release(&self.usage);
    }
}
