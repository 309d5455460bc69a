//! Files that may change while the server runs, and are read again when they do.

use std::{
    error::Error as _,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::digest::{Digest, digest};

/// A certificate, a credential, a key or a rule that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecurityError {
    /// A file could not be read.
    #[error("cannot read {}: does it exist, and may this user read it?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
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

/// Files that are read together and replaced as a whole.
#[derive(Debug)]
pub(crate) struct Files {
    paths: Vec<PathBuf>,
    /// The digest of their contents at the last read, or of the error.
    seen: Mutex<Option<Digest>>,
}

/// The contents of [`Files`], in the order of their paths.
pub(crate) type Contents = Result<Vec<Vec<u8>>, SecurityError>;

// ===== impl SecurityError =====

impl SecurityError {
    /// The error and its cause in one line, for a log.
    #[must_use]
    pub fn with_cause(&self) -> String {
        match self.source() {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }

    pub(crate) fn invalid(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            path: path.as_ref().into(),
            problem: problem.into(),
        }
    }
}

// ===== impl Files =====

impl Files {
    /// Files at `paths`, none of which has been read.
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            paths: paths.into_iter().collect(),
            seen: Mutex::default(),
        }
    }

    /// Reads the files. Returns nothing if they are as they were at the last read, unless `force` is set.
    pub(crate) fn read(&self, force: bool) -> Option<Contents> {
        let mut whole = Vec::new();
        let contents: Contents = self.paths.iter().map(|path| read(path)).collect();
        match &contents {
            // Each length goes in too: bytes that move from one file to the next are a change.
            Ok(contents) => contents.iter().for_each(|content| {
                whole.extend_from_slice(&content.len().to_be_bytes());
                whole.extend_from_slice(content);
            }),
            Err(error) => whole.extend_from_slice(error.to_string().as_bytes()),
        }
        let now = Some(digest(&whole));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Remembered even if the contents turn out to be unusable, so that they are reported once and not every 2 s.
        let is_new = *seen != now;
        *seen = now;
        (is_new || force).then_some(contents)
    }
}

/// Reads one file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, SecurityError> {
    fs::read(path).map_err(|source| SecurityError::Read {
        path: path.into(),
        source,
    })
}
