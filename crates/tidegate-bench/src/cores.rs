//! Sets of cores, and the affinity of threads and processes.

use std::{fmt, fs, str::FromStr};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use serde::{Serialize, Serializer};

use crate::Error;

/// A set of cores, written in the kernel's notation: `0`, `1-3`, `0,2-3`. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(
    /// In ascending order, not empty, none twice.
    Vec<usize>,
);

impl Cores {
    /// Returns the number of cores.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the union with `others`.
    #[must_use]
    pub fn and(&self, others: &Self) -> Self {
        let mut all = [self.0.as_slice(), &others.0].concat();
        all.sort_unstable();
        all.dedup();
        Self(all)
    }

    /// Returns the cores that the calling thread may use.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the system does not say.
    pub fn of_this_thread() -> Result<Self, Error> {
        let set = sched_getaffinity(None)
            .map_err(|errno| Error::system("cannot read the allowed cores")(errno.into()))?;
        Ok(Self(
            (0..CpuSet::MAX_CPU)
                .filter(|&core| set.is_set(core))
                .collect(),
        ))
    }

    /// Holds every thread of this process to these cores. Threads and processes that they start inherit the cores.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if none of the cores exists and may be used.
    pub fn hold_this_process(&self) -> Result<(), Error> {
        let tasks = fs::read_dir("/proc/self/task").map_err(Error::system("/proc/self/task"))?;
        for task in tasks {
            let task = task.map_err(Error::system("/proc/self/task"))?;
            let id = task.file_name().to_string_lossy().parse().ok();
            self.hold(id.and_then(Pid::from_raw))?;
        }
        Ok(())
    }

    /// Runs `start` with the calling thread held to these cores. A process that `start` spawns inherits them.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if none of the cores exists and may be used.
    pub fn while_held<T>(&self, start: impl FnOnce() -> T) -> Result<T, Error> {
        let before = Self::of_this_thread()?;
        self.hold(None)?;
        let started = start();
        before.hold(None)?;
        Ok(started)
    }

    /// Holds one thread to these cores: `thread`, or the calling one for `None`.
    fn hold(&self, thread: Option<Pid>) -> Result<(), Error> {
        let mut set = CpuSet::new();
        for &core in &self.0 {
            set.set(core);
        }
        sched_setaffinity(thread, &set).map_err(|errno| {
            Error::Invalid(format!(
                "cannot use core {self}: {errno}; `nproc --all` prints how many there are, counted from 0"
            ))
        })
    }
}

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write it as 0, 1-3 or 0,2-3".to_owned();
        let number = |text: &str| {
            text.parse::<usize>()
                .ok()
                .filter(|&core| core < CpuSet::MAX_CPU)
        };
        let mut cores = Vec::new();
        for part in text.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first = number(first).ok_or_else(wrong)?;
            let last = number(last).ok_or_else(wrong)?;
            if last < first {
                return Err(wrong());
            }
            cores.extend(first..=last);
        }
        cores.sort_unstable();
        cores.dedup();
        Ok(Self(cores))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|a, b| a + 1 == *b);
        for (place, run) in runs.enumerate() {
            if place > 0 {
                out.write_str(",")?;
            }
            match run {
                [core] => write!(out, "{core}")?,
                [first, .., last] => write!(out, "{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

impl Serialize for Cores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_written_as_the_kernel_writes_them() {
        for (text, canonical, count) in [
            ("0", "0", 1),
            ("1-3", "1-3", 3),
            ("3,0-1,1", "0-1,3", 3),
            ("0,2-2\n", "0,2", 2),
        ] {
            let cores: Cores = text.parse().unwrap();
            assert_eq!(
                (cores.to_string().as_str(), cores.count()),
                (canonical, count)
            );
        }
        for bad in ["", "a", "1-", "3-1", "0,,1", "99999"] {
            assert!(bad.parse::<Cores>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn cores_are_joined() {
        let cores = |text: &str| text.parse::<Cores>().unwrap();
        assert_eq!(cores("2,0").and(&cores("1-2")), cores("0-2"));
    }

    #[test]
    fn a_thread_is_held_only_for_a_while() {
        let all = Cores::of_this_thread().unwrap();
        let one = Cores(vec![all.0[0]]);
        let inside = one.while_held(|| Cores::of_this_thread().unwrap()).unwrap();
        assert_eq!(inside, one);
        assert_eq!(Cores::of_this_thread().unwrap(), all);
    }

    #[test]
    fn a_core_that_does_not_exist_is_named() {
        let error = Cores(vec![CpuSet::MAX_CPU - 1])
            .while_held(|| ())
            .unwrap_err();
        assert!(error.to_string().contains("nproc"), "{error}");
    }
}
