//! The admission of connections: limits on their number, in total and from one address.
//!
//! A connection beyond a limit is reset at once. It costs no task, no buffer and, since a reset leaves no state behind,
//! nothing in the kernel. If such connections waited instead, they would fill the queue of the listener, and the client
//! that fills it would keep the others out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use super::metered::Traffic;
use crate::address::network_of;

/// The connections of a server in numbers. Cheap to clone; all clones read the same numbers.
#[derive(Debug, Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

/// The numbers of an [`Admission`] at one moment. All but `open` count from the start of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Connections that are open now.
    pub open: usize,
    /// Connections that were refused because [`max_connections`](crate::ServerConfig::max_connections) were open.
    pub refused: u64,
    /// Connections that were refused because their address had
    /// [`max_connections_per_address`](crate::ServerConfig::max_connections_per_address) open.
    pub refused_by_address: u64,
    /// Connections beyond the limit of their address that were admitted, because quotas are only observed.
    pub observed_by_address: u64,
    /// Bytes that were written to the sockets of connections, with what TLS adds.
    pub bytes_sent: u64,
    /// Bytes that were read from them.
    pub bytes_received: u64,
}

/// The place of one open connection, which is freed when this is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    shared: Arc<Shared>,
    address: IpAddr,
}

/// The limit that keeps a connection out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("connection limit reached")]
    Full,
    #[error("connection limit of its address reached")]
    AddressFull,
}

#[derive(Debug)]
struct Shared {
    max_connections: usize,
    /// `usize::MAX` for no limit.
    max_per_address: usize,
    open: Mutex<Open>,
    refused: AtomicU64,
    refused_by_address: AtomicU64,
    observed_by_address: AtomicU64,
    traffic: Arc<Traffic>,
    /// Whether connections beyond the limit of their address are counted and admitted.
    observe_only: AtomicBool,
}

/// The connections that are open.
#[derive(Debug, Default)]
struct Open {
    total: usize,
    /// Connections by address. Empty without a limit for it, and no entry is 0, so that it grows no larger than
    /// `total`.
    by_address: HashMap<IpAddr, usize>,
}

// ===== impl Admission =====

impl Admission {
    pub(crate) fn new(max_connections: usize, max_per_address: Option<usize>) -> Self {
        let shared = Shared {
            max_connections,
            max_per_address: max_per_address.unwrap_or(usize::MAX),
            open: Mutex::default(),
            refused: AtomicU64::new(0),
            refused_by_address: AtomicU64::new(0),
            observed_by_address: AtomicU64::new(0),
            traffic: Arc::default(),
            observe_only: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The numbers at this moment.
    #[must_use]
    pub fn stats(&self) -> ConnectionStats {
        ConnectionStats {
            open: self.shared.open().total,
            refused: self.shared.refused.load(Relaxed),
            refused_by_address: self.shared.refused_by_address.load(Relaxed),
            observed_by_address: self.shared.observed_by_address.load(Relaxed),
            bytes_sent: self.shared.traffic.sent.load(Relaxed),
            bytes_received: self.shared.traffic.received.load(Relaxed),
        }
    }

    /// The count of the bytes of connections.
    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.shared.traffic
    }

    /// Sets whether connections beyond the limit of their address are counted and admitted.
    pub(crate) fn set_observe_only(&self, observe_only: bool) {
        self.shared.observe_only.store(observe_only, Relaxed);
    }

    /// Admits a connection from `peer`, or counts that it was refused.
    pub(crate) fn admit(&self, peer: IpAddr) -> Result<ConnectionPermit, Refusal> {
        let address = network_of(peer);
        let entered = self.shared.enter(address);
        match entered {
            Ok(()) => {}
            Err(Refusal::Full) => _ = self.shared.refused.fetch_add(1, Relaxed),
            Err(Refusal::AddressFull) => {
                _ = self.shared.refused_by_address.fetch_add(1, Relaxed);
            }
        }
        entered.map(|()| ConnectionPermit {
            shared: Arc::clone(&self.shared),
            address,
        })
    }
}

// ===== impl Shared =====

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts_addresses(&self) -> bool {
        self.max_per_address < usize::MAX
    }

    fn enter(&self, address: IpAddr) -> Result<(), Refusal> {
        // One lock over check and count: two connections at once must not both take the last place.
        let mut open = self.open();
        if open.total >= self.max_connections {
            return Err(Refusal::Full);
        }
        if self.counts_addresses() {
            let of_address = open.by_address.get(&address).copied().unwrap_or(0);
            if of_address >= self.max_per_address {
                if !self.observe_only.load(Relaxed) {
                    return Err(Refusal::AddressFull);
                }
                self.observed_by_address.fetch_add(1, Relaxed);
            }
            open.by_address.insert(address, of_address + 1);
        }
        open.total += 1;
        Ok(())
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self.shared.open();
        open.total -= 1;
        if let Some(of_address) = open.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(admission: &Admission, peer: &str) -> Result<ConnectionPermit, Refusal> {
        admission.admit(peer.parse().unwrap())
    }

    #[test]
    fn each_address_has_a_cap_of_its_own() {
        let admission = Admission::new(4, Some(2));
        let first = admit(&admission, "192.0.2.1").unwrap();
        // The same, as a socket for both families sees it.
        let second = admit(&admission, "::ffff:192.0.2.1").unwrap();
        let refused = admit(&admission, "192.0.2.1").unwrap_err();
        assert_eq!(refused, Refusal::AddressFull);
        let _third = admit(&admission, "2001:db8::1").unwrap();
        let _fourth = admit(&admission, "2001:db8::2").unwrap();
        drop(first);
        // One network, whatever the host makes of the rest.
        let refused = admit(&admission, "2001:db8::ffff:1").unwrap_err();
        assert_eq!(refused, Refusal::AddressFull);
        let _other = admit(&admission, "2001:db8:0:1::1").unwrap();
        let full = admit(&admission, "192.0.2.9").unwrap_err();
        assert_eq!(full, Refusal::Full);
        drop(second);
        let stats = admission.stats();
        assert_eq!((stats.open, stats.refused), (3, 1));
        assert_eq!(stats.refused_by_address, 2);
    }

    #[test]
    fn an_address_without_connections_is_forgotten() {
        let admission = Admission::new(10, Some(1));
        drop(admit(&admission, "192.0.2.1").unwrap());
        assert!(admission.shared.open().by_address.is_empty());
        assert_eq!(admission.stats(), ConnectionStats::default());
    }
}
