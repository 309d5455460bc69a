//! The error of a server that cannot start.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{
    files::SecurityError,
    network::{descriptors::TooFewDescriptors, listener::ListenAddress},
};

/// The error of a server that cannot start. Its `Display` says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The server cannot listen on the address.
    #[error(
        "cannot listen on {address}: is another server running there? Port 0 takes a free port"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The server cannot listen on the file of a socket.
    #[error("cannot listen on unix:{}", .path.display())]
    ListenUnix {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system, or why the file that is there stays.
        source: io::Error,
    },
    /// The process may not open as many files as
    /// [`ServerConfig::max_connections`](crate::ServerConfig::max_connections) needs.
    #[error(
        "the connection limit needs {needed} open files, and the process may open {allowed}: raise that \
         (`ulimit -Hn`, or LimitNOFILE= of systemd), or lower the connection limit"
    )]
    Descriptors {
        /// The files that the process may open.
        allowed: usize,
        /// The files that it needs: one for each connection, and 32 for everything else.
        needed: usize,
    },
    /// Credentials would cross a network without TLS, and [`AuthConfig::insecure`](crate::AuthConfig) does not allow
    /// that.
    #[error(
        "credentials would be sent to {address} without TLS, and anyone on the path could read and use them: set a \
         certificate and its key, listen on a loopback address, or allow it with `auth.insecure`"
    )]
    PlaintextCredentials {
        /// The address, which is not a loopback address.
        address: ListenAddress,
    },
    /// Certificates, credentials, keys or rules cannot be used.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// The operating system has no randomness for an epoch.
    #[error("the operating system gave no randomness for an epoch")]
    Randomness(#[source] io::Error),
}

impl From<TooFewDescriptors> for BindError {
    fn from(TooFewDescriptors { allowed, needed }: TooFewDescriptors) -> Self {
        Self::Descriptors { allowed, needed }
    }
}
