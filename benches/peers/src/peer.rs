//! The servers that are compared, and how to start each.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use clap::ValueEnum;
use tidegate_bench::{
    Cores, Error, Grpc, Idle, IdleMemory, Launch, Load, Measured, Progress, Server, ServerChoice,
    Session, Setup, Storm, Wave,
};

use crate::text::{Text, nats::Nats, raw::Raw, redis::Redis};

/// The window of a client that reads nothing: the default of HTTP/2, which such a client would have.
const STALLED_WINDOW: u32 = 65_535;

/// A server that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    Tidegate,
    TypedTransport,
    Typed,
    Broadcast,
    Mpsc,
    Nats,
    Redis,
    Raw,
    #[value(name = "raw-16k")]
    RawSmall,
}

/// The paths of the programs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Programs {
    /// The tidegate program.
    #[arg(long, value_name = "PATH", default_value = "tidegate")]
    tidegate: PathBuf,

    /// The nats-server program.
    #[arg(long, value_name = "PATH", default_value = "nats-server")]
    nats: PathBuf,

    /// The redis-server program.
    #[arg(long, value_name = "PATH", default_value = "redis-server")]
    redis: PathBuf,
}

/// The settings of a server that differ from workload to workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Serving {
    /// Whether it serves by TLS, with a certificate made for it.
    tls: bool,
    /// Whether it may use the cores of the load as well.
    on_all_cores: bool,
}

/// The programs, and the cores of servers and load.
#[derive(Debug, clap::Args)]
pub(crate) struct Launching {
    /// Cores that servers are held to.
    #[arg(long, value_name = "CORES", default_value = "0")]
    server_cores: Cores,

    /// Cores that the load comes from.
    #[arg(long, value_name = "CORES", default_value = "1")]
    client_cores: Cores,

    #[command(flatten)]
    pub(crate) programs: Programs,
}

// ===== impl Serving =====

impl Serving {
    pub(crate) const PLAIN: Self = Self {
        tls: false,
        on_all_cores: false,
    };

    pub(crate) const ON_ALL_CORES: Self = Self {
        on_all_cores: true,
        ..Self::PLAIN
    };

    pub(crate) const BY_TLS: Self = Self {
        tls: true,
        ..Self::PLAIN
    };
}

// ===== impl Launching =====

impl Launching {
    /// Starts `peer`, ready to measure.
    pub(crate) async fn begin(&self, peer: Peer, serving: Serving) -> Result<Session, Error> {
        let mut launch = peer.launch(&self.programs)?;
        launch.cores = Some(match serving.on_all_cores {
            true => self.server_cores.and(&self.client_cores),
            false => self.server_cores.clone(),
        });
        if serving.tls {
            launch = launch.with_tls("--tls-certificate", "--tls-key")?;
        }
        let setup = Setup {
            server: ServerChoice::Child(launch),
            client_cores: Some(self.client_cores.clone()),
            threads: None,
        };
        setup.begin().await
    }
}

// ===== impl Peer =====

impl Peer {
    /// All servers, in the order of the tables.
    pub(crate) const ALL: [Self; 9] = [
        Self::Tidegate,
        Self::TypedTransport,
        Self::Typed,
        Self::Broadcast,
        Self::Mpsc,
        Self::Nats,
        Self::Redis,
        Self::Raw,
        Self::RawSmall,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tidegate => "tidegate",
            Self::TypedTransport => "typed hub, own transport",
            Self::Typed => "tonic + typed hub",
            Self::Broadcast => "tonic + broadcast",
            Self::Mpsc => "tonic + mpsc",
            Self::Nats => "NATS",
            Self::Redis => "Redis",
            Self::Raw => "raw TCP",
            Self::RawSmall => "raw TCP, 16 KiB writes",
        }
    }

    /// Whether a subscriber that does not read leaves the others running.
    pub(crate) const fn survives_stalling(self) -> bool {
        !matches!(self, Self::Raw | Self::RawSmall)
    }

    /// Whether it can serve by TLS, and the benchmark has a client for that.
    pub(crate) const fn speaks_tls(self) -> bool {
        matches!(
            self,
            Self::Tidegate | Self::Typed | Self::Broadcast | Self::Mpsc
        )
    }

    /// Whether its clients can come in a storm, and the benchmark knows when they are there.
    pub(crate) const fn takes_storms(self) -> bool {
        matches!(self, Self::Tidegate | Self::Nats | Self::Redis)
    }

    /// Returns how to start it.
    fn launch(self, programs: &Programs) -> Result<Launch, Error> {
        Ok(match self {
            Self::Tidegate => Launch::tidegate(&programs.tidegate),
            Self::TypedTransport => Launch::new(this_program()?, ["typed-transport"]),
            Self::Typed => Launch::new(this_program()?, ["typed"]),
            Self::Broadcast => Launch::new(this_program()?, ["broadcast"]),
            Self::Mpsc => Launch::new(this_program()?, ["mpsc"]),
            Self::Raw => Launch::new(this_program()?, ["raw", "--write", "65536"]),
            Self::RawSmall => Launch::new(this_program()?, ["raw", "--write", "16384"]),
            Self::Nats => {
                let address = free_address()?;
                let port = address.port().to_string();
                let arguments = ["--addr", "127.0.0.1", "--port", &port, "--log", "/dev/null"];
                Launch::new(&programs.nats, arguments).listening_at(address)
            }
            Self::Redis => {
                let address = free_address()?;
                let port = address.port().to_string();
                let arguments = [
                    "--bind",
                    "127.0.0.1",
                    "--port",
                    &port,
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--maxclients",
                    "100000",
                ];
                Launch::new(&programs.redis, arguments).listening_at(address)
            }
        })
    }

    /// Puts a load on the server of `session`, and measures.
    pub(crate) async fn run(self, load: Load, session: &Session) -> Result<Measured, Error> {
        let (server, progress) = (session.server(), Progress::hidden());
        match self {
            Self::Tidegate | Self::TypedTransport | Self::Typed | Self::Broadcast | Self::Mpsc => {
                let mut grpc = Grpc::new(server);
                if load.stalled_connections > 0 {
                    grpc = grpc.with_window(STALLED_WINDOW);
                }
                load.run(&grpc, server, &progress).await
            }
            Self::Nats => load.run(&Text::new(server, Nats), server, &progress).await,
            Self::Redis => load.run(&Text::new(server, Redis), server, &progress).await,
            Self::Raw | Self::RawSmall => {
                load.run(&Text::new(server, Raw), server, &progress).await
            }
        }
    }

    /// Holds idle subscribers on the server of `session`, and measures.
    pub(crate) async fn idle(self, idle: &Idle, session: &Session) -> Result<IdleMemory, Error> {
        let (server, progress) = (session.server(), Progress::hidden());
        match self {
            Self::Tidegate | Self::TypedTransport | Self::Typed | Self::Broadcast | Self::Mpsc => {
                idle.measure(Grpc::new(server), server, &progress).await
            }
            Self::Nats => {
                idle.measure(Text::new(server, Nats), server, &progress)
                    .await
            }
            Self::Redis => {
                idle.measure(Text::new(server, Redis), server, &progress)
                    .await
            }
            Self::Raw | Self::RawSmall => {
                idle.measure(Text::new(server, Raw), server, &progress)
                    .await
            }
        }
    }

    /// Lets many clients come, be cut and come back to the server of `session`, and measures. Returns the three waves.
    pub(crate) async fn storm(self, storm: &Storm, session: &Session) -> Result<[Wave; 3], Error> {
        let (server, environment) = (session.server(), session.environment());
        let progress = &Progress::hidden();
        match self {
            Self::Nats => {
                let target = |server: &Server| Text::new(server, Nats);
                storm.measure(target, server, environment, progress).await
            }
            Self::Redis => {
                let target = |server: &Server| Text::new(server, Redis);
                storm.measure(target, server, environment, progress).await
            }
            _ => {
                storm
                    .measure(Grpc::new, server, environment, progress)
                    .await
            }
        }
    }

    /// Returns its version, for the document.
    pub(crate) fn version(self, programs: &Programs) -> String {
        match self {
            Self::Tidegate => says(&programs.tidegate),
            Self::Nats => says(&programs.nats),
            Self::Redis => says(&programs.redis),
            Self::TypedTransport | Self::Typed | Self::Broadcast | Self::Mpsc => {
                ["tonic", "h2", "tokio"].map(locked).join(", ")
            }
            Self::Raw | Self::RawSmall => "blocking sockets of the standard library".into(),
        }
    }
}

/// Returns the first line of a program's `--version`.
fn says(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let first = said
        .ok()
        .and_then(|said| said.lines().next().map(str::to_owned));
    first.unwrap_or_else(|| "unknown".into())
}

/// Returns a crate and its version in the lock file of this build.
fn locked(name: &str) -> String {
    let lock = include_str!("../../../Cargo.lock");
    let entry = format!("name = \"{name}\"\nversion = \"");
    let version = lock
        .split_once(&entry)
        .and_then(|(_, rest)| rest.split('"').next());
    format!("{name} {}", version.unwrap_or("unknown"))
}

fn this_program() -> Result<PathBuf, Error> {
    std::env::current_exe().map_err(Error::system("cannot find this program"))
}

/// Returns an address that was free a moment ago, for servers that cannot choose one themselves.
fn free_address() -> Result<SocketAddr, Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(Error::system("cannot find a free port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_lock_file() {
        assert!(locked("tonic").starts_with("tonic 0."));
        assert_eq!(locked("no-such-crate"), "no-such-crate unknown");
    }
}
