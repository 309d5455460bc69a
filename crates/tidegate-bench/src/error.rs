//! What can go wrong, said so that the reader knows what to do.

use std::io;

/// Why a benchmark has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was asked for cannot be done.
    #[error("{0}")]
    Invalid(String),

    /// The token, a certificate or a key cannot be used.
    #[error("{0}")]
    Credentials(String),

    /// The TLS handshake failed.
    #[error("the TLS handshake with the server failed: {0}; --tls-ca names who may vouch for it")]
    Tls(String),

    /// The server could not be started.
    #[error("cannot start the server {program}: {reason}")]
    Start {
        /// The program.
        program: String,
        /// What happened.
        reason: String,
    },

    /// The server could not be reached.
    #[error(
        "cannot connect to the server at {address}: {reason}; is it running, and is the address right?"
    )]
    Connect {
        /// Where it was looked for.
        address: String,
        /// What happened.
        reason: String,
    },

    /// The server refused a call or ended a stream.
    #[error("the server ended {call} with gRPC status {code}: {message}")]
    Status {
        /// The method.
        call: &'static str,
        /// The number of the status.
        code: String,
        /// Its message.
        message: String,
    },

    /// The connection broke.
    #[error("the connection to the server broke during {during}: {reason}")]
    Broken {
        /// What was going on.
        during: &'static str,
        /// What happened.
        reason: String,
    },

    /// The server sent what no server may send. The result of such a run would mean nothing.
    #[error("the server broke the protocol: {0}")]
    Violation(String),

    /// Events are unaccounted for.
    #[error("events were lost: {0}")]
    Lost(String),

    /// The operating system would not tell or do something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// Names what was tried when the system refused it.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// Credentials that cannot be used.
    pub(crate) fn credentials(reason: impl std::fmt::Display) -> Self {
        Self::Credentials(reason.to_string())
    }

    /// A connection that broke.
    pub fn broken(during: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Broken {
            during,
            reason: reason.to_string(),
        }
    }
}
