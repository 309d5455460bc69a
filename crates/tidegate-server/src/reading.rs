//! The reader of every file of the server.
//!
//! # Regular files only
//! A server reads its files again when they change. A pipe gives its contents once, and then blocks or looks empty; a
//! device may never end; the opening of a pipe without a writer blocks. So anything but a regular file is refused by
//! name, at the start and at every later read. A path that leads to an open file of a process, such as `/dev/stdin`, is
//! refused too: it stays with the file that was opened, also when another has taken its name, and credentials that are
//! withdrawn there would stay good. The configuration alone may come from such a path or a pipe at the start, by
//! [`read_configuration`].
//!
//! # Bounds
//! Each read has a thread of its own and a deadline: a file on a network file system that does not answer blocks
//! whoever reads it for as long as it likes. A file that has not been read in time is an error, and its thread is left
//! behind; [`Reader`] starts no second one for the same file until it is done. [`MAX_BYTES`] bounds the memory.

use std::{
    fs::{self, File, FileType, OpenOptions},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::error::SecurityError;

/// The most bytes of a file. Lists of revoked certificates are the longest: the largest of public authorities have
/// some 30 MiB.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// The most bytes of a configuration.
const MAX_CONFIGURATION_BYTES: u64 = 1 << 20;

/// The time in which a file has to be read when a server starts, or a configuration is checked.
pub(crate) const DEADLINE_OF_START: Duration = Duration::from_secs(10);

/// The time in which a file has to be read again. Credentials that are withdrawn must end their streams within 5 s,
/// also while another file cannot be read.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);

/// The contents of a file, or the reason why there are none.
type Content = Result<Vec<u8>, SecurityError>;

/// A file that is read again and again.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    /// The read that missed its deadline, until it is done.
    late: Mutex<Option<Reading>>,
}

/// A read under way in a thread of its own.
#[derive(Debug)]
pub(crate) struct Reading {
    path: PathBuf,
    done: mpsc::Receiver<Content>,
}

/// A text that was read once.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadConfiguration {
    /// The text, without a byte order mark.
    pub text: String,
    /// Whether it came from a pipe, or from an open file of a process such as standard input, so that it cannot be read
    /// again.
    pub is_read_once: bool,
}

/// Whether a file that can be read only once may be read: a pipe, or an open file of a process.
#[derive(Debug, Clone)]
enum Once {
    Refused,
    /// It may, and the flag is set when it is found to be one.
    Read(Arc<AtomicBool>),
}

/// Reads a file whole. Blocks for 10 s at most.
///
/// # Errors
/// When it is no regular file, has more than 64 MiB, or cannot be read in time. The error says what to do.
pub fn read_file(path: &Path) -> Result<Vec<u8>, SecurityError> {
    let read = Reading::begin(path, Once::Refused, MAX_BYTES)?;
    read.wait(DEADLINE_OF_START)
        .unwrap_or_else(|late| Err(late.error()))
}

/// Reads the text of a configuration. With `is_first` it may come from a pipe, such as `<(...)` of a shell, or from standard
/// input, which is read to its end. Blocks for 10 s at most.
///
/// # Errors
/// When it is neither a regular file nor, at the first time, a pipe, has more than 1 MiB, is not UTF-8, or cannot be
/// read in time. The error says what to do.
pub fn read_configuration(path: &Path, is_first: bool) -> Result<ReadConfiguration, SecurityError> {
    let found = Arc::new(AtomicBool::new(false));
    let once = match is_first {
        true => Once::Read(Arc::clone(&found)),
        false => Once::Refused,
    };
    let read = Reading::begin(path, once, MAX_CONFIGURATION_BYTES)?;
    let content = read.wait(DEADLINE_OF_START).unwrap_or_else(|late| {
        Err(match found.load(Ordering::Relaxed) {
            true => SecurityError::late(
                path,
                format!("is a pipe, and nobody wrote it to its end within {DEADLINE_OF_START:?}"),
            ),
            false => late.error(),
        })
    })?;
    let text = crate::text::text(&content);
    let text = text.map_err(|problem| SecurityError::invalid(path, problem))?;
    Ok(ReadConfiguration {
        text: text.into(),
        is_read_once: found.load(Ordering::Relaxed),
    })
}

// ===== impl Reader =====

impl Reader {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            late: Mutex::default(),
        }
    }

    /// Begins to read the file.
    ///
    /// # Errors
    /// When an earlier read has not come to its end, or no thread can be started.
    pub(crate) fn begin(&self) -> Result<Reading, SecurityError> {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = late.take() {
            match reading.done.try_recv() {
                Err(mpsc::TryRecvError::Empty) => {
                    let error = reading.error();
                    *late = Some(reading);
                    return Err(error);
                }
                // What it read may be as old as its beginning.
                Ok(_) | Err(mpsc::TryRecvError::Disconnected) => {}
            }
        }
        Reading::begin(&self.path, Once::Refused, MAX_BYTES)
    }

    /// The outcome of a read that [`begin`](Self::begin) began.
    pub(crate) fn finish(&self, reading: Reading, deadline: Duration) -> Content {
        reading.wait(deadline).unwrap_or_else(|reading| {
            let error = reading.error();
            *self.late.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
            Err(error)
        })
    }
}

// ===== impl Reading =====

impl Reading {
    fn begin(path: &Path, once: Once, max: u64) -> Result<Self, SecurityError> {
        let own = path.to_owned();
        Self::of(path, move || read_now(&own, &once, max))
    }

    /// A read of `path` by `read`.
    fn of(
        path: &Path,
        read: impl FnOnce() -> Content + Send + 'static,
    ) -> Result<Self, SecurityError> {
        let (done, outcome) = mpsc::sync_channel(1);
        let read = move || {
            // Nobody waits for it any more if it comes late.
            let _ = done.send(read());
        };
        let thread = thread::Builder::new().name("tidegate-file".into());
        thread.spawn(read).map_err(|error| {
            let problem = format!(
                "could not be read, because no thread could be started for it: {error}; raise the limit on processes and \
                 threads"
            );
            SecurityError::late(path, problem)
        })?;
        Ok(Self {
            path: path.into(),
            done: outcome,
        })
    }

    /// The outcome, or the read itself if it takes longer than `deadline`.
    fn wait(self, deadline: Duration) -> Result<Content, Self> {
        match self.done.recv_timeout(deadline) {
            Ok(content) => Ok(content),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(self),
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(Err(SecurityError::late(
                self.path,
                "could not be read: the thread that read it ended",
            ))),
        }
    }

    fn error(&self) -> SecurityError {
        SecurityError::late(
            &self.path,
            "could not be read in time: is it on a network file system that does not answer?",
        )
    }
}

/// Reads a file in this thread, for as long as that takes.
fn read_now(path: &Path, once: &Once, max: u64) -> Content {
    let failed = |source| SecurityError::Read {
        path: path.into(),
        source,
    };
    let check =
        |kind| check(kind, path, once).map_err(|problem| SecurityError::invalid(path, problem));
    // Looked at before it is opened: to open a device may set it going, and to open a pipe takes the place of its reader.
    let kind = fs::metadata(path).map_err(failed)?.file_type();
    check(kind)?;
    let file = open(path, is_pipe(kind)).map_err(failed)?;
    // And after it: it may have been replaced in between.
    let found = file.metadata().map_err(failed)?;
    check(found.file_type())?;
    let too_large = || {
        let problem = format!(
            "has more than {} MiB, the most that is read: is it the right file?",
            max >> 20
        );
        SecurityError::invalid(path, problem)
    };
    if found.len() > max {
        return Err(too_large());
    }
    let mut content = Vec::new();
    // One byte more shows that there is more. The length that was told may be wrong: files of /proc say 0.
    let read = file.take(max + 1).read_to_end(&mut content);
    read.map_err(failed)?;
    match content.len() as u64 > max {
        true => Err(too_large()),
        false => Ok(content),
    }
}

/// Opens a file. If it has become a pipe meanwhile, that must not wait for a writer, unless it `is_pipe` that may be
/// read.
#[cfg(unix)]
fn open(path: &Path, is_pipe: bool) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    use rustix::fs::OFlags;

    let flags = match is_pipe {
        true => OFlags::NOCTTY,
        false => OFlags::NOCTTY | OFlags::NONBLOCK,
    };
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

#[cfg(not(unix))]
fn open(path: &Path, _: bool) -> io::Result<File> {
    OpenOptions::new().read(true).open(path)
}

/// Checks that a file of this kind can be read.
fn check(kind: FileType, path: &Path, once: &Once) -> Result<(), &'static str> {
    if kind.is_file() && !leads_to_descriptor(path) {
        return Ok(());
    }
    if let Once::Read(found) = once
        && (kind.is_file() || is_pipe(kind))
    {
        found.store(true, Ordering::Relaxed);
        return Ok(());
    }
    Err(if kind.is_file() {
        "is an open file of a process: the server would not see a file that takes its place. Name the file itself"
    } else if is_pipe(kind) {
        "is a pipe: it can be read only once, and the server reads it again when it changes. Put its contents into a \
         file"
    } else if kind.is_dir() {
        "is a folder: name the file in it"
    } else if is_socket(kind) {
        "is a socket: name a file"
    } else {
        "is a device: name a file, or leave the setting out"
    })
}

/// Whether a path leads through an open file of a process: `/dev/stdin`, `/dev/fd/3`, `/proc/self/fd/3`, or a link to one.
/// The kernel goes from there to the file that was opened, and not by its name.
#[must_use]
pub fn leads_to_descriptor(path: &Path) -> bool {
    /// The most links, as for the kernel.
    const MAX_LINKS: usize = 40;
    let Ok(path) = std::path::absolute(path) else {
        return false;
    };
    let reversed = |path: &Path| {
        let parts = path.components().rev();
        let parts = parts.map(|part| part.as_os_str().to_owned());
        parts.collect::<Vec<_>>()
    };
    let mut rest = reversed(&path);
    let (mut at, mut links) = (PathBuf::new(), 0);
    while let Some(part) = rest.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        if is_folder_of_descriptors(&at) {
            return true;
        }
        // A root takes the place of everything before it.
        let next = at.join(&part);
        match fs::read_link(&next) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                rest.extend(reversed(&target));
            }
            _ => at = next,
        }
    }
    false
}

/// Whether a folder has the open files of a process, whatever process and wherever its file system is mounted.
#[cfg(target_os = "linux")]
fn is_folder_of_descriptors(folder: &Path) -> bool {
    folder.ends_with("fd")
        && rustix::fs::statfs(folder)
            .is_ok_and(|system| system.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

#[cfg(not(target_os = "linux"))]
fn is_folder_of_descriptors(folder: &Path) -> bool {
    folder == Path::new("/dev/fd")
}

#[cfg(unix)]
fn is_pipe(kind: FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(&kind)
}

#[cfg(not(unix))]
fn is_pipe(_: FileType) -> bool {
    false
}

#[cfg(unix)]
fn is_socket(kind: FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&kind)
}

#[cfg(not(unix))]
fn is_socket(_: FileType) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_hangs_is_an_error_in_time_and_is_begun_once() {
        let reader = Reader::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
        let (release, released) = mpsc::channel::<()>();
        let hanging = Reading::of(&reader.path, move || {
            // It ends with an error when the other end is dropped.
            let _ = released.recv();
            Ok(b"old".to_vec())
        });
        let error = reader.finish(hanging.unwrap(), Duration::from_millis(1));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("could not be read in time"), "{error}");
        // Each later look is an error at once, in the same words, and begins no second read.
        assert_eq!(reader.begin().unwrap_err().to_string(), error);
        assert_eq!(reader.begin().unwrap_err().to_string(), error);
        drop(release);
        let reading = loop {
            match reader.begin() {
                Ok(reading) => break reading,
                Err(_) => thread::yield_now(),
            }
        };
        let content = reader.finish(reading, DEADLINE_OF_START).unwrap();
        assert_ne!(content, b"old", "what it reads may be out of date");
    }
}
