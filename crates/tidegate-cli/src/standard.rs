//! Standard output and standard error, whatever they are.
//!
//! The handles of the standard library have a lock that is held during a write, so a thread whose pipe is full would
//! keep every other one out, and a write to a pipe in non-blocking mode fails. These wait for room instead, and only the
//! thread that writes does.

use std::io::{self, Write};

use crate::exit::{Exit, Failure};

/// Standard output, without a buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StandardOutput;

/// Standard error, without a buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StandardError;

/// Prints `text` on standard output, and waits as long as its reader takes. A reader that has gone is no fault: see
/// [`Failure::ClosedPipe`].
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let printed = StandardOutput.write_all(text.as_ref());
    printed.map_err(|error| not_printed(&error))
}

/// The end of a command whose output cannot be written.
pub(crate) fn not_printed(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
        _ => {
            let message = format!("cannot write to standard output: {error}");
            Failure::new(Exit::Other, message)
        }
    }
}

#[cfg(unix)]
mod descriptor {
    use std::{io, os::fd::BorrowedFd};

    use rustix::{
        event::{PollFd, PollFlags, poll},
        io::{Errno, write},
    };

    /// Writes a part of `bytes`, and waits until there is room for it.
    pub(super) fn write_some(descriptor: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match write(descriptor, bytes) {
                // Somebody who shares the pipe has put it into non-blocking mode.
                Err(Errno::AGAIN) => wait_for_room(descriptor)?,
                Err(Errno::INTR) => {}
                written => return Ok(written?),
            }
        }
    }

    fn wait_for_room(descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::OUT)];
        match poll(&mut polled, None) {
            // An error of the descriptor counts as ready: the next write returns it.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Write for StandardOutput {
    #[cfg(unix)]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        descriptor::write_some(rustix::stdio::stdout(), bytes)
    }

    #[cfg(not(unix))]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stdout().write(bytes)?;
        io::stdout().flush()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for StandardError {
    #[cfg(unix)]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        descriptor::write_some(rustix::stdio::stderr(), bytes)
    }

    #[cfg(not(unix))]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
