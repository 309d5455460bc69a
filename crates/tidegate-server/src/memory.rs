//! How much memory there is.

use std::fs;

/// What events may hold where nothing else is said: a quarter of what the machine has, or of what the
/// control group of this process allows, whichever is less. No bound where neither can be read.
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
