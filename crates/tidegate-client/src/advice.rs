//! The next step of a client.

/// Next step for a subscription whose call was refused or whose stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Stop: the same request would be refused again.
    Correct,
    /// Stop until a person or the application decides otherwise.
    Stop,
    /// Resume after the back-off, and after the delay that the server asked for, if any.
    Resume,
    /// Resume with new credentials, and stop if those are refused too.
    Authenticate,
    /// Forget the position, if the application allows it.
    StartAnew,
}
