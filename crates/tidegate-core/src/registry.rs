//! The registry: the subscriptions of a hub, by client id.
//!
//! # Identity
//! A registration has an identity of its own and removes only itself. Removing by client id would be
//! the classic fault: a client's connection breaks, the client comes back and takes its id over, and
//! then the late cancel of the old stream removes the new one.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Waker,
    time::{Duration, Instant},
};

use crate::{
    close::CloseReason,
    event::Payload,
    info::{Holder, SubscriptionInfo},
    signal::Signal,
    standing::Standing,
    sync::Mutex,
    topic::ClientId,
    wake::{for_all, wake_all},
};

/// The subscriptions of a hub.
#[derive(Debug)]
pub(crate) struct Registry<P> {
    /// The policy for a second subscription of one client id.
    policy: ClientIdPolicy,
    /// Everything else, behind the registry's lock.
    state: Mutex<State<P>>,
}

/// The policy for a client id that is in use and subscribes again.
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

/// The rules of [`Hub::sweep`](crate::Hub::sweep) for subscriptions whose consumer does not take its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepRules {
    /// How long a subscription may have events to take and take none, nor its peer a byte, until it is *stalled*.
    /// `None` is forever. Default: 60 s.
    pub stall_timeout: Option<Duration>,
    /// The action on a stalled subscription. Default: [`StallPolicy::Park`].
    pub on_stall: StallPolicy,
    /// How long a subscription that was ended may take nothing, and not notice, before its transport is told to
    /// [give up](crate::Transport::reset). Default: 5 s.
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

/// The result of a sweep: how many subscriptions it found, and what it did to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Subscriptions that are stalled and were left as they are.
    pub stalled: u64,
    /// Subscriptions that were ended because they were stalled.
    pub closed: u64,
    /// Subscriptions that had been ended and whose transport was told to give up.
    pub reset: u64,
}

/// A subscription as a listing takes it along from under the registry's lock. Its feeds are asked after that, since
/// each has a lock of its own.
#[derive(Debug)]
pub(crate) struct Listed<P> {
    /// The identity of the subscription.
    id: u64,
    /// The client and principal that hold it.
    holder: Holder,
    /// Its signal, which has its tally.
    signal: Arc<Signal>,
    /// Its places in its feeds, whose ends tell how far it is behind.
    standing: Arc<Standing<P>>,
}

/// The reason why a subscription was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The client id is in use.
    Taken,
    /// The hub was closed.
    Closed(CloseReason),
}

/// The state behind the registry's lock.
#[derive(Debug)]
struct State<P> {
    /// The identity of the next subscription. None is used twice.
    next_id: u64,
    /// The subscriptions that hold each client id. One that was taken over holds it no more.
    clients: HashMap<ClientId, Holders>,
    /// Every subscription that was not dropped, those that were ended included.
    registrations: HashMap<u64, Registration<P>>,
    /// The reason why the hub was closed; no subscription is let in after it.
    closed: Option<CloseReason>,
}

/// The subscriptions that hold one client id, at least one. All of them have the same principal, because
/// another one is refused.
#[derive(Debug)]
enum Holders {
    /// The only one, as most client ids have it. It takes no memory of its own.
    One(u64),
    /// Two or more, or what is left of them. A set, because a client may have thousands, and each of them
    /// enters and leaves under the registry's lock.
    Several(BTreeSet<u64>),
}

/// One subscription, from before it joins its feeds until it is dropped.
#[derive(Debug)]
struct Registration<P> {
    /// The client and principal that hold it.
    holder: Holder,
    /// The place to reach it.
    signal: Arc<Signal>,
    /// Its places in its feeds. `None` until it has joined them.
    standing: Option<Arc<Standing<P>>>,
    /// Its progress at the last sweep.
    progress: u64,
    /// The time of the first sweep that found it with events to take, or ended, at this progress.
    stuck_since: Option<Instant>,
}

/// The action of a sweep on one subscription.
enum SweepAction {
    /// None.
    Leave,
    /// Count it as stalled, and none else.
    Stalled,
    /// End it as stalled.
    Close,
    /// Tell its transport to give up.
    Reset,
}

// ===== impl Registry =====

impl<P> Registry<P> {
    /// A registry without subscriptions.
    pub(crate) fn new(policy: ClientIdPolicy) -> Self {
        let state = State {
            next_id: 1,
            clients: HashMap::new(),
            registrations: HashMap::new(),
            closed: None,
        };
        Self {
            policy,
            state: Mutex::new(state),
        }
    }

    /// Enters a subscription of `holder` and returns its identity. Ends those that it takes over from.
    pub(crate) fn enter(&self, holder: &Holder, signal: &Arc<Signal>) -> Result<u64, Refusal> {
        let registration = Registration::new(holder.clone(), Arc::clone(signal));
        let (id, superseded) = self.state.lock().enter(self.policy, registration)?;
        // Outside of the lock: ending wakes. Should a waker panic, nobody is here who does not exist.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            end_all(&superseded, CloseReason::TakenOver);
        }));
        if let Err(panic) = ended {
            self.remove(&holder.client, id);
            resume_unwind(panic);
        }
        Ok(id)
    }

    /// Notes the places of the subscription `id` in the feeds that it has joined. From here on it is listed.
    pub(crate) fn joined(&self, id: u64, standing: Arc<Standing<P>>) {
        if let Some(registration) = self.state.lock().registrations.get_mut(&id) {
            registration.standing = Some(standing);
        }
    }

    /// Lists every subscription that has joined its feeds and was not dropped, including ended ones.
    pub(crate) fn list(&self) -> Vec<Listed<P>> {
        let state = self.state.lock();
        let listed = state.registrations.iter().filter_map(|(id, registration)| {
            Some(Listed {
                id: *id,
                holder: registration.holder.clone(),
                signal: Arc::clone(&registration.signal),
                standing: registration.standing.clone()?,
            })
        });
        listed.collect()
    }

    /// Ends the subscriptions that hold the id of `client`. Returns how many there were.
    pub(crate) fn end_client(&self, client: &ClientId, reason: CloseReason) -> usize {
        let to_end: Vec<_> = {
            let state = self.state.lock();
            let holders = state.clients.get(client).into_iter().flat_map(Holders::ids);
            let registrations = holders.filter_map(|id| state.registrations.get(&id));
            registrations
                .map(|registration| Arc::clone(&registration.signal))
                .collect()
        };
        end_all(&to_end, reason);
        to_end.len()
    }

    /// Removes the registration `id` of `client`, and no other.
    pub(crate) fn remove(&self, client: &ClientId, id: u64) {
        let removed = self.state.lock().remove(client, id);
        // After the lock: should this be the last reference to a signal or a feed, wakers and events go with it.
        drop(removed);
    }

    /// Ends the subscription with the registration `id`. Returns whether it is there.
    pub(crate) fn end(&self, id: u64, reason: CloseReason) -> bool {
        let signal = {
            let state = self.state.lock();
            let registration = state.registrations.get(&id);
            registration.map(|registration| Arc::clone(&registration.signal))
        };
        end_all(&signal, reason);
        signal.is_some()
    }

    /// Lets no further subscription in and ends all that are here.
    pub(crate) fn close(&self, reason: CloseReason) {
        // In one step: whoever enters is either ended here, or finds the hub closed.
        let here: Vec<_> = {
            let mut state = self.state.lock();
            state.closed.get_or_insert(reason);
            state
                .registrations
                .values()
                .map(|registration| Arc::clone(&registration.signal))
                .collect()
        };
        end_all(&here, reason);
    }

    /// Ends all that are here, and lets others in. Returns the wakers, to be called after the locks of the caller.
    pub(crate) fn end_epoch(&self, reason: CloseReason) -> Vec<Waker> {
        let state = self.state.lock();
        let here = state.registrations.values();
        here.filter_map(|registration| registration.signal.end(reason).1)
            .collect()
    }

    /// Wakes all that wait. The caller holds no lock.
    pub(crate) fn wake_all(&self) {
        let wakers: Vec<_> = {
            let state = self.state.lock();
            let here = state.registrations.values();
            here.filter_map(|registration| registration.signal.take_waker())
                .collect()
        };
        wake_all(wakers);
    }

    /// Looks at every subscription once, and ends or resets the stuck ones by the rules.
    pub(crate) fn sweep(&self, rules: &SweepRules, now: Instant) -> Swept {
        let mut swept = Swept::default();
        // Gathered under the lock, ended and reset after it, because both wake.
        let mut to_close = Vec::new();
        let mut to_reset = Vec::new();
        for registration in self.state.lock().registrations.values_mut() {
            let action = registration.check(rules, now);
            let signal = || Arc::clone(&registration.signal);
            let is_stalled = matches!(action, SweepAction::Stalled);
            registration
                .signal
                .tally()
                .is_stalled
                .store(is_stalled, Relaxed);
            match action {
                SweepAction::Leave => {}
                SweepAction::Stalled => swept.stalled += 1,
                SweepAction::Close => to_close.push(signal()),
                SweepAction::Reset => to_reset.push(signal()),
            }
        }
        (swept.closed, swept.reset) = (to_close.len() as u64, to_reset.len() as u64);
        end_all(&to_close, CloseReason::Stalled);
        // Should a waker above have panicked, the next sweep finds these as they are.
        for_all(&to_reset, |signal| _ = signal.reset());
        swept
    }

    /// How many client ids are in use.
    pub(crate) fn clients(&self) -> usize {
        self.state.lock().clients.len()
    }
}

/// Ends each of `signals` that has not ended for another reason before, and wakes all of them. The caller holds no
/// lock.
fn end_all<'a>(signals: impl IntoIterator<Item = &'a Arc<Signal>>, reason: CloseReason) {
    // All are ended before the first is woken, whose waker may panic.
    let ended: Vec<_> = signals
        .into_iter()
        .map(|signal| signal.end(reason).1)
        .collect();
    wake_all(ended.into_iter().flatten());
}

/// Ends the subscriptions of `signals` as stalled, and tells their transports to give up at once: what they hold is
/// needed, and no status could pass it. Returns how many of them had not ended before, and how many were told. The
/// caller holds no lock.
pub(crate) fn give_up_on(signals: &[Arc<Signal>]) -> (u64, u64) {
    let (mut ended, mut reset) = (0, 0);
    let mut wakers = Vec::new();
    for signal in signals {
        let (is_first, waker) = signal.end(CloseReason::Stalled);
        ended += u64::from(is_first);
        wakers.extend(waker);
    }
    // In one go: should a transport panic, the tasks are woken all the same, and nothing else will wake them.
    let resets = signals.iter().map(Call::Reset);
    for_all(
        resets.chain(wakers.into_iter().map(Call::Wake)),
        |call| match call {
            Call::Reset(signal) => reset += u64::from(signal.reset()),
            Call::Wake(waker) => waker.wake(),
        },
    );
    (ended, reset)
}

/// Code of others that [`give_up_on`] calls.
enum Call<'a> {
    /// The transport of a subscription.
    Reset(&'a Arc<Signal>),
    /// A waker.
    Wake(Waker),
}

// ===== impl State =====

impl<P> State<P> {
    /// Removes a registration, and gives it back to be dropped outside of the lock.
    fn remove(&mut self, client: &ClientId, id: u64) -> Option<Registration<P>> {
        if let Entry::Occupied(mut holders) = self.clients.entry(client.clone())
            && holders.get_mut().remove(id)
        {
            holders.remove();
        }
        self.registrations.remove(&id)
    }

    /// Enters `registration` under `policy`. Returns its identity and the signals of the ones it supersedes.
    fn enter(
        &mut self,
        policy: ClientIdPolicy,
        registration: Registration<P>,
    ) -> Result<(u64, Vec<Arc<Signal>>), Refusal> {
        if let Some(reason) = self.closed {
            return Err(Refusal::Closed(reason));
        }
        let id = self.next_id;
        let Holder { client, principal } = &registration.holder;
        let superseded = match self.clients.entry(client.clone()) {
            Entry::Vacant(free) => {
                free.insert(Holders::One(id));
                None
            }
            Entry::Occupied(mut holders) => {
                // Whatever the policy: another principal could otherwise end the stream of this one. One holder
                // speaks for all of them.
                let of_holders = &self.registrations[&holders.get().any()].holder.principal;
                if of_holders != principal || policy == ClientIdPolicy::Reject {
                    return Err(Refusal::Taken);
                }
                match policy {
                    ClientIdPolicy::Several => {
                        holders.get_mut().add(id);
                        None
                    }
                    _ => Some(holders.insert(Holders::One(id))),
                }
            }
        };
        self.next_id += 1;
        self.registrations.insert(id, registration);
        let superseded = superseded.iter().flat_map(Holders::ids);
        let signals = superseded
            .filter_map(|old| self.registrations.get(&old))
            .map(|registration| Arc::clone(&registration.signal));
        Ok((id, signals.collect()))
    }
}

// ===== impl Holders =====

impl Holders {
    /// One of them.
    fn any(&self) -> u64 {
        match self {
            Self::One(id) => *id,
            Self::Several(ids) => *ids.first().expect("the last one takes the entry with it"),
        }
    }

    /// All of them, in the order in which they came.
    fn ids(&self) -> impl Iterator<Item = u64> {
        let (one, several) = match self {
            Self::One(id) => (Some(*id), None),
            Self::Several(ids) => (None, Some(ids.iter().copied())),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }

    /// Adds `id`, which is none of them.
    fn add(&mut self, id: u64) {
        match self {
            Self::One(first) => *self = Self::Several(BTreeSet::from([*first, id])),
            Self::Several(ids) => _ = ids.insert(id),
        }
    }

    /// Removes `id`, if it is one of them. Returns whether none is left.
    fn remove(&mut self, id: u64) -> bool {
        match self {
            Self::One(only) => *only == id,
            Self::Several(ids) => {
                ids.remove(&id);
                ids.is_empty()
            }
        }
    }
}

// ===== impl Registration =====

impl<P> Registration<P> {
    /// A registration that no sweep has seen.
    const fn new(holder: Holder, signal: Arc<Signal>) -> Self {
        Self {
            holder,
            signal,
            standing: None,
            progress: 0,
            stuck_since: None,
        }
    }

    /// Compares the subscription with the last sweep, and decides by the rules.
    fn check(&mut self, rules: &SweepRules, now: Instant) -> SweepAction {
        let seen = self.signal.snapshot();
        // It took something, or has nothing to take: its time begins anew.
        if seen.progress != self.progress || !(seen.is_behind || seen.is_closed) {
            self.progress = seen.progress;
            self.stuck_since = None;
        }
        if !(seen.is_behind || seen.is_closed) {
            return SweepAction::Leave;
        }
        let stuck_for = now.saturating_duration_since(*self.stuck_since.get_or_insert(now));
        // Ended: it has the grace to be polled and dropped, and then is gone from here.
        if seen.is_closed {
            return if stuck_for >= rules.reset_grace && !seen.is_reset {
                SweepAction::Reset
            } else {
                SweepAction::Leave
            };
        }
        if rules
            .stall_timeout
            .is_none_or(|timeout| stuck_for < timeout)
        {
            return SweepAction::Leave;
        }
        if rules.on_stall == StallPolicy::Close || seen.ends_when_stalled {
            // From now on it is the grace that counts.
            self.stuck_since = Some(now);
            return SweepAction::Close;
        }
        SweepAction::Stalled
    }
}

// ===== impl Listed =====

impl<P: Payload> Listed<P> {
    /// The public form. Takes the lock of each feed in turn.
    pub(crate) fn info(&self) -> SubscriptionInfo {
        let tally = self.signal.tally();
        // Before the ends are read, which only rise: a poll in between makes the backlog too large, never negative.
        let stands_at = tally.stands_at.load(Relaxed);
        let (ends, pending) = self.standing.look();
        tally.info(self.id, &self.holder, ends.wrapping_sub(stands_at), pending)
    }
}

// ===== impl SweepRules =====

impl Default for SweepRules {
    fn default() -> Self {
        Self {
            stall_timeout: Some(Duration::from_secs(60)),
            on_stall: StallPolicy::default(),
            reset_grace: Duration::from_secs(5),
        }
    }
}
