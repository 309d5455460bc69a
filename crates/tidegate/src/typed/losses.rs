//! What becomes of losses, in the words of the application.

use std::fmt;

use tidegate_core::{Gap, GapReason};
use tonic::Status;

use super::{shared::Shared, value::Value};

/// What a subscription does about a [`Gap`]. There is no default: see [`Subscribe`](super::Subscribe).
pub struct Losses<T>(Policy<T>);

/// No policy was chosen yet.
#[derive(Debug)]
pub struct Undecided(());

type Handler<A> = Box<dyn FnMut(&Gap) -> A + Send>;

enum Policy<T> {
    Report(Handler<Option<T>>),
    Fail(Handler<Status>),
    Ignore,
}

/// What becomes of one gap.
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
    pub(super) fn settle(&mut self, gap: &Gap) -> Outcome<T> {
        match &mut self.0 {
            Policy::Report(message) => {
                message(gap).map_or(Outcome::Nothing, |message| Outcome::Message(message.into()))
            }
            // It was asked for by name, and is no failure.
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
