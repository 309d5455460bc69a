//! The session of a principal: its credentials and rights, under every policy that comes into force.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tidegate::{Access, Authority, ClientId, CloseReason, Filter, Topic};
use tokio::time::sleep;

use super::{
    made_ids,
    policy::{Credential, Policies, Policy},
    rules::Rights,
};

/// The longest sleep toward the end of credentials. The wall clock may be set meanwhile, and credentials must end
/// within 5 s by it.
const CLOCK_CHECK: Duration = Duration::from_secs(5);

/// A principal whose credentials were accepted, and its access to the event service.
#[derive(Debug, Clone)]
pub(crate) struct Authenticated {
    session: Arc<Session>,
    pub(crate) access: Access,
}

/// One principal with one credential.
#[derive(Debug)]
pub(crate) struct Session {
    policies: Arc<Policies>,
    principal: Arc<str>,
    credential: Credential,
    /// The time at which the credential expires. `None` for never.
    expires: Option<SystemTime>,
    /// The rights that the credential itself grants, beside those of the rules.
    claimed: Option<Rights>,
    /// The standing under the policy of the last look.
    standing: Mutex<Arc<Standing>>,
}

/// The standing of a session under one policy.
#[derive(Debug)]
struct Standing {
    policy: Arc<Policy>,
    /// Whether the policy still accepts the credential.
    is_accepted: bool,
    rights: Rights,
}

// ===== impl Authenticated =====

impl Authenticated {
    pub(crate) fn new(session: Session) -> Self {
        let session = Arc::new(session);
        Self {
            access: Access::new(Arc::<Session>::clone(&session)),
            session,
        }
    }

    /// Whether the principal may call methods for administrators.
    pub(crate) fn may_administer(&self) -> bool {
        self.session.standing().rights.may_administer()
    }
}

// ===== impl Session =====

impl Session {
    pub(crate) fn new(
        policies: Arc<Policies>,
        principal: Arc<str>,
        credential: Credential,
        expires: Option<SystemTime>,
        claimed: Option<Rights>,
    ) -> Self {
        let policy = policies.current();
        let standing = Standing::new(policy, &principal, &credential, claimed.as_ref());
        Self {
            policies,
            principal,
            credential,
            expires,
            claimed,
            standing: Mutex::new(Arc::new(standing)),
        }
    }

    /// The standing under the policy in force.
    fn standing(&self) -> Arc<Standing> {
        let policy = self.policies.current();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        // Worked out once for each policy: every event and every call asks for it.
        if !Arc::ptr_eq(&standing.policy, &policy) {
            let claimed = self.claimed.as_ref();
            *standing = Arc::new(Standing::new(
                policy,
                &self.principal,
                &self.credential,
                claimed,
            ));
        }
        Arc::clone(&standing)
    }
}

impl Standing {
    fn new(
        policy: Arc<Policy>,
        principal: &str,
        credential: &Credential,
        claimed: Option<&Rights>,
    ) -> Self {
        let mut rights = policy.rules.rights_of(principal);
        if let Some(claimed) = claimed {
            rights.extend(claimed);
        }
        Self {
            is_accepted: policy.accepts(credential, principal),
            rights,
            policy,
        }
    }
}

impl Authority for Session {
    fn principal(&self) -> &Arc<str> {
        &self.principal
    }

    fn may_publish(&self, topic: &Topic) -> bool {
        self.standing().rights.may_publish(topic)
    }

    fn may_subscribe(&self, filter: &Filter) -> bool {
        self.standing().rights.may_subscribe(filter)
    }

    fn may_be_client(&self, id: &ClientId) -> bool {
        made_ids::is_of(&self.principal, id)
            || self.standing().rights.may_be_client(&self.principal, id)
    }

    fn new_client_id(&self, random: u64) -> ClientId {
        made_ids::make(&self.principal, random)
    }

    fn ended(&self) -> Option<CloseReason> {
        if self.expires.is_some_and(|end| end <= SystemTime::now()) {
            return Some(CloseReason::CredentialsExpired);
        }
        (!self.standing().is_accepted).then_some(CloseReason::CredentialsRevoked)
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut policy = self.policies.watch();
        let expires = self.expires;
        Box::pin(async move {
            tokio::select! {
                // It ends with a change only: the session holds the sender.
                _ = policy.changed() => {}
                () = until(expires) => {}
            }
        })
    }
}

/// Waits until a time by the wall clock. Forever for `None`.
async fn until(time: Option<SystemTime>) {
    let Some(time) = time else {
        return std::future::pending().await;
    };
    while let Ok(left) = time.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        sleep(left.min(CLOCK_CHECK)).await;
    }
}
