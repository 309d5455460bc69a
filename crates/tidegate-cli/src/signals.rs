//! The wish of a user or supervisor that the program ends.

/// Returns at the first SIGINT (Ctrl-C) or SIGTERM.
///
/// From the first poll on, neither ends the process by itself.
#[cfg(unix)]
pub(crate) async fn interrupted() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Returns at the first Ctrl-C.
#[cfg(not(unix))]
pub(crate) async fn interrupted() -> std::io::Result<()> {
    tokio::signal::ctrl_c().await
}
