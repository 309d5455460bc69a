//! Exit codes, error messages, and the end of the process. Scripts rely on the codes, so they never change.

use std::{
    fmt,
    io::{self, Write as _},
};

use tidegate_client::Error;

use crate::stdio;

/// The list of exit codes at the end of `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
    0  success; also when `sub` is interrupted or its output is closed
    1  any other failure; also a file of the configuration that cannot be read now
    2  the command line or the configuration is wrong
    3  the server cannot be reached or went away
    4  credentials or certificates are missing, wrong or not trusted, or do not
       permit the request; or something else than the server is at its address
    5  the server refused the request as invalid
    6  the client id is in use, another client took it over, or an operator
       disconnected it
    7  too slow under --overflow disconnect, or over a quota
    8  the position to resume from is ahead of the server
    9  the server broke the protocol
   10  `serve` was drained by a call over the network, AdminService.Drain: start it again
  130  `pub` was interrupted before the server had accepted everything, or `serve`
       was stopped by a second signal";

/// The exit code of success.
pub(crate) const SUCCESS: u8 = 0;

/// The exit code of a panic, which is that of the standard library.
pub(crate) const PANICKED: u8 = 101;

/// An exit code other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Other = 1,
    Usage = 2,
    Unavailable = 3,
    Credentials = 4,
    Refused = 5,
    ClientId = 6,
    Exhausted = 7,
    PositionAhead = 8,
    Violation = 9,
    Drained = 10,
    Interrupted = 130,
}

/// The reason why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The reader of the output closed it: the command ends with success.
    ClosedPipe,
    /// The message for standard error, and the code to exit with.
    Reported(Exit, String),
}

/// Ends the process at once, without what libraries have registered to run at its end: other threads still use what that
/// takes away. AWS-LC aborts when a TLS handshake asks for random bytes after its own.
pub(crate) fn leave(code: u8) -> ! {
    // Help is written through the buffer of the standard library. A reader that has gone is told nothing.
    let _ = io::stdout().flush();
    #[cfg(unix)]
    signal_hook::low_level::exit(code.into());
    #[cfg(not(unix))]
    std::process::exit(code.into());
}

// ===== impl Failure =====

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self::Reported(exit, message.to_string())
    }

    /// Adds what became of the input to the message.
    pub(crate) fn with(self, account: &impl fmt::Display) -> Self {
        match self {
            Self::Reported(exit, message) => Self::Reported(exit, format!("{message}; {account}")),
            Self::ClosedPipe => Self::ClosedPipe,
        }
    }

    /// Returns the code to exit with, other than success.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match self {
            Self::Reported(exit, _) => Some(*exit),
            Self::ClosedPipe => None,
        }
    }

    /// Leaves the message for standard error, and returns the code to exit with.
    pub(crate) fn report(self) -> u8 {
        match self {
            Self::ClosedPipe => SUCCESS,
            Self::Reported(exit, message) => {
                stdio::report(message);
                exit as u8
            }
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(Exit::from(&error), error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::new(Exit::Other, error),
        }
    }
}

impl From<&Error> for Exit {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidEndpoint { .. } => Self::Usage,
            Error::Unavailable(_) => Self::Unavailable,
            Error::InvalidCredentials(_)
            | Error::CannotConnect(_)
            | Error::Unauthenticated(_)
            | Error::PermissionDenied(_) => Self::Credentials,
            Error::InvalidArgument(_) => Self::Refused,
            Error::ClientIdInUse(_) | Error::Superseded(_) | Error::Disconnected(_) => {
                Self::ClientId
            }
            Error::ResourceExhausted(_) => Self::Exhausted,
            Error::PositionAhead { .. } => Self::PositionAhead,
            Error::Violation(_) => Self::Violation,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_help() {
        for exit in [
            Exit::Other,
            Exit::Usage,
            Exit::Unavailable,
            Exit::Credentials,
            Exit::Refused,
            Exit::ClientId,
            Exit::Exhausted,
            Exit::PositionAhead,
            Exit::Violation,
            Exit::Drained,
            Exit::Interrupted,
        ] {
            let line = format!("{:>5}  ", exit as u8);
            assert!(HELP.lines().any(|l| l.starts_with(&line)), "{exit:?}");
        }
    }

    #[test]
    fn a_closed_pipe_is_quiet() {
        let error = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(matches!(Failure::from(error), Failure::ClosedPipe));
    }
}
