//! What everybody in a round shares.

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

use super::Counts;
use crate::truth::Truth;

/// What everybody in a round shares.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) started: Instant,
    /// Where the server is.
    pub(crate) address: watch::Sender<SocketAddr>,
    /// Where the proxy is.
    pub(crate) proxy: SocketAddr,
    /// The hubs of all epochs, the newest last.
    pub(crate) hubs: Mutex<Vec<Hub<Encoded>>>,
    pub(crate) truth: Mutex<Truth>,
    /// The head, when nothing is published any more.
    pub(crate) finish: watch::Sender<Option<Position>>,
    /// Up to where each healthy client has read, in the newest epoch.
    pub(crate) progress: Vec<AtomicU64>,
    /// How many client ids there are.
    pub(crate) clients: usize,
    pub(crate) counts: Arc<Counts>,
}

impl World {
    /// Nanoseconds since the round began.
    pub(crate) fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// The hub of the server that runs.
    pub(crate) fn hub(&self) -> Hub<Encoded> {
        let hubs = self.hubs.lock().expect("no holder panics");
        hubs.last().expect("there is a server").clone()
    }

    /// The hub of this epoch.
    pub(crate) fn hub_of(&self, epoch: u64) -> Option<Hub<Encoded>> {
        let hubs = self.hubs.lock().expect("no holder panics");
        hubs.iter()
            .find(|hub| hub.position().epoch == epoch)
            .cloned()
    }

    /// A server has taken the place of the one before.
    pub(crate) fn begin_epoch(&self, address: SocketAddr, hub: Hub<Encoded>) {
        self.hubs.lock().expect("no holder panics").push(hub);
        self.progress
            .iter()
            .for_each(|progress| progress.store(0, Relaxed));
        self.address.send_replace(address);
    }

    /// Notes how far a healthy client has read.
    pub(crate) fn advance(&self, healthy: usize, position: Option<Position>) {
        let Some(Position { epoch, sequence }) = position else {
            return;
        };
        if self.hub().position().epoch == epoch {
            self.progress[healthy].store(sequence, Relaxed);
        }
    }

    /// How far the slowest healthy client is behind.
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
