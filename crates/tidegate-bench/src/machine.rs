//! The machine of a measurement.

use std::fs;

use serde::Serialize;

use crate::Cores;

/// The machine of a measurement, as the kernel describes it.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The processor's own name for its model.
    pub cpu: String,
    /// Cores that are online, in the kernel's notation: `0-3`.
    pub cores: String,
    /// Name and release of the kernel.
    pub kernel: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The load average over the minute before the benchmark.
    pub load_average: f64,
}

impl Machine {
    /// Describes the machine of this process. A value that the kernel does not give is `unknown` or 0.
    #[must_use]
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let uname = rustix::system::uname();
        Self {
            cpu: cpu_model(&read("/proc/cpuinfo")).unwrap_or_else(|| "unknown".into()),
            cores: read("/sys/devices/system/cpu/online").trim().to_owned(),
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy()
            ),
            memory_bytes: memory(&read("/proc/meminfo")).unwrap_or(0),
            load_average: load_average(&read("/proc/loadavg")).unwrap_or(0.0),
        }
    }

    /// Returns the number of cores that are online; 1 if it is unknown.
    #[must_use]
    pub fn core_count(&self) -> usize {
        self.cores.parse().map_or(1, |cores: Cores| cores.count())
    }
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1_024)
}

fn load_average(loadavg: &str) -> Option<f64> {
    loadavg.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_description_is_read_from_the_kernel() {
        assert_eq!(
            cpu_model("processor\t: 0\nmodel name\t: A B (C) @ 3 GHz\n").as_deref(),
            Some("A B (C) @ 3 GHz")
        );
        assert_eq!(memory("MemTotal:       16 kB\n"), Some(16_384));
        assert_eq!(load_average("0.42 1.0 1.0 1/2 3"), Some(0.42));
        assert!(Machine::this().core_count() >= 1);
    }
}
