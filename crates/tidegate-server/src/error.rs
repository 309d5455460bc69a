//! The errors of a server that cannot start, and of the files that it reads.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::network::{descriptors::TooFewDescriptors, listener::ListenAddress};

/// The error of a server that cannot start. Its `Display` says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The server cannot listen on the address.
    #[error("cannot listen on {address}: {}", advice(source, *address))]
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

/// A certificate, a credential, a key or a rule that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecurityError {
    /// A file could not be read.
    #[error("cannot read {}{}", path.display(), reading_advice(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A file was not read in time.
    #[error("{}: {problem}", path.display())]
    Late {
        /// The file.
        path: PathBuf,
        /// The cause of the delay.
        problem: String,
    },
    /// The contents of a file, or of a key set at an address, cannot be used.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file, or the URL.
        path: PathBuf,
        /// The fault, and the way to correct it.
        problem: String,
    },
    /// The configuration contradicts itself: the fault, and the way to correct it.
    #[error("{0}")]
    Configuration(&'static str),
}

impl BindError {
    /// Whether the same configuration may work at another time: an address is taken, a file cannot be read now. Errors
    /// of the configuration, and of the contents of the files that it names, are not temporary.
    #[must_use]
    pub const fn is_temporary(&self) -> bool {
        match self {
            Self::Listen { .. } | Self::ListenUnix { .. } | Self::Randomness(_) => true,
            // It depends on the limit of the process, which changes no sooner than the configuration.
            Self::Descriptors { .. } | Self::PlaintextCredentials { .. } => false,
            Self::Security(error) => error.is_temporary(),
        }
    }
}

impl SecurityError {
    /// Whether the error may pass by itself: the system did not give the contents, or not in time. A missing file is
    /// such an error, because volumes and certificates often come after the server.
    #[must_use]
    pub const fn is_temporary(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Late { .. } => true,
            Self::Invalid { .. } | Self::Configuration(_) => false,
        }
    }

    /// The error and its cause in one line, for a log.
    #[must_use]
    pub fn with_cause(&self) -> String {
        match self.source() {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }

    pub(crate) fn late(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Late {
            path: path.as_ref().into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn invalid(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            path: path.as_ref().into(),
            problem: problem.into(),
        }
    }
}

impl From<TooFewDescriptors> for BindError {
    fn from(TooFewDescriptors { allowed, needed }: TooFewDescriptors) -> Self {
        Self::Descriptors { allowed, needed }
    }
}

/// The advice for an error of listening.
fn advice(error: &io::Error, address: SocketAddr) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the address is in use: end the server that is running there, or take another port; port 0 takes a free one"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address: take one that `ip address` lists, or 0.0.0.0 or [::] for all of them"
        }
        io::ErrorKind::PermissionDenied if (1..1_024).contains(&address.port()) => {
            "this user may not listen on ports below 1024: take a port from 1024 on, or give the program the capability \
             CAP_NET_BIND_SERVICE (AmbientCapabilities= of systemd)"
        }
        io::ErrorKind::PermissionDenied => {
            "the system does not permit it: look at the unit's sandbox or the container's security profile"
        }
        // Its kind is not told apart by the standard library.
        _ if error.raw_os_error() == AF_NOT_SUPPORTED => {
            "this machine, or the sandbox of the unit, has no such addresses: take one of the other family (IPv4 or IPv6)"
        }
        _ => "the system refuses it",
    }
}

/// The advice for an error of reading, behind the name of the file.
fn reading_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::NotADirectory => ": does it exist, and may this user read it?",
        io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => {
            ": the system is short of threads or memory: raise the limit (`ulimit -u`, or TasksMax= of systemd), or try \
             again later"
        }
        _ if TOO_MANY_FILES.contains(&error.raw_os_error()) => {
            ": too many files are open: raise the limit (`ulimit -n`, or LimitNOFILE= of systemd), or try again later"
        }
        _ => "",
    }
}

/// The errors of a process, and of a system, that has too many open files.
#[cfg(unix)]
const TOO_MANY_FILES: [Option<i32>; 2] = [
    Some(rustix::io::Errno::MFILE.raw_os_error()),
    Some(rustix::io::Errno::NFILE.raw_os_error()),
];

#[cfg(not(unix))]
const TOO_MANY_FILES: [Option<i32>; 0] = [];

/// The error of an address whose family the system does not have.
#[cfg(unix)]
const AF_NOT_SUPPORTED: Option<i32> = Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());

#[cfg(not(unix))]
const AF_NOT_SUPPORTED: Option<i32> = None;

/// An error with all its causes in one line, which those of hyper do not tell by themselves.
pub(crate) fn in_full(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(all(test, unix))]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn the_advice_for_a_file_that_cannot_be_read_is_that_of_its_cause() {
        for (errno, words) in [
            (Errno::NOENT, "does it exist"),
            (Errno::ACCESS, "may this user read it"),
            (Errno::MFILE, "too many files are open"),
            (Errno::NFILE, "too many files are open"),
            (Errno::AGAIN, "short of threads"),
        ] {
            let error = SecurityError::Read {
                path: "file".into(),
                source: errno.into(),
            };
            let told = error.to_string();
            assert!(told.contains(words), "{told}");
            assert_eq!(
                told.contains("does it exist"),
                words.contains("it"),
                "{told}"
            );
            assert!(error.is_temporary());
        }
    }
}
