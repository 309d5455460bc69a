//! Why a server cannot start.

use std::{io, net::SocketAddr};

use crate::{files::SecurityError, network::descriptors::TooFewDescriptors};

/// Why a server could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address could not be had.
    #[error("cannot listen on {address}: is another server running there? Port 0 takes a free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// The process may not open as many files as [`ServerConfig::max_connections`](crate::ServerConfig::max_connections) needs.
    #[error(
        "the process may open {allowed} files, and {needed} are needed for so many connections: raise the \
         limit (`ulimit -Hn`, or LimitNOFILE= of systemd), or lower the cap on connections"
    )]
    Descriptors {
        /// How many it may open.
        allowed: usize,
        /// How many it needs.
        needed: usize,
    },
    /// Credentials would go over the network for everyone to read.
    #[error(
        "credentials would be sent to {address} without TLS, and whoever is between could use them: give a certificate and its key, listen on a loopback address, or say `insecure`"
    )]
    PlaintextCredentials {
        /// The address.
        address: SocketAddr,
    },
    /// Certificates, credentials or rules cannot be used.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// There is no randomness for an epoch.
    #[error("the operating system has no randomness to give")]
    Randomness(#[source] io::Error),
}

impl From<TooFewDescriptors> for BindError {
    fn from(TooFewDescriptors { allowed, needed }: TooFewDescriptors) -> Self {
        Self::Descriptors { allowed, needed }
    }
}
