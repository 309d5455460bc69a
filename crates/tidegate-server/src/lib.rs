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

mod admin;
mod admission;
mod authorisation;
mod books;
mod caller;
mod config;
mod connection;
mod controls;
mod descriptors;
mod files;
mod found_good;
mod http;
mod identity;
mod jwks;
mod jwt;
mod lags;
mod memory;
mod metrics;
mod policy;
mod quotas;
mod reload;
mod routes;
mod server;
mod session;
pub mod settings;
mod tls;
mod tokens;

pub use tidegate::{ClientIdPolicy, Encoded, Hub, StallPolicy, SweepRules, TopicSet};
pub use tidegate_transport::Http2Config;

pub use crate::{
    admission::{Admission, ConnectionStats},
    authorisation::{Grant, Rule},
    config::ServerConfig,
    controls::{Controls, ServerStats, SubscriptionState},
    files::SecurityError,
    identity::AuthConfig,
    jwt::{JwksUrl, JwtConfig, JwtKeys},
    quotas::{Quota, QuotaConfig, QuotaCount},
    reload::Reloader,
    server::{BindError, DrainReport, Server},
    tls::{ClientAuth, TlsConfig},
    tokens::token_line,
};
