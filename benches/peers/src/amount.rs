//! The amount of a workload.

/// The amount of a workload.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Amount {
    /// How long to measure in each round.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    pub(crate) seconds: f64,

    /// How long to run before measuring.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub(crate) warm_up: f64,

    /// Number of idle connections.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) idle_connections: usize,

    /// Number of connections that get one event at a time.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) burst_connections: usize,

    /// Number of clients that come at once.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) storm_clients: usize,
}
