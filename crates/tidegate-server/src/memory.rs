//! The memory that the machine, or the control group, has.

use std::fs;

/// The memory budget of a server whose configuration sets none: a quarter of the machine's memory, or of the limit of
/// this process's control group, whichever is less. No limit where neither can be read.
pub(crate) fn default_budget() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_of(&text));
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    machine
        .into_iter()
        .chain(group)
        .min()
        .map_or(u64::MAX, |bytes: u64| bytes / 4)
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        assert_eq!(
            total_of("MemTotal:       24575 kB\nMemFree: 1 kB\n"),
            Some(24_575 * 1_024)
        );
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
    }
}
