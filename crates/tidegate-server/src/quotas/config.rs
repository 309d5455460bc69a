//! How much everyone may use, as it is configured.

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
    pub(super) const fn has_rates(&self) -> bool {
        self.address.has_rates() || self.principal.has_rates()
    }
}

impl Quota {
    pub(super) const fn has_rates(&self) -> bool {
        self.publish_events.is_some() || self.publish_bytes.is_some()
    }
}
