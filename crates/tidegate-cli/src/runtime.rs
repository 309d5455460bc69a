//! The threads of the program.

use std::{
    io::{self, Write as _},
    panic,
    sync::mpsc,
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};

use crate::{
    exit::{self, Exit, Failure},
    log_writer::{LogWriter, message_of},
    memory,
    stdio::StandardError,
};

/// The time that a thread for blocking work stays when there is none: as good as always.
const KEEP_ALIVE: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The advice for a system that gives no more threads.
const ADVICE: &str = "raise the limit on processes and threads: `ulimit -u`, TasksMax= of the unit, or the pids limit \
                      of the container";

/// Starts the runtime, with one thread for blocking work.
///
/// # Errors
/// When the runtime cannot be made. Where the system has no thread left, this says so and ends the program.
pub(crate) fn start(log: &LogWriter) -> Result<Runtime, Failure> {
    let own = log.clone();
    // The runtime panics when it gets no thread, and then waits for those that it has, which never end. A panic is seen
    // here before it does. None of its threads has any work yet that could panic.
    panic::set_hook(Box::new(move |info| {
        own.report(format_args!("tidegate: {}", no_thread(&message_of(info))));
        exit::leave(Exit::Other as u8);
    }));
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(KEEP_ALIVE)
        .on_thread_park(memory::on_park)
        .build();
    if let Ok(runtime) = &runtime {
        // Blocking work that finds no thread waits for one, but panics if there is none at all.
        let (started, is_started) = mpsc::channel();
        runtime.spawn_blocking(move || started.send(()));
        // It fails only if the thread is gone, and then later work says so.
        let _ = is_started.recv();
    }
    log.report_panics();
    runtime.map_err(|error| {
        let message = format!(
            "cannot start the runtime of the program: {error}; is the limit on open files (`ulimit -n`) too low?"
        );
        Failure::new(Exit::Other, message)
    })
}

/// Says, without a thread, that the one of the log could not be started.
pub(crate) fn say_that_none_starts(error: &io::Error) {
    // There is nowhere else to say it.
    let _ = writeln!(StandardError, "tidegate: {}", no_thread(error));
}

fn no_thread(error: &dyn std::fmt::Display) -> String {
    format!("cannot start the threads of the program: {error}; {ADVICE}")
}
