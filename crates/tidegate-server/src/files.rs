//! Files that may change while the server runs, and are read again when they do.

use std::{
    panic::resume_unwind,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use tokio::task::spawn_blocking;

pub(crate) use crate::error::SecurityError;
use crate::{
    digest::{Digest, digest},
    reading::{DEADLINE, DEADLINE_OF_START, Reader},
};

/// Files that are looked at together.
#[derive(Debug)]
pub(crate) struct Files {
    readers: Vec<Reader>,
    /// The look at the last read.
    seen: Mutex<Option<Look>>,
}

/// The digests of the contents of [`Files`], or of the errors, at one moment.
pub(crate) type Look = Vec<Digest>;

/// The contents of [`Files`], in the order of their paths.
pub(crate) type Contents = Vec<Result<Vec<u8>, SecurityError>>;

/// Does work that blocks, on another thread. Nothing comes of it if the runtime shuts down and has dropped it before it
/// ran.
///
/// # Panics
/// When the work does: it must not look as if nothing had changed, and whoever runs this counts it and begins again.
pub(crate) async fn aside<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    let done = spawn_blocking(work).await;
    done.map(Some)
        .unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => None,
        })
}

// ===== impl Files =====

impl Files {
    /// Files at `paths`, none of which has been read.
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            readers: paths.into_iter().map(Reader::new).collect(),
            seen: Mutex::default(),
        }
    }

    /// Reads the files. Returns nothing if they are as they were at the last read, unless `force` is set.
    ///
    /// Blocks until all are read, or the deadline has passed.
    pub(crate) fn read(&self, force: bool) -> Option<Contents> {
        let contents = self.contents();
        let now = Some(look(&contents));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Remembered even if the contents turn out to be unusable, so that they are reported once and not every 2 s.
        let is_new = *seen != now;
        *seen = now;
        (is_new || force).then_some(contents)
    }

    /// Looks at the files without taking their contents. Blocks like [`read`](Self::read).
    pub(crate) fn look(&self) -> Look {
        look(&self.contents())
    }

    /// Whether the files were different at the last read.
    pub(crate) fn has_changed(&self, now: &Look) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref() != Some(now)
    }

    fn contents(&self) -> Contents {
        let is_first = self
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none();
        let deadline = match is_first {
            true => DEADLINE_OF_START,
            false => DEADLINE,
        };
        // All begin before the first is waited for, so that those that hang do so together.
        let readings: Vec<_> = self.readers.iter().map(Reader::begin).collect();
        let end = Instant::now() + deadline;
        let readings = readings.into_iter().zip(&self.readers);
        readings
            .map(|(reading, reader)| {
                reader.finish(reading?, end.saturating_duration_since(Instant::now()))
            })
            .collect()
    }
}

fn look(contents: &Contents) -> Look {
    let digests = contents.iter().map(|content| match content {
        Ok(content) => digest(content),
        Err(error) => digest(error.with_cause().as_bytes()),
    });
    digests.collect()
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, process::Command};

    use super::*;
    use crate::reading::{MAX_BYTES, read_configuration, read_file};

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tidegate-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn pipe(&self, name: &str) -> PathBuf {
            let path = self.0.join(name);
            let made = Command::new("mkfifo").arg(&path).status().unwrap();
            assert!(made.success());
            path
        }

        fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_by_name_and_at_once() {
        let folder = Folder::new("kinds");
        let socket = folder.0.join("socket");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = folder.0.join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let huge = folder.file("huge", b"");
        let sparse = fs::OpenOptions::new().write(true).open(&huge).unwrap();
        sparse.set_len(MAX_BYTES + 1).unwrap();
        for (path, word) in [
            (folder.pipe("pipe"), "is a pipe"),
            (folder.0.clone(), "is a folder"),
            (socket, "is a socket"),
            (PathBuf::from("/dev/zero"), "is a device"),
            (PathBuf::from("/dev/null"), "is a device"),
            (link, "is a device"),
            (huge, "more than 64 MiB"),
            (folder.0.join("absent"), "cannot read"),
        ] {
            let began = Instant::now();
            let error = read_file(&path).unwrap_err().with_cause();
            assert!(error.contains(word), "{}: {error}", path.display());
            assert!(began.elapsed() < DEADLINE_OF_START, "{}", path.display());
        }
    }

    #[test]
    fn a_file_that_becomes_a_pipe_is_an_error_and_no_change_after_it() {
        let folder = Folder::new("becomes");
        let path = folder.file("file", b"one");
        let files = Files::new([path.clone()]);
        assert_eq!(files.read(false).unwrap()[0].as_ref().unwrap(), b"one");
        assert!(files.read(false).is_none());
        fs::remove_file(&path).unwrap();
        folder.pipe("file");
        let contents = files.read(false).unwrap();
        let error = contents[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("is a pipe"), "{error}");
        assert!(files.read(false).is_none(), "it is told once");
        fs::remove_file(&path).unwrap();
        folder.file("file", b"two");
        assert_eq!(files.read(false).unwrap()[0].as_ref().unwrap(), b"two");
    }

    #[test]
    fn a_file_that_cannot_be_read_hides_no_change_of_another() {
        let folder = Folder::new("beside");
        let (gone, other) = (folder.0.join("gone"), folder.file("other", b"one"));
        let files = Files::new([gone, other.clone()]);
        assert!(files.read(false).is_some());
        fs::write(&other, "two").unwrap();
        let contents = files.read(false).unwrap();
        assert!(contents[0].is_err());
        assert_eq!(contents[1].as_ref().unwrap(), b"two");
    }

    #[test]
    fn a_configuration_may_come_from_a_pipe_once() {
        let folder = Folder::new("once");
        let path = folder.pipe("pipe");
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || fs::write(path, "\u{feff}log = \"info\"\n").unwrap())
        };
        let read = read_configuration(&path, true).unwrap();
        writer.join().unwrap();
        assert_eq!(read.text, "log = \"info\"\n");
        assert!(read.is_read_once);
        let error = read_configuration(&path, false).unwrap_err().to_string();
        assert!(error.contains("is a pipe"), "{error}");
    }
}
