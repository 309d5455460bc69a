//! Processor time and memory of a process, as the kernel accounts for them.
//!
//! # Precision
//!
//! The scheduler counts the run time of each thread in nanoseconds, in `/proc/<pid>/task/*/schedstat`. The division
//! into user and system is only in `/proc/<pid>/stat`, in ticks of 10 ms that the kernel scales from samples. The sum
//! is therefore exact, and [`CpuTime::since`] divides it in the ratio of the ticks. If a kernel has no `schedstat`, or
//! a thread ended in between and took its count with it, the sum comes from the ticks too.

use std::{fs, io, path::Path};

use serde::Serialize;

use crate::Error;

/// Nanoseconds in a tick of `/proc/<pid>/stat`: `USER_HZ` is 100 on every architecture on which Rust's standard library
/// supports Linux.
const TICK: u64 = 10_000_000;

/// Processor time that a process had used at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuTime {
    /// Nanoseconds by thread id, in ascending order of ids. Empty if the kernel has no `schedstat`.
    threads: Vec<(u32, u64)>,
    user_ticks: u64,
    system_ticks: u64,
}

/// Processor time that a process used in a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CpuSpent {
    /// Seconds in the process's own code.
    pub user_seconds: f64,
    /// Seconds in the kernel, on its behalf.
    pub system_seconds: f64,
}

// ===== impl CpuTime =====

impl CpuTime {
    /// Reads the processor time that a process has used until now.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if there is no such process.
    pub fn of(pid: u32) -> Result<Self, Error> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).map_err(Error::system(format!(
            "cannot read {path}; did the server end?"
        )))?;
        let (user_ticks, system_ticks) = parse_stat(&stat)
            .ok_or_else(|| Error::Invalid(format!("{path} has an unknown form: {stat}")))?;
        Ok(Self {
            threads: threads(Path::new(&format!("/proc/{pid}/task"))).unwrap_or_default(),
            user_ticks,
            system_ticks,
        })
    }

    /// Returns the processor time used since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> CpuSpent {
        let user = (self.user_ticks - earlier.user_ticks.min(self.user_ticks)) * TICK;
        let system = (self.system_ticks - earlier.system_ticks.min(self.system_ticks)) * TICK;
        let ticks = user + system;
        let sum = self.exact_since(earlier).unwrap_or(ticks);
        let user_share = if ticks == 0 {
            0.5
        } else {
            user as f64 / ticks as f64
        };
        let seconds = sum as f64 / 1e9;
        CpuSpent {
            user_seconds: seconds * user_share,
            system_seconds: seconds * (1.0 - user_share),
        }
    }

    /// Returns the sum over the threads. `None` if a thread of `earlier` has ended.
    fn exact_since(&self, earlier: &Self) -> Option<u64> {
        if self.threads.is_empty() {
            return None;
        }
        let mut before = 0;
        for (id, ran) in &earlier.threads {
            self.threads.binary_search_by_key(id, |(id, _)| *id).ok()?;
            before += ran;
        }
        let after: u64 = self.threads.iter().map(|(_, ran)| ran).sum();
        after.checked_sub(before)
    }
}

// ===== impl CpuSpent =====

impl CpuSpent {
    /// Returns the sum of user and system time, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.user_seconds + self.system_seconds
    }
}

/// Reads the resident memory of a process, in bytes.
///
/// # Errors
///
/// [`Error::System`] if there is no such process, or it belongs to another user.
pub fn resident_bytes(pid: u32) -> Result<u64, Error> {
    // The counters in `status` lag behind by up to 64 pages a thread; this one walks the page tables.
    let path = format!("/proc/{pid}/smaps_rollup");
    if let Some(bytes) = fs::read_to_string(path)
        .ok()
        .and_then(|text| parse_kb(&text, "Rss:"))
    {
        return Ok(bytes);
    }
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(Error::system(format!(
        "cannot read {path}; did the server end?"
    )))?;
    parse_kb(&status, "VmRSS:")
        .ok_or_else(|| Error::Invalid(format!("{path} has no line VmRSS with the resident memory")))
}

/// Reads the cores that a process may use. `None` if there is no such process.
#[must_use]
pub fn allowed_cores(pid: u32) -> Option<crate::Cores> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    line.trim().parse().ok()
}

fn threads(directory: &Path) -> io::Result<Vec<(u32, u64)>> {
    let mut threads = Vec::new();
    for task in fs::read_dir(directory)? {
        let task = task?;
        let Ok(id) = task.file_name().to_string_lossy().parse() else {
            continue;
        };
        let schedstat = fs::read_to_string(task.path().join("schedstat"))?;
        let ran = schedstat
            .split_whitespace()
            .next()
            .and_then(|ran| ran.parse().ok());
        threads.push((id, ran.ok_or(io::ErrorKind::InvalidData)?));
    }
    threads.sort_unstable();
    Ok(threads)
}

/// Parses the fields `utime` and `stime`, the 14th and 15th. The second field, the name of the program, may contain
/// parentheses and spaces, so the fields are counted from its end.
fn parse_stat(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user = fields.next()?.parse().ok()?;
    let system = fields.next()?.parse().ok()?;
    Some((user, system))
}

/// Parses the bytes of a line such as `Rss:   1234 kB`.
fn parse_kb(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_program_may_contain_anything() {
        let stat = "42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 77 33 0 0 20 0 1 0";
        assert_eq!(parse_stat(stat), Some((77, 33)));
        assert_eq!(parse_stat("42 (a) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn resident_memory_is_read_in_kilobytes() {
        let text = "Name:\tx\nRss:            2048 kB\nPss: 1 kB\n";
        assert_eq!(parse_kb(text, "Rss:"), Some(2_048 * 1_024));
        assert_eq!(parse_kb(text, "Pss:"), Some(1_024));
        assert_eq!(parse_kb(text, "VmRSS:"), None);
    }

    fn time(threads: &[(u32, u64)], user_ticks: u64, system_ticks: u64) -> CpuTime {
        CpuTime {
            threads: threads.to_vec(),
            user_ticks,
            system_ticks,
        }
    }

    #[test]
    fn the_exact_sum_is_divided_in_the_ratio_of_the_ticks() {
        let earlier = time(&[(1, 1_000_000_000)], 10, 10);
        let later = time(&[(1, 1_400_000_000), (2, 600_000_000)], 40, 80);
        let spent = later.since(&earlier);
        assert!((spent.user_seconds - 0.3).abs() < 1e-9, "{spent:?}");
        assert!((spent.system_seconds - 0.7).abs() < 1e-9, "{spent:?}");
    }

    #[test]
    fn ticks_count_when_a_thread_has_ended() {
        let earlier = time(&[(1, 5), (2, 5)], 0, 0);
        let later = time(&[(1, 6)], 20, 30);
        let spent = later.since(&earlier);
        assert!((spent.seconds() - 0.5).abs() < 1e-9, "{spent:?}");
    }

    #[test]
    fn cpu_time_of_this_process_is_not_zero() {
        let pid = std::process::id();
        let earlier = CpuTime::of(pid).unwrap();
        let mut sum = 0_u64;
        for n in 0..5_000_000_u64 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(n));
        }
        let spent = CpuTime::of(pid).unwrap().since(&earlier);
        assert!(spent.seconds() >= 0.0 && sum != 1);
        assert!(resident_bytes(pid).unwrap() > 100_000);
        assert!(allowed_cores(pid).is_some());
        assert!(CpuTime::of(u32::MAX).is_err());
    }
}
