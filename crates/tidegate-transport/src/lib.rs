//! HTTP/2 connections for services that stream to many clients: those of the Tidegate server, for any tower service.
//!
//! A service on tonic with a typed hub is served like this, in place of tonic's own server:
//!
//! ```
//! use std::time::Duration;
//! use tidegate::typed::Hub;
//! use tidegate_transport::{Http2Config, Server, listen};
//! use tonic::service::Routes;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let hub = Hub::<String>::new();
//! # let chat = tidegate::EventService::new(
//! #     tidegate::Hub::new(tidegate::HubConfig::new(1)), tidegate::ServiceConfig::default());
//! # let interrupted = async {};
//! let listener = listen("127.0.0.1:0".parse()?, None)?;
//! let server = Server::new(Http2Config::default());
//! hub.serve_until(interrupted, Duration::from_secs(10), |shutdown| {
//!     server.serve(listener, Routes::new(chat), shutdown)
//! })
//! .await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Differences from tonic's server
//! * **Cost.** A connection and its streams are one task, and the bytes of one turn leave with one system call
//!   for each 64 KiB. So a handler that computes for long holds up the streams of its connection: give long
//!   work a task of its own.
//! * **Stalls.** A stream whose client does not read can be reset: one that `typed::Hub::sweep` of the crate `tidegate`
//!   ends is gone after its grace period. On tonic's server it stays as long as its connection.
//! * **Limits.** Every limit has a default, including those that tonic leaves out, and so have timeouts for
//!   the preface and for writing: [`Http2Config`].
//! * **Proxies.** A connection that carries the calls of many users outlives the calls that are refused or given up. The rest
//!   of their bodies is read and thrown away, and the resets that end a flood are counted in time: tonic's server counts
//!   them in the life of a connection.
//! * **Storms.** [`listen`] has a queue for as many connections as the kernel allows, and they are accepted in
//!   batches, so that thousands of clients can come back at once.
//! * **Descriptors.** When the process has no file descriptors left, the server pauses between attempts to
//!   accept. tonic's server spins.
//!
//! # Memory
//! A connection on which nothing happens holds 1 KiB besides its socket, its task and its service, and each call 1 KiB besides
//! what its service keeps. With the limits of [`Http2Config::default`] a peer can make one connection hold:
//! * 5 MiB of requests that its service does not read, a quarter more than
//!   [`connection_window`](Http2Config::connection_window);
//! * 23 MiB of headers, if its service keeps those of 256 calls with 470 fields each, which is as many as
//!   [`max_header_list_size`](Http2Config::max_header_list_size) has room for;
//! * 0.4 MiB of answers that it does not read, and of frames that came in part;
//! * one frame of each response whose body does not ask for its room.
//!
//! # Not included
//! TLS, caps on connections and their age, and authentication are the Tidegate server's. TLS can be put beneath a
//! [`Connection`], which takes any transport. The layers of tonic's server are missing too: a service has to keep
//! `grpc-timeout` itself, and an error of a service resets its stream, where tonic makes a status of it. tonic's routes
//! never fail with one.

mod accept;
mod config;
mod connection;
mod engine;
mod hyper;
mod preface;
mod request_body;
mod server;
mod service;

pub use crate::{
    accept::{Acceptor, listen},
    config::{Http2Config, Http2Engine},
    connection::Connection,
    preface::{Prefaced, read_preface},
    request_body::{RequestBody, RequestBodyError},
    server::Server,
    service::Http2Service,
};
