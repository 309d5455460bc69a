//! The configuration of quotas.

/// The quotas of a server. Default: no limits, except on the cost of filters and on bad credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaConfig {
    /// The quotas of one address: an IPv4 address, or the first 64 bits of an IPv6 address. Default:
    /// [`Quota::default`].
    pub address: Quota,
    /// The quotas of one principal, over all its addresses. Default: [`Quota::default`].
    pub principal: Quota,
    /// The most connections at once of one principal. A connection belongs to the first principal whose credentials
    /// were accepted on it. Default: `None`, no limit.
    pub principal_connections: Option<usize>,
    /// The most bad credentials from one address that are verified in a second. Beyond, credentials that were not
    /// accepted from the address before are refused unverified. `None` is no limit. Default: 100.
    pub address_auth_failures: Option<u64>,
    /// Whether calls and connections over a quota are counted and logged, but let pass. This holds for
    /// [`ServerConfig::max_connections_per_address`](crate::ServerConfig) too. Default: false.
    pub observe_only: bool,
}

/// The limits of one address or one principal. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// The most subscriptions at once. Default: `None`.
    pub subscriptions: Option<usize>,
    /// The most distinct filters in all its subscriptions together. Default: `None`.
    pub filters: Option<usize>,
    /// The most nodes that its filters may make every topic visit, as [`FilterCost`](tidegate::FilterCost) measures it:
    /// the sum over the distinct sets of filters in its subscriptions. Filters without `*` do not count, because
    /// however many they are, a topic visits a node for each of its tokens. Default: 16,384, which is about half a
    /// millisecond for each event that is published.
    pub filter_work: Option<u64>,
    /// The most bytes that are kept for its filters: for each distinct filter what
    /// [`FilterCost`](tidegate::FilterCost) says, and for each filter of each subscription its text and 192 bytes.
    /// Default: 64 MiB.
    pub filter_bytes: Option<u64>,
    /// The most events published in a second. Default: `None`.
    pub publish_events: Option<u64>,
    /// The most bytes published in a second, of encoded events. Default: `None`.
    pub publish_bytes: Option<u64>,
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

impl Default for Quota {
    fn default() -> Self {
        Self {
            subscriptions: None,
            filters: None,
            filter_work: Some(16_384),
            filter_bytes: Some(64 << 20),
            publish_events: None,
            publish_bytes: None,
        }
    }
}

impl QuotaConfig {
    pub(super) const fn has_rates(&self) -> bool {
        self.address.has_rates() || self.principal.has_rates()
    }
}

impl Quota {
    pub(super) const fn has_rates(&self) -> bool {
        self.publish_events.is_some() || self.publish_bytes.is_some()
    }
}
