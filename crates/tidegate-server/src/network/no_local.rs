//! The files of sockets, on systems that have none.

use std::{convert::Infallible, io, path::Path};

/// A connection through the file of a socket. None is ever made: it is of a type that every system has.
pub(super) type LocalStream = tokio::net::TcpStream;

const UNSUPPORTED: &str = "the server cannot listen on the file of a socket on this system; listen on an address, such as \
                           127.0.0.1:50051";

/// The listener of a socket's file. There is none.
#[derive(Debug)]
pub(crate) struct LocalListener(Infallible);

impl LocalListener {
    /// # Errors
    /// Always.
    #[expect(clippy::unused_async, reason = "it has the face of the other")]
    pub(super) async fn bind(_: &Path) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, UNSUPPORTED))
    }

    #[expect(clippy::unused_async, reason = "it has the face of the other")]
    pub(super) async fn accept(&mut self) -> LocalStream {
        match self.0 {}
    }
}

/// Refuses every path: no socket can have one.
pub(super) fn check_path(_: &Path) -> Result<(), String> {
    Err(UNSUPPORTED.into())
}
