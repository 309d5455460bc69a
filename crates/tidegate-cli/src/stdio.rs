//! Standard input, output and error, whatever they are: files, terminals, pipes, and pipes that another program has made
//! non-blocking, which this one gets with them.

use std::{
    fmt::Display,
    io::{self, Write},
    sync::OnceLock,
};

use bytes::Bytes;
use tokio::task::spawn_blocking;

pub(crate) use platform::Stdin;

use crate::log_writer::LogWriter;

/// Bytes that are read from standard input at once.
const CHUNK: usize = 64 * 1024;

/// Standard error, without a buffer and without the lock of the standard library, which a thread whose pipe is full would
/// hold. A write waits for room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StandardError;

/// Writes all of `text` to standard output, and waits while it takes nothing.
pub(crate) fn print(text: impl AsRef<[u8]>) -> io::Result<()> {
    platform::write_stdout(text.as_ref()).map_err(in_words)
}

/// Reads the first line of standard input, with its ending. The rest of it may be read, too.
pub(crate) fn read_line(limit: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let chunk = platform::read_stdin()?;
        line.extend_from_slice(&chunk);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end + 1);
        } else if !chunk.is_empty() && line.len() <= limit {
            continue;
        }
        return match line.len() > limit {
            true => Err(io::Error::other(format!(
                "the first line of standard input is longer than {limit} bytes"
            ))),
            false => Ok(line),
        };
    }
}

/// Writes all of `bytes` to standard output on another thread, and returns them.
pub(crate) async fn print_aside(bytes: Vec<u8>) -> (Vec<u8>, io::Result<()>) {
    let write = spawn_blocking(move || {
        let written = print(&bytes);
        (bytes, written)
    });
    let written = write.await;
    written.unwrap_or_else(|error| (Vec::new(), Err(io::Error::other(error))))
}

/// The writer of standard error, once there is one. A process has one standard error, so it is no argument of everything
/// that may have something to report.
static REPORTS: OnceLock<LogWriter> = OnceLock::new();

/// Has reports written by `log` from here on, so that they and the lines of the log come in order. To be called once.
pub(crate) fn report_through(log: &LogWriter) {
    // A second call would be a fault of this program, and changes nothing.
    let _ = REPORTS.set(log.clone());
}

/// Writes a line for the user to standard error, whatever the filter of the log is. Blocks while the reader is slow, but
/// not for one that has stalled: the line is then lost, and counted.
pub(crate) fn say(line: impl Display) {
    match REPORTS.get() {
        Some(log) => log.report(line),
        // Only where the thread of the log could not be started.
        None => drop(writeln!(StandardError, "{line}")),
    }
}

/// Says something in the name of the program.
pub(crate) fn report(message: impl Display) {
    say(format_args!("tidegate: {message}"));
}

/// Reports on another thread. Once it was polled, dropping it does not take the report back.
pub(crate) async fn report_aside(message: String) {
    // It fails only if the report panics, and then there is nothing more to say.
    let _ = spawn_blocking(move || report(message)).await;
}

/// Says where an error is from, unless the reader has gone, which is no failure.
pub(crate) fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => error,
        kind => io::Error::new(kind, format!("cannot write to standard output: {error}")),
    }
}

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        platform::write_some_stderr(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(unix)]
mod platform {
    use std::{
        io,
        os::fd::{BorrowedFd, OwnedFd},
        sync::mpsc as blocking,
        thread,
        time::Duration,
    };

    use rustix::{
        event::{PollFd, PollFlags, poll},
        io::Errno,
        pipe::{PipeFlags, pipe_with},
        stdio::{stderr, stdin, stdout},
    };
    use tokio::{sync::mpsc, time::timeout};

    use super::{Bytes, CHUNK};

    /// Time for the thread of standard input to notice that it is to stop.
    const STOP_TIMEOUT: Duration = Duration::from_secs(1);

    /// Standard input, which takes nothing before it is asked to, and nothing after it was stopped: so a program can
    /// tell exactly what it has taken.
    pub(crate) struct Stdin {
        /// Asks the thread for one chunk.
        demand: blocking::Sender<()>,
        chunks: mpsc::Receiver<io::Result<Bytes>>,
        /// Whether the thread was asked for a chunk that was not taken yet.
        is_asked: bool,
        /// Closed to stop the thread.
        stop: OwnedFd,
    }

    impl Stdin {
        pub(crate) fn open() -> io::Result<Self> {
            let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC)?;
            let (demand, demanded) = blocking::channel();
            let (sender, chunks) = mpsc::channel(1);
            let read = move || {
                while demanded.recv().is_ok() {
                    let Some(chunk) = read_chunk(&stopped) else {
                        return;
                    };
                    if sender.blocking_send(chunk).is_err() {
                        return;
                    }
                }
            };
            thread::Builder::new().name("stdin".into()).spawn(read)?;
            Ok(Self {
                demand,
                chunks,
                is_asked: false,
                stop,
            })
        }

        /// Returns the next bytes, none at the end. Cancel-safe.
        pub(crate) async fn read(&mut self) -> io::Result<Bytes> {
            if !self.is_asked {
                // The thread is gone only after it has said why.
                let _ = self.demand.send(());
                self.is_asked = true;
            }
            let chunk = self.chunks.recv().await;
            self.is_asked = false;
            chunk.unwrap_or_else(|| Ok(Bytes::new()))
        }

        /// Stops reading, and returns what was taken and not returned yet.
        pub(crate) async fn stop(mut self) -> Bytes {
            drop(self.stop);
            drop(self.demand);
            let last = timeout(STOP_TIMEOUT, self.chunks.recv()).await;
            match last {
                Ok(Some(Ok(chunk))) => chunk,
                _ => Bytes::new(),
            }
        }
    }

    /// Returns the next bytes of standard input, none at its end.
    pub(super) fn read_stdin() -> io::Result<Bytes> {
        let (stopped, _never_stops) = pipe_with(PipeFlags::CLOEXEC)?;
        read_chunk(&stopped).unwrap_or_else(|| Ok(Bytes::new()))
    }

    /// Waits for bytes and returns them, or an end. `None` when it is to stop.
    fn read_chunk(stopped: &OwnedFd) -> Option<io::Result<Bytes>> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let mut ready = [
                PollFd::new(stopped, PollFlags::IN),
                PollFd::from_borrowed_fd(stdin(), PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Some(Err(error.into())),
            }
            // This first: bytes that are taken after the stop would be counted by nobody.
            if !ready[0].revents().is_empty() {
                return None;
            }
            if ready[1].revents().is_empty() {
                continue;
            }
            match rustix::io::read(stdin(), &mut chunk) {
                Ok(count) => {
                    chunk.truncate(count);
                    return Some(Ok(chunk.into()));
                }
                // Another reader of the same pipe was faster.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Some(Err(error.into())),
            }
        }
    }

    pub(super) fn write_stdout(mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match write_some(stdout(), bytes)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => bytes = &bytes[count..],
            }
        }
        Ok(())
    }

    pub(super) fn write_some_stderr(bytes: &[u8]) -> io::Result<usize> {
        write_some(stderr(), bytes)
    }

    /// Writes a part of `bytes`, and waits until there is room for it.
    fn write_some(to: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(to, bytes) {
                // Somebody who shares the pipe has put it into non-blocking mode.
                Err(Errno::AGAIN) => wait_for_room(to)?,
                Err(Errno::INTR) => {}
                written => return Ok(written?),
            }
        }
    }

    fn wait_for_room(to: BorrowedFd<'_>) -> io::Result<()> {
        let mut room = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
        match poll(&mut room, None) {
            // An error of the descriptor counts as ready: the next write returns it.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(not(unix))]
mod platform {
    use std::io::{self, Read as _, Write as _};

    use tokio::io::AsyncReadExt as _;

    use super::{Bytes, CHUNK};

    /// Standard input.
    pub(crate) struct Stdin(tokio::io::Stdin);

    impl Stdin {
        pub(crate) fn open() -> io::Result<Self> {
            Ok(Self(tokio::io::stdin()))
        }

        /// Returns the next bytes, none at the end. Cancel-safe.
        pub(crate) async fn read(&mut self) -> io::Result<Bytes> {
            let mut chunk = vec![0; CHUNK];
            let count = self.0.read(&mut chunk).await?;
            chunk.truncate(count);
            Ok(chunk.into())
        }

        /// Stops reading.
        pub(crate) async fn stop(self) -> Bytes {
            Bytes::new()
        }
    }

    /// Returns the next bytes of standard input, none at its end.
    pub(super) fn read_stdin() -> io::Result<Bytes> {
        let mut chunk = vec![0; CHUNK];
        let count = io::stdin().lock().read(&mut chunk)?;
        chunk.truncate(count);
        Ok(chunk.into())
    }

    pub(super) fn write_stdout(bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    pub(super) fn write_some_stderr(bytes: &[u8]) -> io::Result<usize> {
        io::stderr().write(bytes)
    }
}
