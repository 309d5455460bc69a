//! The state that clients and publishers of a round share.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use tidegate::{Encoded, Hub};
use tidegate_proto::v1::Position;
use tokio::sync::watch;

use super::{Counts, plan::Link};
use crate::truth::Truth;

/// The state that clients and publishers of a round share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) started: Instant,
    /// The address of the server.
    pub(crate) address: watch::Sender<SocketAddr>,
    /// The address of the proxy that injects faults.
    pub(crate) proxy: SocketAddr,
    /// The address of the proxy that is slow.
    pub(crate) slow: SocketAddr,
    /// The hubs of all epochs, the newest last.
    pub(crate) hubs: Mutex<Vec<Hub<Encoded>>>,
    pub(crate) truth: Mutex<Truth>,
    /// The head, once nothing is published any more.
    pub(crate) finish: watch::Sender<Option<Position>>,
    /// The sequence that each healthy client has read to, in the newest epoch.
    pub(crate) progress: Vec<AtomicU64>,
    /// Number of clients.
    pub(crate) clients: usize,
    pub(crate) counts: Arc<Counts>,
}

impl World {
    /// Returns the nanoseconds since the round began.
    pub(crate) fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Returns the address at which a client reaches the server.
    pub(crate) fn address(&self, link: Link) -> SocketAddr {
        match link {
            Link::Direct => *self.address.borrow(),
            Link::Faulty => self.proxy,
            Link::Slow => self.slow,
        }
    }

    /// Returns the hub of the running server.
    pub(crate) fn hub(&self) -> Hub<Encoded> {
        let hubs = self.hubs.lock().expect("no holder panics");
        hubs.last().expect("there is a server").clone()
    }

    /// Returns the hub of an epoch.
    pub(crate) fn hub_of(&self, epoch: u64) -> Option<Hub<Encoded>> {
        let hubs = self.hubs.lock().expect("no holder panics");
        hubs.iter()
            .find(|hub| hub.position().epoch == epoch)
            .cloned()
    }

    /// Records that a new server has replaced the one before.
    pub(crate) fn begin_epoch(&self, address: SocketAddr, hub: Hub<Encoded>) {
        self.hubs.lock().expect("no holder panics").push(hub);
        self.progress
            .iter()
            .for_each(|progress| progress.store(0, Relaxed));
        self.address.send_replace(address);
    }

    /// Records the position that a healthy client has read to.
    pub(crate) fn advance(&self, healthy: usize, position: Option<Position>) {
        let Some(Position { epoch, sequence }) = position else {
            return;
        };
        if self.hub().position().epoch == epoch {
            self.progress[healthy].store(sequence, Relaxed);
        }
    }

    /// Returns how many events the slowest healthy client is behind.
    pub(crate) fn behind(&self) -> u64 {
        let slowest = self
            .progress
            .iter()
            .map(|progress| progress.load(Relaxed))
            .min();
        let head = self.hub().position().sequence;
        head.saturating_sub(slowest.unwrap_or(head))
    }
}
