//! Threads with a runtime of their own, and a timeout for waits.

use std::{thread, time::Duration};

use tokio::{task::LocalSet, time::timeout};

use crate::Error;

/// How long a step, or the next delivery, may take. After that the events that have not arrived are lost.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Starts a thread with a name.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let builder = thread::Builder::new().name(name.into());
    builder
        .spawn(run)
        .map(drop)
        .map_err(Error::system("cannot start a thread"))
}

/// Runs a future, and the tasks that it spawns locally, on a runtime of the calling thread.
pub(crate) fn run_local<O>(future: impl Future<Output = Result<O, Error>>) -> Result<O, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Poll the sockets every 61 tasks, which is tokio's default for this runtime, whatever the default becomes.
        .event_interval(61)
        .build()
        .map_err(Error::system("cannot start a runtime"))?;
    LocalSet::new().block_on(&runtime, future)
}

/// Waits for `future`, for at most [`TIMEOUT`]. `what` names the step in the error.
pub(crate) async fn with_timeout<O>(
    what: &str,
    future: impl Future<Output = Result<O, Error>>,
) -> Result<O, Error> {
    match timeout(TIMEOUT, future).await {
        Ok(done) => done,
        Err(_) => Err(Error::Invalid(format!(
            "{what} took more than {} s; does the server allow so many connections, and so many streams on one?",
            TIMEOUT.as_secs()
        ))),
    }
}
