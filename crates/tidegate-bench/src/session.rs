//! What every benchmark begins with: cores, and a server.

use serde::Serialize;

use crate::{Cores, Credentials, Error, Launch, Machine, Server, usage::CpuSpent};

/// A share of its cores above which the benchmark is likely to hold the server up.
const BUSY: f64 = 0.85;

/// Which server is measured, and from which cores.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The server.
    pub server: ServerChoice,
    /// The cores that the benchmark is held to. `None`: all.
    pub client_cores: Option<Cores>,
    /// Threads that hold subscribers. `None`: one for each core of the benchmark, or for half of them if
    /// the server may use the same.
    pub threads: Option<usize>,
}

/// Which server is measured.
#[derive(Debug, Clone)]
pub enum ServerChoice {
    /// One that the benchmark starts, and ends.
    Child(Launch),
    /// One that runs.
    Running {
        /// Where.
        url: String,
        /// Its process on this machine. Without it nothing is known of processor time and memory.
        pid: Option<u32>,
        /// What it is shown.
        credentials: Credentials,
    },
}

/// A server, ready to be measured.
#[derive(Debug)]
pub struct Session {
    pub(crate) server: Server,
    pub(crate) environment: Environment,
}

/// Under what conditions a figure came to be.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// Of the benchmark; and of the server, if it is its child.
    pub version: &'static str,
    /// When it began, in seconds since 1970.
    pub unix_time: u64,
    /// The machine of the benchmark.
    pub machine: Machine,
    /// Where the server listens.
    pub server: String,
    /// Whether the benchmark started the server.
    pub server_is_child: bool,
    /// Whether it was spoken to by TLS.
    pub tls: bool,
    /// Cores of the server, if its process is known.
    pub server_cores: Option<Cores>,
    /// Cores of the benchmark.
    pub client_cores: Cores,
    /// Threads of the benchmark that hold connections.
    pub client_threads: usize,
}

/// What the benchmark itself took.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ClientShare {
    /// Of its cores, from 0 to 1.
    pub cpu_share: f64,
    /// Whether it is likely to have held the server up.
    pub is_bottleneck: bool,
}

// ===== impl Setup =====

impl Setup {
    /// Holds this process to its cores and finds or starts the server.
    ///
    /// # Errors
    ///
    /// When a core may not be used, or the server cannot be started or found.
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
    /// The server.
    #[must_use]
    pub const fn server(&self) -> &Server {
        &self.server
    }

    /// The conditions.
    #[must_use]
    pub const fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Ends the server, if it is a child.
    pub async fn end(self) {
        self.server.stop().await;
    }
}

impl Environment {
    /// What the benchmark took of its cores.
    #[must_use]
    pub fn client_share(&self, spent: CpuSpent, seconds: f64) -> ClientShare {
        let cpu_share = spent.seconds() / seconds / self.client_cores.count() as f64;
        ClientShare {
            cpu_share,
            is_bottleneck: cpu_share > BUSY,
        }
    }
}
