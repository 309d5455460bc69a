//! The start of every benchmark: cores, and a server.

use serde::Serialize;

use crate::{Cores, Credentials, Error, Launch, Machine, Server, usage::CpuSpent};

/// The share of its cores above which the benchmark is probably the bottleneck. A chosen margin, not a measurement.
const BUSY: f64 = 0.85;

/// The server to measure, and the cores to measure it from.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The server to measure.
    pub server: ServerChoice,
    /// The cores that the benchmark is held to. `None`: all.
    pub client_cores: Option<Cores>,
    /// Threads that hold connections. `None`: one per core of the benchmark, or one per two cores if the server may use
    /// the same ones.
    pub threads: Option<usize>,
}

/// The server to measure.
#[derive(Debug, Clone)]
pub enum ServerChoice {
    /// A child process, which the benchmark starts and ends.
    Child(Launch),
    /// A server that is running already.
    Running {
        /// Its URL.
        url: String,
        /// Its process id on this machine. Without it, processor time and memory are unknown.
        pid: Option<u32>,
        /// The credentials to send.
        credentials: Credentials,
    },
}

/// A server, ready to be measured.
#[derive(Debug)]
pub struct Session {
    pub(crate) server: Server,
    pub(crate) environment: Environment,
}

/// The conditions of a measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// Version of the benchmark, and of the server if that is its child.
    pub version: &'static str,
    /// Time at which the benchmark began, in seconds since 1970 (UTC).
    pub unix_time: u64,
    /// The machine of the benchmark.
    pub machine: Machine,
    /// Host and port of the server.
    pub server: String,
    /// Whether the benchmark started the server.
    pub server_is_child: bool,
    /// Whether the connections used TLS.
    pub tls: bool,
    /// Cores of the server, if its process is known.
    pub server_cores: Option<Cores>,
    /// Cores of the benchmark.
    pub client_cores: Cores,
    /// Threads of the benchmark that hold connections.
    pub client_threads: usize,
}

/// The processor time of the benchmark itself.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ClientShare {
    /// Share of its cores that it used, from 0 to 1.
    pub cpu_share: f64,
    /// Whether it used more than 85 % of its cores, and so is probably the bottleneck.
    pub is_bottleneck: bool,
}

// ===== impl Setup =====

impl Setup {
    /// Finds or starts the server, and holds this process to its cores.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the cores may not be used, and as for [`Launch::start`] and [`Server::running`].
    pub async fn begin(&self) -> Result<Session, Error> {
        let machine = Machine::this();
        let server = match &self.server {
            ServerChoice::Child(launch) => launch.start().await?,
            ServerChoice::Running {
                url,
                pid,
                credentials,
            } => Server::running(url, *pid, credentials).await?,
        };
        if let Some(cores) = &self.client_cores {
            cores.hold_this_process()?;
        }
        let client_cores = Cores::of_this_thread()?;
        let server_cores = server.cores();
        let shared = server_cores.as_ref() == Some(&client_cores);
        let threads = client_cores.count() / if shared { 2 } else { 1 };
        let unix_time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let environment = Environment {
            version: env!("CARGO_PKG_VERSION"),
            unix_time: unix_time.map_or(0, |time| time.as_secs()),
            machine,
            server: server.authority().to_owned(),
            server_is_child: server.is_child(),
            tls: server.tls().is_some(),
            server_cores,
            client_cores,
            client_threads: self.threads.unwrap_or(threads).max(1),
        };
        Ok(Session {
            server,
            environment,
        })
    }
}

// ===== impl Session =====

impl Session {
    /// Returns the server.
    #[must_use]
    pub const fn server(&self) -> &Server {
        &self.server
    }

    /// Returns the conditions.
    #[must_use]
    pub const fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Ends the server, if it is a child of the benchmark.
    pub async fn end(self) {
        self.server.stop().await;
    }
}

impl Environment {
    /// Returns the share of its cores that the benchmark used, given its processor time within `seconds`.
    #[must_use]
    pub fn client_share(&self, spent: CpuSpent, seconds: f64) -> ClientShare {
        let cpu_share = spent.seconds() / seconds / self.client_cores.count() as f64;
        ClientShare {
            cpu_share,
            is_bottleneck: cpu_share > BUSY,
        }
    }
}
