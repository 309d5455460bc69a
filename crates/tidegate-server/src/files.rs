//! Files that may change while the server runs.

use std::{
    error::Error as _,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::digest::{Digest, digest};

/// Why something about certificates, credentials or rules cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecurityError {
    /// A file could not be read.
    #[error("cannot read {}: does it exist, and may this user read it?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// What was read cannot be used.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file, or the URL.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        problem: String,
    },
    /// The configuration contradicts itself.
    #[error("{0}")]
    Configuration(&'static str),
}

/// Files that are read together.
#[derive(Debug)]
pub(crate) struct Files {
    paths: Vec<PathBuf>,
    /// What they were when last read, errors included.
    seen: Mutex<Option<Digest>>,
}

/// The contents of files, in the order of their paths.
pub(crate) type Contents = Result<Vec<Vec<u8>>, SecurityError>;

impl SecurityError {
    /// The error and what caused it, in one line for a log.
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

impl Files {
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            paths: paths.into_iter().collect(),
            seen: Mutex::default(),
        }
    }

    /// What is in them, if that is not the same as at the last time, or in any case with `force`.
    pub(crate) fn read(&self, force: bool) -> Option<Contents> {
        let mut whole = Vec::new();
        let contents: Contents = self.paths.iter().map(|path| read(path)).collect();
        match &contents {
            Ok(contents) => contents.iter().for_each(|content| {
                whole.extend_from_slice(&content.len().to_be_bytes());
                whole.extend_from_slice(content);
            }),
            Err(error) => whole.extend_from_slice(error.to_string().as_bytes()),
        }
        let now = Some(digest(&whole));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *seen != now;
        *seen = now;
        (is_new || force).then_some(contents)
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, SecurityError> {
    fs::read(path).map_err(|source| SecurityError::Read {
        path: path.into(),
        source,
    })
}
