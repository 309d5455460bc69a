//! Policies for losses, in the words of the application.

use std::fmt;

use tidegate_core::{Gap, GapReason};
use tonic::Status;

use super::{shared::Shared, value::Value};

/// Policy of a subscription for its [`Gap`]s. There is no default: see [`Subscribe`](super::Subscribe).
pub struct Losses<T>(Policy<T>);

/// Absence of a policy for losses: a [`Subscribe`](super::Subscribe) with it cannot be opened.
#[derive(Debug)]
pub struct Undecided(());

type Handler<A> = Box<dyn FnMut(&Gap) -> A + Send>;

enum Policy<T> {
    Report(Handler<Option<T>>),
    Fail(Handler<Status>),
    Ignore,
}

/// Result of the policy for one gap.
#[derive(Debug)]
pub(super) enum Outcome<T> {
    Message(Shared<T>),
    Nothing,
    Failure(Status),
}

impl Undecided {
    pub(super) const fn new() -> Self {
        Self(())
    }
}

impl<T> Losses<T> {
    pub(super) fn report(message: impl FnMut(&Gap) -> Option<T> + Send + 'static) -> Self {
        Self(Policy::Report(Box::new(message)))
    }

    pub(super) fn fail(status: impl FnMut(&Gap) -> Status + Send + 'static) -> Self {
        Self(Policy::Fail(Box::new(status)))
    }

    pub(super) const fn ignore() -> Self {
        Self(Policy::Ignore)
    }
}

impl<T: Value> Losses<T> {
    /// Applies the policy to one gap. Each gap of a subscription comes here exactly once, in the order of the stream.
    pub(super) fn settle(&mut self, gap: &Gap) -> Outcome<T> {
        match &mut self.0 {
            Policy::Report(message) => {
                message(gap).map_or(Outcome::Nothing, |message| Outcome::Message(message.into()))
            }
            // Conflation was asked for: a superseded value is not a loss.
            Policy::Fail(_) if gap.reason == GapReason::Conflated => Outcome::Nothing,
            Policy::Fail(status) => Outcome::Failure(status(gap)),
            Policy::Ignore => Outcome::Nothing,
        }
    }
}

impl<T> fmt::Debug for Losses<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Policy::Report(_) => "Report",
            Policy::Fail(_) => "Fail",
            Policy::Ignore => "Ignore",
        })
    }
}
