//! Connections before their first call: limits on their number, the files that they need, and TLS.

pub(crate) mod admission;
pub(crate) mod descriptors;
pub(crate) mod listener;
pub(crate) mod tls;
