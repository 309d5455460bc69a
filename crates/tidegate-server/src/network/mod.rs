//! Connections before the first call: how many there may be, and TLS.

pub(crate) mod admission;
pub(crate) mod descriptors;
pub(crate) mod tls;
