//! Figures: the rates, costs and quantiles of a measured window.

use serde::Serialize;

use crate::{
    latency::Distribution,
    run::Measured,
    session::{ClientShare, Environment},
    table::{Table, bytes, count, micros, percent},
    usage::CpuSpent,
    workers::Totals,
};

/// The figures of a window.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Length of the window, in seconds.
    pub seconds: f64,
    /// Events published in the window.
    pub published: u64,
    /// Events published per second.
    pub published_per_second: f64,
    /// Events delivered in the window, summed over the subscribers.
    pub deliveries: u64,
    /// Deliveries per second.
    pub deliveries_per_second: f64,
    /// Events that gaps counted as missing in the window.
    pub missed: u64,
    /// The cost of the server in the window, if its process is known.
    pub server: Option<ServerCost>,
    /// Time from the moment an event was due to its delivery. `None` without samples.
    pub latency: Option<Distribution>,
    /// Time from a publish request to its answer. `None` without samples.
    pub answer_latency: Option<Distribution>,
    /// The processor time of the benchmark itself.
    pub client: ClientShare,
    /// Counts of the whole run, warm-up and settling included.
    pub totals: Totals,
}

/// Processor time and memory of the server.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ServerCost {
    /// Processor time in the window.
    pub cpu: CpuSpent,
    /// Processor time per second of the window: 1 is one core.
    pub cores_busy: f64,
    /// Processor time per delivery. `None` without deliveries.
    pub per_delivery: Option<Cost>,
    /// Processor time per event published. `None` if none was.
    pub per_event: Option<Cost>,
    /// Resident bytes before the first connection.
    pub resident_before: u64,
    /// Resident bytes when all had subscribed.
    pub resident_subscribed: u64,
    /// Resident bytes at the end of the window.
    pub resident_at_end: u64,
    /// Resident bytes that one subscriber added by subscribing, on average.
    pub resident_per_subscriber: Option<f64>,
}

/// Processor time in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cost {
    /// In the server's own code.
    pub user_us: f64,
    /// In the kernel.
    pub system_us: f64,
    /// Both.
    pub total_us: f64,
}

// ===== impl Cost =====

impl Cost {
    /// Divides `cpu` by `count`. `None` if `count` is 0.
    #[must_use]
    pub fn each(cpu: CpuSpent, count: u64) -> Option<Self> {
        let each = |seconds: f64| seconds * 1e6 / count as f64;
        (count > 0).then(|| Self {
            user_us: each(cpu.user_seconds),
            system_us: each(cpu.system_seconds),
            total_us: each(cpu.seconds()),
        })
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{} (user {}, system {})",
            micros(self.total_us),
            micros(self.user_us),
            micros(self.system_us)
        )
    }
}

// ===== impl Figures =====

impl Figures {
    /// Computes the figures of `measured`, with memory divided by `subscribers`.
    #[must_use]
    pub fn new(measured: &Measured, environment: &Environment, subscribers: usize) -> Self {
        let per_second = |count: u64| count as f64 / measured.seconds;
        let server = measured
            .server_cpu
            .zip(measured.resident)
            .map(|(cpu, resident)| ServerCost {
                cpu,
                cores_busy: cpu.seconds() / measured.seconds,
                per_delivery: Cost::each(cpu, measured.delivered),
                per_event: Cost::each(cpu, measured.published),
                resident_before: resident[0],
                resident_subscribed: resident[1],
                resident_at_end: resident[2],
                resident_per_subscriber: (subscribers > 0)
                    .then(|| (resident[1] as f64 - resident[0] as f64) / subscribers as f64),
            });
        let client = environment.client_share(measured.client_cpu, measured.seconds);
        Self {
            seconds: measured.seconds,
            published: measured.published,
            published_per_second: per_second(measured.published),
            deliveries: measured.delivered,
            deliveries_per_second: per_second(measured.delivered),
            missed: measured.missed,
            server,
            latency: measured.latencies.distribution(),
            answer_latency: measured.answers.distribution(),
            client: ClientShare {
                is_bottleneck: client.is_bottleneck && !measured.awake,
                ..client
            },
            totals: measured.totals,
        }
    }

    /// Adds the lines on events published and delivered.
    pub(crate) fn rates(&self, table: &mut Table) {
        table.line(
            "published",
            format_args!("{} events/s", count(self.published_per_second)),
        );
        if self.deliveries > 0 {
            table.line(
                "delivered",
                format_args!("{} deliveries/s", count(self.deliveries_per_second)),
            );
        }
        table.line("window", format_args!("{:.2} s", self.seconds));
    }

    /// Adds the lines on the server.
    pub(crate) fn server(&self, table: &mut Table) {
        table.section("server");
        let Some(server) = &self.server else {
            table.line(
                "processor, memory",
                "unknown; give the server's process id with --server-pid",
            );
            return;
        };
        if let Some(cost) = server.per_delivery {
            table.line("processor per delivery", cost);
        }
        if let Some(cost) = server.per_event {
            table.line("processor per event", cost);
        }
        table.line(
            "processor",
            format_args!("{} of one core", percent(server.cores_busy)),
        );
        if let Some(each) = server.resident_per_subscriber {
            table.line("memory per subscriber", bytes(each));
        }
        table.line(
            "memory",
            format_args!(
                "{} before, {} subscribed, {} at the end",
                bytes(server.resident_before as f64),
                bytes(server.resident_subscribed as f64),
                bytes(server.resident_at_end as f64)
            ),
        );
    }

    /// Adds the lines on the accounts of the run.
    pub(crate) fn accounts(&self, table: &mut Table) {
        table.section("accounts of the whole run, verified for every stream that is not stalled");
        let totals = &self.totals;
        table.line("published", count(totals.published as f64));
        table.line("delivered", count(totals.delivered as f64));
        table.line("missed, counted by gaps", count(totals.missed as f64));
        if totals.missed > 0 {
            table.line(
                "",
                format_args!(
                    "by {} streams; at most {} by one",
                    count(totals.streams_with_gaps as f64),
                    count(totals.most_missed as f64)
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_divided() {
        let cpu = CpuSpent {
            user_seconds: 1.0,
            system_seconds: 3.0,
        };
        let cost = Cost::each(cpu, 1_000_000).unwrap();
        assert!((cost.user_us - 1.0).abs() < 1e-9);
        assert!((cost.total_us - 4.0).abs() < 1e-9);
        assert_eq!(cost.to_string(), "4.00 us (user 1.00 us, system 3.00 us)");
        assert!(Cost::each(cpu, 0).is_none());
    }
}
