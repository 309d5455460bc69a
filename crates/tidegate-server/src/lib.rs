//! The Tidegate server as a library, so that tests and other programs start it in their own process.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use tidegate_server::{Server, ServerConfig};
//!
//! let config = ServerConfig { listen: "127.0.0.1:0".parse()?, ..ServerConfig::default() };
//! let server = Server::bind(config).await?;
//! println!("listening on {}", server.local_addr());
//! let report = server.serve(async { /* until this is done */ }).await;
//! assert_eq!(report.connections_cut, 0);
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! # Closing
//! When the future given to [`Server::serve`] is done, the server drains: its health is NOT_SERVING, it
//! accepts no more, ends every stream with `GoingAway`, a delay to come back after and `UNAVAILABLE`, and
//! sends each connection GOAWAY. Streams whose peer takes no notice for half of
//! [`ServerConfig::drain_timeout`] are reset. Connections that are still
//! there at its end are cut, and counted.
//!
//! # Beside the events
//! Every server answers `grpc.health.v1.Health`, for the names `""` and `tidegate.v1.EventService`, and
//! `grpc.reflection.v1.ServerReflection`. Where [`ServerConfig::admin`] says so it answers
//! `tidegate.v1.AdminService`, which has the [`Controls`], and where [`ServerConfig::http`] says so, `/metrics`,
//! `/healthz` and `/readyz` over HTTP.
//!
//! # Identity
//! With [`ServerConfig::auth`], or certificates of clients in [`ServerConfig::tls`], every call must prove whose
//! it is, but those to `grpc.health.v1.Health`, and everything is denied that no [`Rule`] allows. Reflection is
//! for all whose credentials are accepted. Certificates, tokens, keys and rules are read again when their files
//! change: [`Reloader`].

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
mod quotas;
mod routes;
mod server;
pub mod settings;

pub use tidegate::{ClientIdPolicy, Encoded, Hub, SweepRules, TopicSet};
pub use tidegate_transport::Http2Config;

pub use crate::{
    config::ServerConfig,
    error::BindError,
    files::SecurityError,
    identity::{
        AuthConfig,
        jwt::{JwksUrl, JwtConfig, JwtKeys},
        rules::{Grant, Rule},
        tokens::token_line,
    },
    network::{
        admission::{Admission, ConnectionStats},
        tls::{ClientAuth, TlsConfig},
    },
    operations::{
        controls::{Controls, ServerStats, SubscriptionState},
        reload::Reloader,
    },
    quotas::{Quota, QuotaConfig, QuotaCount},
    server::{DrainReport, Server},
};
