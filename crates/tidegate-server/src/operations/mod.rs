//! Running a server: its numbers, the admin service, and what is read again while it runs.

pub(crate) mod admin;
pub(crate) mod controls;
pub(crate) mod http;
pub(crate) mod lags;
pub(crate) mod metrics;
pub(crate) mod reload;
