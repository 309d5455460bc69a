//! Who is here: the subscriptions by client id.
//!
//! # Identity
//! A registration has an identity of its own and removes only itself. Removing by client id would be
//! the classic fault: a client's connection breaks, the client comes back and takes its id over, and
//! then the late cancel of the old stream removes the new one.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::{feed::Feed, hub::CloseReason, signal::Signal, sync::Mutex, topic::ClientId};

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

/// What [`Hub::sweep`](crate::Hub::sweep) does about subscriptions whose consumer does not take what is
/// there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepRules {
    /// How long a subscription may have something before it and be handed nothing until it is *stalled*.
    /// `None` is forever. Default: 60 s.
    pub stall_timeout: Option<Duration>,
    /// The action on a stalled subscription. Default: [`StallPolicy::Park`].
    pub on_stall: StallPolicy,
    /// How long a subscription that was ended may take to notice, before its transport is told to give up
    /// ([`SubscribeOptions::reset`](crate::SubscribeOptions::reset)). Default: 5 s.
    pub reset_grace: Duration,
}

/// The action on a stalled subscription that did not ask for
/// [`Overflow::Disconnect`](crate::Overflow::Disconnect). One that did is always ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StallPolicy {
    /// It stays, at the cost of a cursor and its limits.
    #[default]
    Park,
    /// It is ended with [`CloseReason::Stalled`].
    Close,
}

/// What a sweep found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Subscriptions that are stalled and were left as they are.
    pub stalled: u64,
    /// Subscriptions that were ended because they were stalled.
    pub closed: u64,
    /// Subscriptions that had been ended and whose transport was told to give up.
    pub reset: u64,
}

/// A subscription that is here, as its last poll left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionInfo {
    /// The identity of the subscription within its hub.
    pub id: u64,
    /// Who holds it.
    pub client_id: ClientId,
    /// On whose behalf, where clients prove who they are.
    pub principal: Option<Arc<str>>,
    /// How many matching events it has still to see. During a replay, what the current round still has and
    /// what came since.
    pub backlog: u64,
    /// How many events it was handed.
    pub handed_off: u64,
    /// How many events it was told that it lost, those of conflation aside.
    pub lost: u64,
    /// How many events newer ones replaced, because it asked for
    /// [`Overflow::Conflate`](crate::Overflow::Conflate).
    pub conflated: u64,
    /// Whether the last sweep found it stalled and left it as it is.
    pub is_stalled: bool,
}

#[derive(Debug)]
pub(crate) struct Registry<P> {
    policy: ClientIdPolicy,
    state: Mutex<State<P>>,
}

/// Who holds a subscription.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    pub(crate) client: ClientId,
    pub(crate) principal: Option<Arc<str>>,
}

/// The feeds of a subscription, to look at how far it is behind.
pub(crate) type Feeds<P> = Arc<[Arc<Feed<P>>]>;

/// What a listing takes of a subscription while it holds the lock.
#[derive(Debug)]
pub(crate) struct Listed<P> {
    pub(crate) id: u64,
    pub(crate) holder: Holder,
    pub(crate) signal: Arc<Signal>,
    pub(crate) feeds: Feeds<P>,
}

#[derive(Debug)]
struct State<P> {
    /// Never used twice.
    next_id: u64,
    /// Who holds each client id. One that was taken over holds it no more.
    clients: HashMap<ClientId, Vec<u64>>,
    /// Every subscription that was not dropped, those that were ended included.
    streams: HashMap<u64, Stream<P>>,
    /// Set when no further subscription is let in.
    closed: Option<CloseReason>,
}

#[derive(Debug)]
struct Stream<P> {
    holder: Holder,
    signal: Arc<Signal>,
    /// Empty until it has joined them.
    feeds: Option<Feeds<P>>,
    /// How much it had been handed at the last sweep.
    progress: u64,
    /// When a sweep first found that it had something before it, with this progress, or had been ended.
    stuck_since: Option<Instant>,
    is_reset: bool,
}

/// Why a subscription was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Taken,
    Closed(CloseReason),
}

/// What a sweep has to do to a subscription.
enum Verdict {
    Leave,
    Stalled,
    Close,
    Reset,
}

impl Default for SweepRules {
    fn default() -> Self {
        Self {
            stall_timeout: Some(Duration::from_secs(60)),
            on_stall: StallPolicy::default(),
            reset_grace: Duration::from_secs(5),
        }
    }
}

impl<P> Registry<P> {
    pub(crate) fn new(policy: ClientIdPolicy) -> Self {
        let state = State {
            next_id: 1,
            clients: HashMap::new(),
            streams: HashMap::new(),
            closed: None,
        };
        Self {
            policy,
            state: Mutex::new(state),
        }
    }

    /// Enters a subscription of `holder` and returns its identity.
    pub(crate) fn enter(&self, holder: &Holder, signal: &Arc<Signal>) -> Result<u64, Refusal> {
        let stream = Stream::new(holder.clone(), Arc::clone(signal));
        let (id, superseded) = self.state.lock().enter(self.policy, stream)?;
        for signal in superseded {
            signal.end(CloseReason::TakenOver);
        }
        Ok(id)
    }

    /// Notes which feeds the subscription `id` has joined.
    pub(crate) fn joined(&self, id: u64, feeds: Feeds<P>) {
        if let Some(stream) = self.state.lock().streams.get_mut(&id) {
            stream.feeds = Some(feeds);
        }
    }

    /// Every subscription that has joined its feeds and was not dropped, those that were ended included.
    pub(crate) fn list(&self) -> Vec<Listed<P>> {
        let state = self.state.lock();
        let listed = state.streams.iter().filter_map(|(id, stream)| {
            Some(Listed {
                id: *id,
                holder: stream.holder.clone(),
                signal: Arc::clone(&stream.signal),
                feeds: stream.feeds.clone()?,
            })
        });
        listed.collect()
    }

    /// Ends the subscriptions that hold the id of `client`. Returns how many.
    pub(crate) fn end_client(&self, client: &ClientId, reason: CloseReason) -> usize {
        let to_end: Vec<_> = {
            let state = self.state.lock();
            let holders = state.clients.get(client).into_iter().flatten();
            let streams = holders.filter_map(|id| state.streams.get(id));
            streams.map(|stream| Arc::clone(&stream.signal)).collect()
        };
        to_end.iter().for_each(|signal| signal.end(reason));
        to_end.len()
    }

    /// Removes the registration `id` of `client`, if it still is there, and no other.
    pub(crate) fn remove(&self, client: &ClientId, id: u64) {
        let removed = self.state.lock().remove(client, id);
        // Its feeds may free events, which is not done under the lock.
        drop(removed);
    }

    /// Ends the subscription with the registration `id`. Returns whether it is there.
    pub(crate) fn end(&self, id: u64, reason: CloseReason) -> bool {
        let signal = {
            let state = self.state.lock();
            let stream = state.streams.get(&id);
            stream.map(|stream| Arc::clone(&stream.signal))
        };
        if let Some(signal) = &signal {
            signal.end(reason);
        }
        signal.is_some()
    }

    /// Lets no further subscription in and ends those that are here.
    pub(crate) fn close(&self, reason: CloseReason) {
        let here: Vec<_> = {
            let mut state = self.state.lock();
            state.closed.get_or_insert(reason);
            state
                .streams
                .values()
                .map(|stream| Arc::clone(&stream.signal))
                .collect()
        };
        for signal in here {
            signal.end(reason);
        }
    }

    /// Looks at every subscription once, and ends or resets those that are stuck by the rules.
    pub(crate) fn sweep(&self, rules: &SweepRules, now: Instant) -> Swept {
        let mut swept = Swept::default();
        let mut to_close = Vec::new();
        let mut to_reset = Vec::new();
        for stream in self.state.lock().streams.values_mut() {
            let verdict = stream.judge(rules, now);
            let signal = || Arc::clone(&stream.signal);
            let is_stalled = matches!(verdict, Verdict::Stalled);
            stream.signal.tally().is_stalled.store(is_stalled, Relaxed);
            match verdict {
                Verdict::Leave => {}
                Verdict::Stalled => swept.stalled += 1,
                Verdict::Close => to_close.push(signal()),
                Verdict::Reset => to_reset.push(signal()),
            }
        }
        (swept.closed, swept.reset) = (to_close.len() as u64, to_reset.len() as u64);
        to_close
            .iter()
            .for_each(|signal| signal.end(CloseReason::Stalled));
        to_reset.iter().for_each(|signal| signal.reset());
        swept
    }

    /// How many client ids are in use.
    pub(crate) fn clients(&self) -> usize {
        self.state.lock().clients.len()
    }
}

impl<P> State<P> {
    fn remove(&mut self, client: &ClientId, id: u64) -> Option<Stream<P>> {
        if let Entry::Occupied(mut holders) = self.clients.entry(client.clone()) {
            holders.get_mut().retain(|holder| *holder != id);
            if holders.get().is_empty() {
                holders.remove();
            }
        }
        self.streams.remove(&id)
    }

    fn enter(
        &mut self,
        policy: ClientIdPolicy,
        stream: Stream<P>,
    ) -> Result<(u64, Vec<Arc<Signal>>), Refusal> {
        if let Some(reason) = self.closed {
            return Err(Refusal::Closed(reason));
        }
        let id = self.next_id;
        let Holder { client, principal } = &stream.holder;
        let holders = self.clients.entry(client.clone()).or_default();
        let is_of_another = |id| self.streams[id].holder.principal != *principal;
        if holders.iter().any(is_of_another) {
            return Err(Refusal::Taken);
        }
        let superseded = match policy {
            ClientIdPolicy::Takeover => std::mem::take(holders),
            ClientIdPolicy::Reject if !holders.is_empty() => return Err(Refusal::Taken),
            ClientIdPolicy::Reject | ClientIdPolicy::Several => Vec::new(),
        };
        holders.reserve_exact(1);
        holders.push(id);
        self.next_id += 1;
        self.streams.insert(id, stream);
        let signals = superseded.iter().filter_map(|old| self.streams.get(old));
        Ok((
            id,
            signals.map(|stream| Arc::clone(&stream.signal)).collect(),
        ))
    }
}

impl<P> Stream<P> {
    const fn new(holder: Holder, signal: Arc<Signal>) -> Self {
        Self {
            holder,
            signal,
            feeds: None,
            progress: 0,
            stuck_since: None,
            is_reset: false,
        }
    }

    fn judge(&mut self, rules: &SweepRules, now: Instant) -> Verdict {
        let look = self.signal.look();
        if look.progress != self.progress || !(look.is_behind || look.is_closed) {
            self.progress = look.progress;
            self.stuck_since = None;
        }
        if !(look.is_behind || look.is_closed) {
            return Verdict::Leave;
        }
        let stuck_for = now.saturating_duration_since(*self.stuck_since.get_or_insert(now));
        if look.is_closed {
            let give_up = stuck_for >= rules.reset_grace && !self.is_reset;
            self.is_reset |= give_up;
            return if give_up {
                Verdict::Reset
            } else {
                Verdict::Leave
            };
        }
        if rules
            .stall_timeout
            .is_none_or(|timeout| stuck_for < timeout)
        {
            return Verdict::Leave;
        }
        if rules.on_stall == StallPolicy::Close || look.ends_when_stalled {
            // From now on it is the grace that counts.
            self.stuck_since = Some(now);
            return Verdict::Close;
        }
        Verdict::Stalled
    }
}
