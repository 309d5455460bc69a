//! Tables for people: sections of lines with a label and a value.

use std::fmt::{self, Write as _};

use crate::{
    latency::Distribution,
    session::{ClientShare, Environment},
};

/// A table under construction.
#[derive(Debug, Default)]
pub(crate) struct Table(String);

// ===== impl Table =====

impl Table {
    const LABEL: usize = 26;

    pub(crate) fn section(&mut self, name: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        // Writing to a string does not fail, here and below.
        let _ = writeln!(self.0, "{gap}{name}");
    }

    pub(crate) fn line(&mut self, label: &str, value: impl fmt::Display) {
        let _ = writeln!(self.0, "  {label:<width$} {value}", width = Self::LABEL);
    }

    pub(crate) fn latency(&mut self, label: &str, distribution: Option<&Distribution>) {
        match distribution {
            None => self.line(label, "no samples"),
            Some(all) => {
                for (name, value) in [
                    ("p50", all.p50_us),
                    ("p90", all.p90_us),
                    ("p99", all.p99_us),
                    ("p99.9", all.p999_us),
                    ("max", all.max_us),
                ] {
                    self.line(&format!("{label} {name}"), micros(value));
                }
            }
        }
    }

    pub(crate) fn client(&mut self, share: ClientShare) {
        self.section("benchmark");
        self.line("processor", percent(share.cpu_share));
        if share.is_bottleneck {
            self.line(
                "WARNING",
                "the benchmark used more than 85 % of its cores and may be the bottleneck; give it more \
                 cores (--client-cores), or less load",
            );
        }
    }

    pub(crate) fn environment(&mut self, environment: &Environment) {
        self.section("conditions");
        let machine = &environment.machine;
        self.line("processor model", &machine.cpu);
        self.line(
            "machine",
            format_args!(
                "{} cores, {}, {}",
                machine.core_count(),
                bytes(machine.memory_bytes as f64),
                machine.kernel
            ),
        );
        self.line("load average before", machine.load_average);
        let origin = if environment.server_is_child {
            "started for this"
        } else {
            "already running"
        };
        self.line("server", format_args!("{}, {origin}", environment.server));
        self.line("transport", if environment.tls { "TLS" } else { "plain" });
        match &environment.server_cores {
            Some(cores) => self.line("server may use cores", cores),
            None => self.line("server may use cores", "unknown"),
        }
        self.line(
            "benchmark may use cores",
            format_args!(
                "{}, with {} threads",
                environment.client_cores, environment.client_threads
            ),
        );
        self.line("version", environment.version);
    }

    pub(crate) fn finish(self) -> String {
        self.0
    }
}

/// Formats microseconds with three significant digits and a unit.
pub(crate) fn micros(value: f64) -> String {
    match value {
        value if value < 1_000.0 => format!("{} us", digits(value)),
        value if value < 1_000_000.0 => format!("{} ms", digits(value / 1e3)),
        value => format!("{} s", digits(value / 1e6)),
    }
}

/// Formats bytes with three significant digits and a unit.
pub(crate) fn bytes(value: f64) -> String {
    const K: f64 = 1_024.0;
    match value {
        value if value.abs() < K => format!("{value:.0} B"),
        value if value.abs() < K * K => format!("{} KiB", digits(value / K)),
        value if value.abs() < K * K * K => format!("{} MiB", digits(value / K / K)),
        value => format!("{} GiB", digits(value / K / K / K)),
    }
}

/// Formats a share from 0 to 1 as a percentage.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Formats a count with separators: `1,234,567`.
pub(crate) fn count(value: f64) -> String {
    indicatif::HumanCount(value.round().max(0.0) as u64).to_string()
}

/// Formats a value with three significant digits.
#[must_use]
pub fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        value if value < 1.0 => 3,
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits_and_a_unit() {
        assert_eq!(micros(0.1234), "0.123 us");
        assert_eq!(micros(45.67), "45.7 us");
        assert_eq!(micros(1_234.0), "1.23 ms");
        assert_eq!(micros(2_500_000.0), "2.50 s");
        assert_eq!(bytes(17.0), "17 B");
        assert_eq!(bytes(17.0 * 1_024.0), "17.0 KiB");
        assert_eq!(bytes(-3.0 * 1_048_576.0), "-3.00 MiB");
        assert_eq!(percent(0.256), "25.6 %");
        assert_eq!(count(1_234_567.4), "1,234,567");
    }

    #[test]
    fn values_stand_below_each_other() {
        let mut table = Table::default();
        table.section("a");
        table.line("b", 1);
        table.section("c");
        let expected = format!("a\n  {:<26} 1\n\nc\n", "b");
        assert_eq!(table.finish(), expected);
    }
}
