//! Signals by which a user or a supervisor asks the program to end.

use std::io;

/// SIGINT (Ctrl-C), SIGTERM, and SIGHUP where it is asked for. From [`listen`](Self::listen) on, none of them ends the
/// process by itself.
///
/// Each signal is reported once, even if it arrived while nobody waited. The kernel merges equal signals that arrive
/// together into one.
#[cfg(unix)]
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// `None`: SIGHUP is left as it is.
    hangup: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: None,
        })
    }

    /// Listens to SIGHUP too, which a terminal sends when it is closed, unless `nohup` or another parent has it ignored.
    pub(crate) fn listen_with_hangup() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        let mut signals = Self::listen()?;
        if !is_hangup_ignored() {
            signals.hangup = Some(signal(SignalKind::hangup())?);
        }
        Ok(signals)
    }

    /// Returns at the next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hung_up(&mut self.hangup) => {}
        }
    }
}

/// Returns at the next SIGHUP, if it is listened to.
#[cfg(unix)]
async fn hung_up(hangup: &mut Option<tokio::signal::unix::Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether SIGHUP does nothing to this process. Where that cannot be known, it is taken for ignored, since a handler would
/// end what `nohup` has started.
#[cfg(unix)]
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = 1 << (rustix::process::Signal::HUP.as_raw() - 1);
    mask.is_none_or(|mask| mask & bit != 0)
}

/// Ctrl-C. From [`listen`](Self::listen) on, it does not end the process by itself.
#[cfg(windows)]
pub(crate) struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    pub(crate) fn listen_with_hangup() -> io::Result<Self> {
        Self::listen()
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
