//! The files of sockets, through which peers on the same machine connect.
//!
//! A process that is killed leaves the file of its socket, and nobody can bind it again. So a file that nobody listens on
//! is replaced, and one that somebody listens on is an error. A file that is no socket is never removed. When the listener
//! is dropped, it removes its file, unless that has been replaced meanwhile.
//!
//! To look at a file, to remove it and to make another are three steps. Of two servers that start at once, each could find
//! a file that nobody listens on, and the second would remove the new file of the first, which then listens where nobody
//! can connect. So the steps are taken under a lock of the folder (`flock`), which ends with them or with the process, and
//! leaves no file behind.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use tokio::{
    net::UnixListener,
    time::{Instant, sleep, sleep_until},
};

/// A connection through the file of a socket.
pub(super) type LocalStream = tokio::net::UnixStream;

/// Pause after a connection could not be accepted, as when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Time to wait for the lock of a folder. Others hold it for as long as it takes to make a socket.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two attempts to lock a folder.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

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
    pub(super) async fn bind(path: &Path) -> io::Result<Self> {
        // Until the file is there and is listened on: see the module.
        let _locked = lock_folder(path, LOCK_TIMEOUT).await?;
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

/// Locks the folder of a socket's file until the result is dropped. `None` where it cannot be locked.
async fn lock_folder(path: &Path, timeout: Duration) -> io::Result<Option<File>> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // One that may be written to and not read, or a file system without locks, is no reason not to listen: the lock
    // matters only to servers that start at once.
    let unlocked = |error: &dyn std::fmt::Display| {
        tracing::warn!(
            %error,
            folder = %folder.display(),
            "cannot lock the folder of the socket: of two servers that start at once, one may take the file of the other"
        );
        Ok(None)
    };
    let file = match File::open(folder) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return unlocked(&error),
        Err(error) => return Err(error),
    };
    let deadline = Instant::now() + timeout;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                sleep(LOCK_PAUSE).await;
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "another process keeps the folder {} locked (flock): end it, or choose a path in another folder",
                        folder.display()
                    ),
                ));
            }
            Err(error) => return unlocked(&error),
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::net::{UnixListener as StdListener, UnixStream as StdStream},
        sync::Barrier,
        thread,
    };

    use tokio::runtime::Handle;

    use super::*;

    const SERVERS: usize = 8;

    fn folder(name: &str) -> PathBuf {
        let name = format!("tidegate-local-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_many_servers_that_start_at_once_on_a_stale_file_one_listens_there() {
        let folder = folder("many");
        let path = folder.join("socket");
        let runtime = Handle::current();
        for round in 0..100 {
            drop(StdListener::bind(&path).unwrap());
            let barrier = Barrier::new(SERVERS);
            let start = || {
                barrier.wait();
                runtime.block_on(LocalListener::bind(&path))
            };
            let results: Vec<_> = thread::scope(|scope| {
                let started: Vec<_> = (0..SERVERS).map(|_| scope.spawn(start)).collect();
                started.into_iter().map(|it| it.join().unwrap()).collect()
            });
            let (bound, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
            assert_eq!(bound.len(), 1, "round {round}: {bound:?} {failed:?}");
            for error in failed.into_iter().map(Result::unwrap_err) {
                assert!(
                    error.to_string().contains("a process listens on it"),
                    "{error}"
                );
            }
            // Its file is the one that is there.
            let mut listener = bound.into_iter().next().unwrap().unwrap();
            let _client = StdStream::connect(&path).unwrap();
            listener.accept().await;
            drop(listener);
            assert!(!path.exists());
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn folder_that_somebody_keeps_locked_is_an_error_in_time() {
        let folder = folder("locked");
        let path = folder.join("socket");
        let held = lock_folder(&path, LOCK_TIMEOUT).await.unwrap();
        assert!(held.is_some());
        let error = lock_folder(&path, Duration::ZERO).await.unwrap_err();
        assert!(
            error.to_string().contains(folder.to_str().unwrap()),
            "{error}"
        );
        drop(held);
        drop(LocalListener::bind(&path).await.unwrap());
        // Nothing is left behind.
        fs::remove_dir(folder).unwrap();
    }
}
