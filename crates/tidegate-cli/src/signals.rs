//! The wish of a user or supervisor that the program ends.

use std::io;

/// SIGINT (Ctrl-C) and SIGTERM, from [`listen`](Self::listen) on; neither ends the process by itself any more.
///
/// Each signal is reported once, also one that came while nobody waited. Of several alike that came together, one is
/// reported, as the kernel does.
#[cfg(unix)]
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Returns at the next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Ctrl-C, from [`listen`](Self::listen) on.
#[cfg(windows)]
pub(crate) struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    /// Returns at the next Ctrl-C. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// Returns at the first signal from the first poll on.
pub(crate) async fn interrupted() -> io::Result<()> {
    Signals::listen()?.next().await;
    Ok(())
}
