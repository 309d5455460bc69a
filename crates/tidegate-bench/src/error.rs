//! Errors of a benchmark. Each message says what to do next.

use std::io;

/// The reason why a benchmark has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options do not fit together or cannot be met on this machine. Correct them.
    #[error("{0}")]
    Invalid(String),

    /// The token, a certificate or a key cannot be read or used.
    #[error("{0}")]
    Credentials(String),

    /// The TLS handshake failed.
    #[error(
        "the TLS handshake with the server failed: {0}; --tls-ca names the certificates to trust"
    )]
    Tls(String),

    /// The server could not be started.
    #[error("cannot start the server {program}: {reason}")]
    Start {
        /// The program's path.
        program: String,
        /// Why starting it failed.
        reason: String,
    },

    /// The server could not be reached.
    #[error(
        "cannot connect to the server at {address}: {reason}; is it running, and is the address right?"
    )]
    Connect {
        /// The address of the server.
        address: String,
        /// Why connecting failed.
        reason: String,
    },

    /// The server refused a call or ended a stream.
    #[error("the server ended {call} with gRPC status {code}: {message}")]
    Status {
        /// The method that was called.
        call: &'static str,
        /// The number of the status, or `none` where the answer is no gRPC.
        code: String,
        /// The message of the status.
        message: String,
    },

    /// The connection broke.
    #[error("the connection to the server broke during {during}: {reason}")]
    Broken {
        /// The call or step in which it broke.
        during: &'static str,
        /// Why it broke.
        reason: String,
    },

    /// The server broke the protocol, so that the figures of the run would mean nothing.
    #[error("the server broke the protocol: {0}")]
    Violation(String),

    /// Events were neither delivered nor counted as missing.
    #[error("events were lost: {0}")]
    Lost(String),

    /// The operating system refused an operation.
    #[error("{what}: {source}")]
    System {
        /// The operation, as in "cannot read ...".
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// Returns a function that wraps an I/O error with the operation `what`; for `map_err`.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// An error for credentials that cannot be used.
    pub(crate) fn credentials(reason: impl std::fmt::Display) -> Self {
        Self::Credentials(reason.to_string())
    }

    /// An error for a connection that broke during `during`.
    pub fn broken(during: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Broken {
            during,
            reason: reason.to_string(),
        }
    }
}
