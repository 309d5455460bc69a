//! The files of sockets, through which peers on the same machine connect.
//!
//! A process that is killed leaves the file of its socket, and nobody can bind it again. So a file that nobody listens on
//! is replaced, and one that somebody listens on is an error. A file that is no socket is never removed. When the listener
//! is dropped, it removes its file, unless that has been replaced meanwhile.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::UnixListener,
    time::{Instant, sleep_until},
};

/// A connection through the file of a socket.
pub(super) type LocalStream = tokio::net::UnixStream;

/// Pause after a connection could not be accepted, as when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The listener of a socket's file.
#[derive(Debug)]
pub(crate) struct LocalListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file.
    identity: (u64, u64),
    paused_until: Instant,
}

impl LocalListener {
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        make_way(path)?;
        let listener = UnixListener::bind(path)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity: identity(path)?,
            paused_until: Instant::now(),
        })
    }

    /// Waits for the next connection. Cancel safe.
    pub(super) async fn accept(&mut self) -> LocalStream {
        loop {
            sleep_until(self.paused_until).await;
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    tracing::warn!(%error, pause = ?PAUSE, "cannot accept connections; pausing");
                    self.paused_until = Instant::now() + PAUSE;
                }
            }
        }
    }
}

/// Removes the file of a socket that nobody listens on.
fn make_way(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    let kind = match path.symlink_metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let taken = |problem: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, problem.to_owned()));
    if !kind.is_socket() {
        return taken(
            "there is a file that is no socket; it stays as it is: choose another path, or move it away",
        );
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => taken("a process listens on it: end that one first, or choose another path"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the file of a socket that nobody listens on");
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = path.symlink_metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        // Another server may have taken the path in the meantime.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the file of the socket");
        }
    }
}
