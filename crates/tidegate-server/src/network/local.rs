//! The files of sockets, through which peers on the same machine connect.
//!
//! A process that is killed leaves the file of its socket, and nobody can bind it again. So a file that nobody listens on
//! is replaced, and one that somebody listens on is an error. A file that is no socket is never removed. When the listener
//! is dropped, it removes its file, unless that has been replaced meanwhile. Nothing here waits for whoever listens.
//!
//! To look at a file, to remove it and to make another are three steps. Of two servers that start at once, each could find
//! a file that nobody listens on, and the second would remove the new file of the first, which then listens where nobody
//! can connect. So the steps are taken under a lock of the folder (`flock`), which ends with them or with the process, and
//! leaves no file behind.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};
use socket2::{Domain, SockAddr, Socket, Type};
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

/// Largest path of a socket, in bytes: what the address of one has room for, without the zero at its end.
const MAX_PATH: usize = 107;

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
        check_path(path).map_err(|problem| io::Error::new(io::ErrorKind::InvalidInput, problem))?;
        let made = Self::make(path).await;
        made.map_err(|error| with_advice(error, path))
    }

    async fn make(path: &Path) -> io::Result<Self> {
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

/// Refuses a path that no socket can ever have, with the way to correct it.
pub(super) fn check_path(path: &Path) -> Result<(), String> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH {
        return Err(format!(
            "the path has {} bytes, and that of a socket may have {MAX_PATH}: choose a shorter one, such as \
             /run/tidegate/tidegate.sock",
            bytes.len()
        ));
    }
    if bytes.contains(&0) {
        return Err("the path contains a zero byte, which no path may: remove it".into());
    }
    match bytes.rsplit(|byte| *byte == b'/').next() {
        None | Some(b"" | b"." | b"..") => Err(
            "the path is that of a folder: add the name of the file, such as /run/tidegate/tidegate.sock".into(),
        ),
        Some(_) => Ok(()),
    }
}

/// An error of the operating system with what to do about it, and every other as it is.
fn with_advice(error: io::Error, path: &Path) -> io::Error {
    // The others have their words already.
    if error.raw_os_error().is_none() {
        return error;
    }
    let folder = folder_of(path).display();
    let advice = match error.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no folder {folder}: make it, for the user of the server (`RuntimeDirectory=` of systemd does), or \
             choose a path in another folder"
        ),
        io::ErrorKind::NotADirectory => {
            format!("{folder} is no folder: choose a path in a folder")
        }
        io::ErrorKind::PermissionDenied => format!(
            "this user may not make a file in the folder {folder}: allow it to (`RuntimeDirectory=` of systemd does), or \
             choose a path in another folder"
        ),
        io::ErrorKind::ReadOnlyFilesystem => format!(
            "nobody can write to the folder {folder}, whose file system is read-only: choose a path in another folder; \
             under `ProtectSystem=` of systemd, that is one of `RuntimeDirectory=`"
        ),
        io::ErrorKind::AddrInUse => {
            "another process made the file at the same time: end that one first, or choose another path".into()
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{advice} ({error})"))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Locks the folder of a socket's file until the result is dropped. `None` where it cannot be locked.
async fn lock_folder(path: &Path, timeout: Duration) -> io::Result<Option<File>> {
    let folder = folder_of(path);
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
    // A named pipe in its place would be waited for until somebody writes to it.
    let flags = OFlags::DIRECTORY.bits().cast_signed();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(folder);
    let file = match opened {
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
    match try_connect(path) {
        // The backlog is full: whoever listens does not accept, or not as fast as others connect.
        Ok(()) | Err(Errno::WOULDBLOCK | Errno::INPROGRESS) => {
            taken("a process listens on it: end that one first, or choose another path")
        }
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "replacing the file of a socket that nobody listens on");
            std::fs::remove_file(path).map_err(|error| match error.kind() {
                // Where the folder belongs to others, the file of another user stays (`/tmp`).
                io::ErrorKind::PermissionDenied => io::Error::new(
                    error.kind(),
                    format!(
                        "nobody listens on the socket that is there, but this user may not remove it: remove it, or \
                         choose another path ({error})"
                    ),
                ),
                _ => error,
            })
        }
        Err(Errno::PROTOTYPE) => taken(
            "a process uses a socket of another kind there (of datagrams or packets); it stays as it is: choose another \
             path, or end that process",
        ),
        Err(Errno::ACCESS | Errno::PERM) => taken(
            "there is a socket that this user may not connect to, so a process may listen on it; it stays as it is: choose \
             another path, or remove the file if nobody does",
        ),
        Err(error) => Err(error.into()),
    }
}

/// Connects to the file of a socket, and closes the connection, without waiting for whoever listens there.
fn try_connect(path: &Path) -> Result<(), Errno> {
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // With a full backlog, one that blocks waits for as long as the other process likes.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    connect().map_err(|error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
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
        os::unix::net::{UnixDatagram, UnixListener as StdListener, UnixStream as StdStream},
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

    async fn refusal(path: &Path) -> String {
        // What waits for others would wait for ever.
        let bound = tokio::time::timeout(Duration::from_secs(30), LocalListener::bind(path));
        bound.await.expect("it waits").unwrap_err().to_string()
    }

    #[tokio::test]
    async fn owner_with_a_full_backlog_is_not_waited_for() {
        let folder = folder("full");
        let path = folder.join("socket");
        let owner = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        owner.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        owner.listen(0).unwrap();
        let _waiting = StdStream::connect(&path).unwrap();
        assert_eq!(try_connect(&path), Err(Errno::WOULDBLOCK));
        let said = refusal(&path).await;
        assert!(said.contains("a process listens on it"), "{said}");
        assert!(path.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn socket_of_another_kind_stays_while_it_is_used() {
        let folder = folder("kinds");
        let path = folder.join("socket");
        let datagrams = UnixDatagram::bind(&path).unwrap();
        let said = refusal(&path).await;
        assert!(said.contains("a socket of another kind"), "{said}");
        assert!(path.exists());
        drop(datagrams);
        drop(LocalListener::bind(&path).await.unwrap());

        let packets = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        packets.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        packets.listen(1).unwrap();
        let said = refusal(&path).await;
        assert!(said.contains("a socket of another kind"), "{said}");
        assert!(path.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn folder_that_cannot_be_used_is_told_with_a_way_out() {
        let folder = folder("folders");
        let said = refusal(&folder.join("none/socket")).await;
        assert!(said.contains("there is no folder"), "{said}");
        fs::write(folder.join("file"), "").unwrap();
        let said = refusal(&folder.join("file/socket")).await;
        assert!(said.contains("is no folder: choose"), "{said}");
        let mode = rustix::fs::Mode::RWXU;
        let pipe = folder.join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let said = refusal(&pipe.join("socket")).await;
        assert!(said.contains("is no folder: choose"), "{said}");
        // It is not everywhere that a test can have these.
        for (code, words) in [
            (Errno::ACCESS, "this user may not make a file"),
            (Errno::ROFS, "whose file system is read-only"),
        ] {
            let said = with_advice(code.into(), &folder.join("socket")).to_string();
            assert!(said.contains(words), "{said}");
            assert!(said.contains(folder.to_str().unwrap()), "{said}");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
