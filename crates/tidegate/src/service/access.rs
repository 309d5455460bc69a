//! The rights of callers, where callers have to authenticate.
//!
//! [`EventService`](crate::EventService) does not authenticate. The server in front of it does, and puts an [`Access`]
//! into the extensions of each request. A request without one may do everything, and nothing is looked up for it.
//!
//! # When rights are checked
//! Before a subscription begins, and for each event that is published. After that, whenever
//! [`Authority::changed`] completes: a subscription that would no longer be allowed ends then, with the
//! position to resume from, and so does any call whose credentials are no longer accepted.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    thread,
};

use tidegate_core::{ClientId, CloseReason, Filter, Hub, SubscribeOptions, Topic};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::{convert::no_randomness, gate::Caller, wire::Encoded};
use crate::{client_ids::looks_made, reason::Reason, status};

/// The rights of one caller, as they are at the moment of each question.
///
/// Methods are called from many threads at once, on the path of every publish and subscription, and must not block.
pub trait Authority: fmt::Debug + Send + Sync + 'static {
    /// Returns the principal. Only the same principal may take a client id over.
    fn principal(&self) -> &Arc<str>;

    /// Whether it may publish to `topic`.
    fn may_publish(&self, topic: &Topic) -> bool;

    /// Whether it may see every event that `filter` matches.
    fn may_subscribe(&self, filter: &Filter) -> bool;

    /// Whether it may be the client `id`, and so see the events for that client alone. Asked for every id that a client
    /// gives, also for one that [`new_client_id`](Self::new_client_id) made when it first came.
    fn may_be_client(&self, id: &ClientId) -> bool;

    /// Makes a client id of `random` bits, for a client that gives none. Of all principals only this one
    /// [may be](Self::may_be_client) that client from then on, on any server and after any restart.
    ///
    /// Begin it with `anonymous-`, and go on with 16 or more hexadecimal digits: then another principal that gives it is
    /// told that the id is taken.
    fn new_client_id(&self, random: u64) -> ClientId;

    /// Returns [`CloseReason::CredentialsExpired`] or [`CloseReason::CredentialsRevoked`] if its credentials
    /// are no longer accepted, and `None` while they are.
    fn ended(&self) -> Option<CloseReason>;

    /// Completes when another answer may have changed since this call, and at the latest when the credentials expire. A
    /// change between this call and the first poll counts.
    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Rights of a request's caller, for the extensions of that request. Cheap to clone: clones share the [`Authority`].
#[derive(Debug, Clone)]
pub struct Access(Arc<dyn Authority>);

/// Rights that a subscription needs for as long as it lasts.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// Client id that the client gave. `None` if it gave none, and one was made for it.
    client_id: Option<ClientId>,
    filters: Vec<Filter>,
}

/// Task that ends a subscription when it is no longer allowed. Dropping the watch stops the task.
#[derive(Debug)]
pub(super) struct AccessWatch {
    /// Held for its drop.
    _task: AbortOnDropHandle<()>,
}

/// Ends a subscription if its watch panics: nobody would notice that its rights are withdrawn.
struct Unwatched<'a> {
    hub: &'a Hub<Encoded>,
    id: u64,
}

// ===== impl Access =====

impl Access {
    /// Makes the access of the caller whose rights `authority` knows.
    #[must_use]
    pub fn new(authority: Arc<dyn Authority>) -> Self {
        Self(authority)
    }

    /// Returns the principal of the caller.
    #[must_use]
    pub fn principal(&self) -> &Arc<str> {
        self.0.principal()
    }

    /// Returns why the credentials of the caller are no longer accepted, or `None` while they are.
    #[must_use]
    pub fn ended(&self) -> Option<CloseReason> {
        self.0.ended()
    }

    /// Waits until the credentials of the caller are no longer accepted, and returns why. Cancel safe.
    pub fn until_ended(&self) -> Pin<Box<dyn Future<Output = CloseReason> + Send>> {
        let authority = Arc::clone(&self.0);
        Box::pin(wait_for(authority, |authority| authority.ended()))
    }

    /// Makes a client id that only this principal may use.
    pub(super) fn new_client_id(&self) -> Result<ClientId, Status> {
        let random = getrandom::u64().map_err(no_randomness)?;
        Ok(self.0.new_client_id(random))
    }

    /// Checks that the caller may subscribe in this scope. The status names the first field that is not allowed.
    pub(super) fn check_subscribe(&self, scope: &Scope) -> Result<(), Status> {
        if let Some(id) = &scope.client_id
            && !self.0.may_be_client(id)
        {
            if looks_made(id) {
                let principal = self.principal();
                let problem = format!(
                    "`{id}` was not made for `{principal}`; leave it empty, and the server makes one"
                );
                return Err(Reason::ClientIdTaken.in_field("client_id", problem));
            }
            return Err(self.not_allowed("client_id", &format!("be the client `{id}`")));
        }
        for (i, filter) in scope.filters.iter().enumerate() {
            if !self.0.may_subscribe(filter) {
                let what = format!("subscribe to all of `{filter}`");
                return Err(self.not_allowed(&format!("filters[{i}]"), &what));
            }
        }
        Ok(())
    }

    /// Checks that the credentials still hold, and the topics of a batch in their order. The status names the
    /// first topic that is not allowed.
    pub(super) fn check_publish<'a>(
        &self,
        topics: impl Iterator<Item = &'a Topic>,
    ) -> Result<(), Status> {
        if let Some(reason) = self.ended() {
            return Err(status::ended_without_position(reason));
        }
        for (i, topic) in topics.enumerate() {
            if !self.0.may_publish(topic) {
                let what = format!("publish to `{topic}`");
                return Err(self.not_allowed(&format!("events[{i}].topic"), &what));
            }
        }
        Ok(())
    }

    fn not_allowed(&self, field: &str, what: &str) -> Status {
        let principal = self.principal();
        let problem = format!("`{principal}` may not {what}; ask for a rule that allows it");
        Reason::NotAllowed.in_field(field, problem)
    }
}

/// Returns the caller of a request with these extensions.
pub(super) fn caller(extensions: &http::Extensions) -> Caller {
    let mut caller: Caller = extensions.get().cloned().unwrap_or_default();
    if let Some(access) = extensions.get::<Access>() {
        caller.principal = Some(Arc::clone(access.principal()));
    }
    caller
}

/// Waits until `answer` returns a reason. It is asked at once, and again after each change.
async fn wait_for(
    authority: Arc<dyn Authority>,
    answer: impl Fn(&dyn Authority) -> Option<CloseReason>,
) -> CloseReason {
    loop {
        // Before the answer: a change between the two completes the future. Made after it, the future would
        // miss a change that came in between, and a withdrawn right would stay in force.
        let changed = authority.changed();
        if let Some(reason) = answer(&*authority) {
            return reason;
        }
        changed.await;
    }
}

// ===== impl Scope =====

impl Scope {
    /// The rights that a subscription with these options needs. `gives_id`: its client id is one that the client gave.
    pub(super) fn of(options: &SubscribeOptions, gives_id: bool) -> Self {
        Self {
            client_id: gives_id.then(|| options.client_id.clone()),
            filters: options.filters.clone(),
        }
    }

    /// Returns why `authority` no longer allows this scope, or `None` while it does.
    fn end_under(&self, authority: &dyn Authority) -> Option<CloseReason> {
        let is_allowed = || {
            let mut filters = self.filters.iter();
            let id = self.client_id.as_ref();
            id.is_none_or(|id| authority.may_be_client(id))
                && filters.all(|filter| authority.may_subscribe(filter))
        };
        let no_longer = || (!is_allowed()).then_some(CloseReason::NoLongerAllowed);
        authority.ended().or_else(no_longer)
    }
}

// ===== impl AccessWatch =====

impl AccessWatch {
    /// Starts to watch the subscription `id` of `hub`, which begins with a check: rights may have been
    /// withdrawn since the subscription was admitted.
    pub(super) fn new(access: &Access, scope: Scope, hub: Hub<Encoded>, id: u64) -> Self {
        let authority = Arc::clone(&access.0);
        let watch = async move {
            let unwatched = Unwatched { hub: &hub, id };
            let reason = wait_for(authority, |authority| scope.end_under(authority)).await;
            drop(unwatched);
            hub.end(id, reason);
        };
        Self {
            _task: AbortOnDropHandle::new(tokio::spawn(watch)),
        }
    }
}

// ===== impl Unwatched =====

impl Drop for Unwatched<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            // A waker that panics too would end the process.
            let end = || self.hub.end(self.id, CloseReason::CredentialsRevoked);
            let _ = catch_unwind(AssertUnwindSafe(end));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        task::Context,
        time::Instant,
    };

    use tidegate_core::{Batch, HubConfig, Room};

    use super::*;

    /// Rights that panic at the second question.
    #[derive(Debug)]
    struct Broken {
        principal: Arc<str>,
        was_asked: AtomicBool,
    }

    impl Authority for Broken {
        fn principal(&self) -> &Arc<str> {
            &self.principal
        }

        fn may_publish(&self, _: &Topic) -> bool {
            true
        }

        fn may_subscribe(&self, _: &Filter) -> bool {
            true
        }

        fn may_be_client(&self, _: &ClientId) -> bool {
            true
        }

        fn new_client_id(&self, _: u64) -> ClientId {
            ClientId::new("made").unwrap()
        }

        fn ended(&self) -> Option<CloseReason> {
            assert!(!self.was_asked.swap(true, Relaxed), "on purpose");
            None
        }

        fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            if self.was_asked.load(Relaxed) {
                return Box::pin(pending());
            }
            Box::pin(async {})
        }
    }

    #[tokio::test]
    async fn stream_whose_rights_cannot_be_watched_ends() {
        let hub = Hub::new(HubConfig::new(1));
        let options =
            SubscribeOptions::new(ClientId::new("c").unwrap(), vec![Filter::new("a").unwrap()]);
        let scope = Scope::of(&options, true);
        let mut subscription = hub.subscribe(options, Instant::now()).unwrap();
        let access = Access::new(Arc::new(Broken {
            principal: "p".into(),
            was_asked: AtomicBool::new(false),
        }));
        let _watch = AccessWatch::new(&access, scope, hub.clone(), subscription.id());
        let mut batch = Batch::default();
        let room = Room {
            events: 1,
            bytes: 1,
            overhead: 0,
            up_to: u64::MAX,
        };
        let ended = poll_fn(|cx: &mut Context<'_>| subscription.poll_next(cx, room, &mut batch));
        assert_eq!(ended.await, Err(CloseReason::CredentialsRevoked));
    }
}
