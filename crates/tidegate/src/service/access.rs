//! What a caller may do, where callers prove who they are.
//!
//! [`EventService`](crate::EventService) asks nobody for credentials. Whoever serves it does, and puts an
//! [`Access`] into the extensions of each request. A request without one may do everything, and nothing is
//! looked up for it.
//!
//! # When it is asked
//! Before a subscription begins, and for each event that is published. After that, whenever
//! [`Authority::changed`] says so: a subscription ends then that would not be let in any more, with the
//! position to resume from, and so does any call whose credentials are no longer accepted.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use tidegate_core::{ClientId, CloseReason, Filter, Hub, SubscribeOptions, Topic};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::{gate::Caller, wire::Encoded};
use crate::{client_ids::is_anonymous, reason::Reason, status};

/// Knows one caller, and answers what it may do, at any time anew.
pub trait Authority: fmt::Debug + Send + Sync + 'static {
    /// Who it is. Only the same principal may take a client id over.
    fn principal(&self) -> &Arc<str>;

    /// Whether it may publish to `topic`.
    fn may_publish(&self, topic: &Topic) -> bool;

    /// Whether it may see all that `filter` matches.
    fn may_subscribe(&self, filter: &Filter) -> bool;

    /// Whether it may be the client `id`, and so see what is sent to that client alone. Asked for an id
    /// that the caller chose, not for one that the server made.
    fn may_be_client(&self, id: &ClientId) -> bool;

    /// Why its credentials are no longer accepted: [`CloseReason::CredentialsExpired`] or
    /// [`CloseReason::CredentialsRevoked`]. `None` while they are.
    fn ended(&self) -> Option<CloseReason>;

    /// Done when one of the other answers may have changed since the call: at the latest when the
    /// credentials expire.
    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// What the caller of a request may do, for the extensions of that request. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Access(Arc<dyn Authority>);

/// What a subscription was let in for.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// The id that the client chose, if it did, and was not given one when it came first.
    client_id: Option<ClientId>,
    filters: Vec<Filter>,
}

/// Ends a subscription when it would not be let in any more. Dropped with it.
#[derive(Debug)]
pub(super) struct AccessWatch {
    /// Held for its drop.
    _task: AbortOnDropHandle<()>,
}

// ===== impl Access =====

impl Access {
    /// The access of the caller that `authority` knows.
    #[must_use]
    pub fn new(authority: Arc<dyn Authority>) -> Self {
        Self(authority)
    }

    /// Who the caller is.
    #[must_use]
    pub fn principal(&self) -> &Arc<str> {
        self.0.principal()
    }

    /// Why the credentials of the caller are no longer accepted, if so.
    #[must_use]
    pub fn ended(&self) -> Option<CloseReason> {
        self.0.ended()
    }

    /// Waits until the credentials of the caller are no longer accepted.
    pub fn until_ended(&self) -> Pin<Box<dyn Future<Output = CloseReason> + Send>> {
        let authority = Arc::clone(&self.0);
        Box::pin(wait_for(authority, |authority| authority.ended()))
    }

    pub(super) fn check_subscribe(&self, scope: &Scope) -> Result<(), Status> {
        if let Some(id) = &scope.client_id
            && !self.0.may_be_client(id)
        {
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

    /// Checks the topics of a batch, in their order.
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

/// Who makes a call, by the extensions of its request.
pub(super) fn caller(extensions: &http::Extensions) -> Caller {
    let mut caller: Caller = extensions.get().cloned().unwrap_or_default();
    if let Some(access) = extensions.get::<Access>() {
        caller.principal = Some(Arc::clone(access.principal()));
    }
    caller
}

/// Waits until `answer` is something. It is looked for at once, and after each change.
async fn wait_for(
    authority: Arc<dyn Authority>,
    answer: impl Fn(&dyn Authority) -> Option<CloseReason>,
) -> CloseReason {
    loop {
        // Before the answer, so that no change behind it is missed.
        let changed = authority.changed();
        if let Some(reason) = answer(&*authority) {
            return reason;
        }
        changed.await;
    }
}

// ===== impl Scope =====

impl Scope {
    pub(super) fn of(options: &SubscribeOptions) -> Self {
        let client_id = Some(&options.client_id).filter(|id| !is_anonymous(id));
        Self {
            client_id: client_id.cloned(),
            filters: options.filters.clone(),
        }
    }

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
    /// Watches over the subscription `id` of `hub`.
    pub(super) fn new(access: &Access, scope: Scope, hub: Hub<Encoded>, id: u64) -> Self {
        let authority = Arc::clone(&access.0);
        let watch = async move {
            let reason = wait_for(authority, |authority| scope.end_under(authority)).await;
            hub.end(id, reason);
        };
        Self {
            _task: AbortOnDropHandle::new(tokio::spawn(watch)),
        }
    }
}
