//! Operations: the numbers of a running server, the ways to read and steer it, and the files that it reads again.

pub(crate) mod admin;
pub(crate) mod controls;
pub(crate) mod drops;
pub(crate) mod health;
pub(crate) mod http;
pub(crate) mod lags;
pub(crate) mod metrics;
pub(crate) mod process;
pub(crate) mod reflection;
pub(crate) mod reload;
pub(crate) mod supervision;
