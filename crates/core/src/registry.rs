//! Who is here: the subscriptions by client id.
//!
//! # Identity
//! A registration has an identity of its own and removes only itself. Removing by client id would be
//! the classic fault: a client's connection breaks, the client comes back and takes its id over, and
//! then the late cancel of the old stream removes the new one.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use crate::{hub::CloseReason, signal::Signal, sync::Mutex, topic::ClientId};

/// What happens when a client id that is in use subscribes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientIdPolicy {
    /// The newest subscription takes the id over and the old one ends with
    /// [`CloseReason::TakenOver`]. The default: the old one usually is a connection that died
    /// without saying so.
    #[default]
    Takeover,
    /// The newest subscription is refused.
    Reject,
    /// A client may hold several subscriptions.
    Several,
}

#[derive(Debug)]
pub(crate) struct Registry {
    policy: ClientIdPolicy,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Never used twice.
    next_id: u64,
    clients: HashMap<ClientId, Vec<Holder>>,
    /// Set when no further subscription is let in.
    closed: Option<CloseReason>,
}

#[derive(Debug)]
struct Holder {
    id: u64,
    signal: Arc<Signal>,
}

/// Why a subscription was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Taken,
    Closed(CloseReason),
}

impl Registry {
    pub(crate) fn new(policy: ClientIdPolicy) -> Self {
        let state = State {
            next_id: 1,
            clients: HashMap::new(),
            closed: None,
        };
        Self {
            policy,
            state: Mutex::new(state),
        }
    }

    /// Enters a subscription of `client` and returns its identity.
    pub(crate) fn enter(&self, client: &ClientId, signal: &Arc<Signal>) -> Result<u64, Refusal> {
        let (id, superseded) = {
            let mut state = self.state.lock();
            if let Some(reason) = state.closed {
                return Err(Refusal::Closed(reason));
            }
            let id = state.next_id;
            let holders = state.clients.entry(client.clone()).or_default();
            let superseded = match self.policy {
                ClientIdPolicy::Takeover => std::mem::take(holders),
                ClientIdPolicy::Reject if !holders.is_empty() => return Err(Refusal::Taken),
                ClientIdPolicy::Reject | ClientIdPolicy::Several => Vec::new(),
            };
            holders.reserve_exact(1);
            holders.push(Holder {
                id,
                signal: Arc::clone(signal),
            });
            state.next_id += 1;
            (id, superseded)
        };
        for holder in superseded {
            holder.signal.end(CloseReason::TakenOver);
        }
        Ok(id)
    }

    /// Removes the registration `id` of `client`, if it still is there, and no other.
    pub(crate) fn remove(&self, client: &ClientId, id: u64) {
        let mut state = self.state.lock();
        if let Entry::Occupied(mut holders) = state.clients.entry(client.clone()) {
            holders.get_mut().retain(|holder| holder.id != id);
            if holders.get().is_empty() {
                holders.remove();
            }
        }
    }

    /// Lets no further subscription in and ends those that are here.
    pub(crate) fn close(&self, reason: CloseReason) {
        let here: Vec<_> = {
            let mut state = self.state.lock();
            state.closed.get_or_insert(reason);
            state
                .clients
                .values()
                .flatten()
                .map(|holder| Arc::clone(&holder.signal))
                .collect()
        };
        for signal in here {
            signal.end(reason);
        }
    }

    /// How many client ids are in use.
    pub(crate) fn clients(&self) -> usize {
        self.state.lock().clients.len()
    }
}
