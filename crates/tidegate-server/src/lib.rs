//! The Tidegate server as a library, so that tests and other programs start it in their own process.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use tidegate_server::{Server, ServerConfig};
//!
//! let config = ServerConfig { listen: "127.0.0.1:0".parse()?, ..ServerConfig::default() };
//! let server = Server::bind(config).await?;
//! println!("listening on {}", server.listening());
//! // A real program passes a future that is done when it is told to stop.
//! let report = server.serve(async {}).await;
//! assert_eq!(report.connections_cut, 0);
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! # Closing
//! When the future given to [`Server::serve`] is done, the server drains. Its health turns to NOT_SERVING, and it
//! accepts no more connections. Each stream ends with `GoingAway`, which carries a delay before the client comes back,
//! and the status `UNAVAILABLE`; each connection gets GOAWAY. Streams whose peer takes no notice for half of
//! [`ServerConfig::drain_timeout`] are reset. Connections that are still open when the time-out is over are cut, and
//! [`DrainReport`] counts them.
//!
//! # Services beside the events
//! Every server answers `grpc.health.v1.Health`, for the names `""` and `tidegate.v1.EventService`, and
//! `grpc.reflection.v1.ServerReflection` with its `v1alpha`. With [`ServerConfig::admin`] it answers `tidegate.v1.AdminService` too, which
//! offers the [`Controls`] over gRPC; with [`ServerConfig::http`] it answers `/metrics`, `/healthz` and `/readyz` over
//! HTTP.
//!
//! # Identity
//! With [`ServerConfig::auth`], or certificates of clients in [`ServerConfig::tls`], every call needs credentials,
//! except calls to `grpc.health.v1.Health`, and no call may do more than a [`Rule`] allows. Any principal may use
//! reflection. The [`Reloader`] reads certificates, tokens, keys and rules again when their files change.

mod access_log;
mod address;
mod config;
mod connection;
mod digest;
mod error;
mod files;
mod identity;
mod memory;
mod network;
mod operations;
mod prepare;
mod quotas;
mod reading;
mod routes;
mod server;
pub mod settings;
mod stage;
mod text;

pub use tidegate::{ClientIdPolicy, Encoded, Hub, StallPolicy, SweepRules, TopicSet};
pub use tidegate_transport::{Http2Config, Http2Engine};

pub use crate::{
    config::ServerConfig,
    error::{BindError, SecurityError},
    identity::{
        AuthConfig,
        jwt::{JwksUrl, JwtConfig, JwtKeys},
        rules::{Grant, Rule},
        tokens::token_line,
    },
    network::{
        admission::{Admission, ConnectionStats},
        listener::ListenAddress,
        tls::{ClientAuth, TlsConfig},
    },
    operations::{
        controls::{Controls, ServerStats, SubscriptionState},
        reload::Reloader,
    },
    quotas::{Quota, QuotaConfig, QuotaCount},
    reading::{ReadConfiguration, leads_to_descriptor, read_configuration, read_file},
    server::{DrainReport, Server},
};
