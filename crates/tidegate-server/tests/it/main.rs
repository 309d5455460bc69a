//! The server over real sockets: one binary, which links once, with a module for each question.

mod admin;
mod admission;
mod age;
mod common;
mod deadline;
mod drain;
mod health;
mod http;
mod identity;
mod panics;
mod pki;
mod policies;
mod quotas;
mod reflection;
mod replays;
mod slow_peers;
mod streams;
mod tls;
mod vanish;
