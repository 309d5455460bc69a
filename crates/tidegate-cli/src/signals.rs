//! Signals by which a user or a supervisor asks the program to end.

use std::io;

/// SIGINT (Ctrl-C) and SIGTERM. From [`listen`](Self::listen) on, neither ends the process by itself.
///
/// Each signal is reported once, even if it arrived while nobody waited. The kernel merges equal signals that arrive
/// together into one.
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

/// Ctrl-C. From [`listen`](Self::listen) on, it does not end the process by itself.
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

/// Returns at the first signal after its first poll.
pub(crate) async fn interrupted() -> io::Result<()> {
    Signals::listen()?.next().await;
    Ok(())
}

/// Lets a write beyond the greatest file size fail, from here on, where it would end the process by SIGXFSZ.
#[cfg(unix)]
pub(crate) fn outlive_file_limits() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let exceeded = rustix::process::Signal::XFSZ.as_raw();
    // Its handler stays when the value is dropped.
    signal(SignalKind::from_raw(exceeded)).map(drop)
}
