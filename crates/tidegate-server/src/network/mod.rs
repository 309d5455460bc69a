//! Connections before their first call: limits on their number, the files that they need, and TLS.

pub(crate) mod admission;
pub(crate) mod certificate;
pub(crate) mod descriptors;
pub(crate) mod expiry;
pub(crate) mod listener;
#[cfg(unix)]
mod local;
#[cfg(not(unix))]
#[path = "no_local.rs"]
mod local;
pub(crate) mod metered;
pub(crate) mod pem;
pub(crate) mod tls;
