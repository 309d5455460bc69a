//! The writer of logs: a queue of lines, and the thread that writes them to standard error.
//!
//! Standard error may be a file on a full disk, a pipe whose reader has gone, or one whose reader has stalled. So only
//! that thread touches it: everybody else leaves a line in the queue and goes on, and never fails.
//!
//! # Losses
//! The queue holds up to [`MAX_BYTES`]. A line that finds no room is lost, and so is one that cannot be written. They
//! are counted at once ([`LogWriter::lost`]), and as soon as standard error takes lines again, a line in the place of
//! the lost ones says how many they were.
//!
//! # Lines
//! A record is one line: control characters in it are escaped, so that no peer writes a line of its own by a name.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::{self, Write as _},
    io::{self, Write},
    panic::{self, PanicHookInfo},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

/// The most bytes of lines that wait to be written. As many again may be in the hands of the thread that writes.
const MAX_BYTES: usize = 1 << 20;

/// The most bytes of several lines in one write: a pipe takes that many in one piece, also if others write to it.
const WRITE_BYTES: usize = 4 << 10;

/// The capacity in bytes that an empty queue keeps.
const KEPT_BYTES: usize = 64 << 10;

/// The time that the end of the program waits for a reader that takes nothing.
const STALL: Duration = Duration::from_millis(500);

/// The time that the end of the program waits for a slow reader.
const PATIENCE: Duration = Duration::from_secs(5);

/// The time that a thread which panics waits until its message is written: the process may be about to abort.
const PANIC_PATIENCE: Duration = Duration::from_millis(100);

/// Leaves lines to be written. Cheap to clone: all clones are of the same queue.
#[derive(Clone)]
pub(crate) struct LogWriter(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Notified when the queue gets its first line.
    filled: Condvar,
    /// Notified when everything is written.
    written: Condvar,
    /// Bytes that standard error has taken, to tell a slow reader from one that has stalled.
    taken: AtomicU64,
    /// Lines that were lost.
    lost: AtomicU64,
    /// Whether lines are JSON objects.
    is_json: AtomicBool,
    /// Whether a wait for the reader was in vain, with nothing taken since: the next one need not wait.
    is_stalled: AtomicBool,
}

#[derive(Default)]
struct Queue {
    lines: Lines,
    /// Lines that found no room, behind those in the queue. Once there is one, those that follow are turned away too, so
    /// that all are missing in one place.
    turned_away: u64,
    /// Whether lines that were taken from the queue are being written.
    is_writing: bool,
}

/// Lines in a row.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// The end of each line in `bytes`.
    ends: Vec<u32>,
}

/// The thread that writes.
struct Worker<W> {
    shared: Arc<Shared>,
    output: W,
    /// Lost lines that no line has told yet.
    untold: u64,
    /// Whether the last write left a line without its end.
    is_mid_line: bool,
}

/// The message of a panic.
pub(crate) fn message_of<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = info.payload();
    (payload.downcast_ref::<String>().map(String::as_str))
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a value that is no text")
}

/// `text` without control characters.
fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '\n' | '\r' | '\t' => c.escape_default().to_string(),
        c if c.is_control() => c.escape_unicode().to_string(),
        c => c.into(),
    };
    text.chars().map(escape).collect()
}

// ===== impl LogWriter =====

impl LogWriter {
    /// Starts the thread that writes to `output`, which is standard error.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            written: Condvar::new(),
            taken: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            is_json: AtomicBool::new(false),
            is_stalled: AtomicBool::new(false),
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            output,
            untold: 0,
            is_mid_line: false,
        };
        thread::Builder::new()
            .name("log".into())
            .spawn(move || worker.run())?;
        Ok(Self(shared))
    }

    /// Makes the lines that it writes by itself JSON objects, as the others are.
    pub(crate) fn use_json(&self) {
        self.0.is_json.store(true, Relaxed);
    }

    /// The number of lines that were lost so far.
    pub(crate) fn lost(&self) -> u64 {
        self.0.lost.load(Relaxed)
    }

    /// Reports panics as lines of the log, whatever its filter is.
    pub(crate) fn report_panics(&self) {
        let log = self.clone();
        panic::set_hook(Box::new(move |info| {
            log.add(&log.0.panic_line(info));
            log.wait(PANIC_PATIENCE, PANIC_PATIENCE);
        }));
    }

    /// Writes a message for the user, as it is, before the program ends.
    pub(crate) fn report(&self, message: impl fmt::Display) {
        // The message is not to be the one that finds no room.
        self.flush();
        self.0.push(format!("{message}\n").as_bytes());
        self.flush();
    }

    /// Waits until all lines are written, but not for a reader that takes nothing.
    pub(crate) fn flush(&self) {
        self.wait(STALL, PATIENCE);
    }

    /// Adds a line, escaped.
    fn add(&self, line: &[u8]) {
        let is_plain = |byte: &u8| !matches!(byte, b'\n' | b'\r');
        let body = line.strip_suffix(b"\n").unwrap_or(line);
        if body.iter().all(is_plain) {
            return self.0.push(line);
        }
        let mut escaped = Vec::with_capacity(line.len() + 64);
        for byte in body {
            match byte {
                b'\n' => escaped.extend(b"\\n"),
                b'\r' => escaped.extend(b"\\r"),
                byte => escaped.push(*byte),
            }
        }
        escaped.push(b'\n');
        self.0.push(&escaped);
    }

    /// Waits until all lines are written: for `patience` in all, and for `stall` while nothing is taken.
    fn wait(&self, stall: Duration, patience: Duration) {
        let shared = &*self.0;
        let began = Instant::now();
        let mut queue = shared.queue();
        while queue.is_writing || !queue.is_empty() {
            let before = shared.taken.load(Relaxed);
            if shared.is_stalled.load(Relaxed) || began.elapsed() >= patience {
                return;
            }
            let waited = shared.written.wait_timeout(queue, stall);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            if timeout.timed_out() && shared.taken.load(Relaxed) == before {
                shared.is_stalled.store(true, Relaxed);
            }
        }
    }
}

/// One line at a time: the subscriber writes each event with one call.
impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWriter").finish_non_exhaustive()
    }
}

// ===== impl Queue =====

impl Queue {
    /// Whether there is nothing to write, and no loss to tell.
    const fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.turned_away == 0
    }
}

// ===== impl Shared =====

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut queue = self.queue();
        // Otherwise the thread is awake, or somebody has woken it.
        let is_first = queue.is_empty();
        if queue.turned_away > 0 || queue.lines.size() + Lines::size_of(line) > MAX_BYTES {
            queue.turned_away += 1;
            self.lost.fetch_add(1, Relaxed);
        } else {
            queue.lines.push(line);
        }
        drop(queue);
        if is_first {
            self.filled.notify_one();
        }
    }

    /// Waits for lines, and swaps them for `lines`, which is empty. Returns the number of those that found no room
    /// behind them.
    fn take(&self, lines: &mut Lines) -> u64 {
        let mut queue = self.queue();
        queue.is_writing = false;
        loop {
            if !queue.is_empty() {
                std::mem::swap(&mut queue.lines, lines);
                queue.is_writing = true;
                return std::mem::take(&mut queue.turned_away);
            }
            self.written.notify_all();
            let waited = self.filled.wait(queue);
            queue = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A line about the log itself, in the form of the others.
    fn line(&self, message: &str, fields: &[(&str, String)]) -> Vec<u8> {
        let time = format!("{:.6}", Timestamp::now());
        let mut line = if self.is_json.load(Relaxed) {
            let mut all = serde_json::Map::from_iter([("message".to_owned(), json!(message))]);
            all.extend(
                fields
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), json!(value))),
            );
            json!({"timestamp": time, "level": "ERROR", "fields": all, "target": "tidegate"})
                .to_string()
        } else {
            let mut line = format!("{time} ERROR tidegate: {}", escaped(message));
            for (name, value) in fields {
                let _ = write!(line, " {name}={}", escaped(value));
            }
            line
        };
        line.push('\n');
        line.into_bytes()
    }

    fn panic_line(&self, info: &PanicHookInfo<'_>) -> Vec<u8> {
        let message = message_of(info);
        let thread = thread::current();
        let thread = thread.name().unwrap_or("unnamed").to_owned();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let message = format!("thread '{thread}' panicked at {place}: {message}");
        // Of the environment, RUST_BACKTRACE asks for it.
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured)
            .then(|| ("backtrace", backtrace.to_string()));
        self.line(&message, backtrace.as_slice())
    }
}

// ===== impl Lines =====

impl Lines {
    const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes that `line` takes here.
    const fn size_of(line: &[u8]) -> usize {
        line.len() + size_of::<u32>()
    }

    /// The bytes that all lines take.
    fn size(&self) -> usize {
        self.bytes.len() + size_of::<u32>() * self.ends.len()
    }

    fn push(&mut self, line: &[u8]) {
        self.bytes.extend_from_slice(line);
        let end = u32::try_from(self.bytes.len()).expect("a queue is far smaller than 4 GiB");
        self.ends.push(end);
    }

    fn clear(&mut self) {
        // What a burst took is given back.
        if self.bytes.capacity() > KEPT_BYTES {
            *self = Self::default();
        }
        self.bytes.clear();
        self.ends.clear();
    }

    /// The end of the lines from `start` on that go in one write: one line at least.
    fn end_of_write(&self, start: usize) -> usize {
        let next = self.ends.partition_point(|end| *end as usize <= start);
        let fit = self
            .ends
            .partition_point(|end| *end as usize <= start + WRITE_BYTES);
        self.ends[fit.saturating_sub(1).max(next)] as usize
    }

    /// The number of lines that do not end within the first `written` bytes.
    fn count_beyond(&self, written: usize) -> u64 {
        let whole = self.ends.partition_point(|end| *end as usize <= written);
        (self.ends.len() - whole) as u64
    }
}

// ===== impl Worker =====

impl<W: Write> Worker<W> {
    fn run(mut self) {
        let mut lines = Lines::default();
        loop {
            let turned_away = self.shared.take(&mut lines);
            self.write_lines(&lines);
            lines.clear();
            self.untold += turned_away;
            self.tell_losses();
        }
    }

    fn write_lines(&mut self, lines: &Lines) {
        let mut written = 0;
        if self.tell_losses() {
            while written < lines.bytes.len() {
                let end = lines.end_of_write(written);
                let (taken, is_whole) = self.write(&lines.bytes[written..end]);
                written += taken;
                if !is_whole {
                    break;
                }
            }
        }
        let lost = lines.count_beyond(written);
        self.untold += lost;
        self.shared.lost.fetch_add(lost, Relaxed);
    }

    /// Writes the line about lost lines, if there are any. Returns whether lines can follow.
    fn tell_losses(&mut self) -> bool {
        if self.untold == 0 {
            return true;
        }
        let mut line = self.shared.line(
            "log lines were lost here: standard error took no more",
            &[("lost", self.untold.to_string())],
        );
        if self.is_mid_line {
            line.insert(0, b'\n');
        }
        let (_, is_told) = self.write(&line);
        if is_told {
            self.untold = 0;
        }
        is_told
    }

    /// Writes `bytes`, which end a line. Returns how many were taken, and whether all were.
    fn write(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.output.write(&bytes[taken..]) {
                Ok(0) => break,
                Ok(more) => {
                    taken += more;
                    self.is_mid_line = bytes[taken - 1] != b'\n';
                    self.shared.taken.fetch_add(more as u64, Relaxed);
                    self.shared.is_stalled.store(false, Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // There is nobody to report it to but the count.
                Err(_) => break,
            }
        }
        (taken, taken == bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// An output that does with each write what the test says, and shows what it took.
    struct Scripted {
        answers: Receiver<io::Result<usize>>,
        taken: Sender<Vec<u8>>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Without an answer it takes everything.
            let answer = self.answers.recv().unwrap_or(Ok(usize::MAX));
            let taken = answer?.min(bytes.len());
            let _ = self.taken.send(bytes[..taken].to_vec());
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Output {
        /// Dropped, the output takes everything.
        answers: Sender<io::Result<usize>>,
        taken: Receiver<Vec<u8>>,
    }

    fn scripted() -> (LogWriter, Output) {
        let (answers, scripted_answers) = channel();
        let (scripted_taken, taken) = channel();
        let output = Scripted {
            answers: scripted_answers,
            taken: scripted_taken,
        };
        let log = LogWriter::start(output).unwrap();
        (log, Output { answers, taken })
    }

    impl Output {
        fn full() -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        /// Everything that was taken and will be, until the log is written.
        fn rest(self, log: &LogWriter) -> String {
            drop(self.answers);
            log.0.is_stalled.store(false, Relaxed);
            log.flush();
            String::from_utf8(self.taken.try_iter().flatten().collect()).unwrap()
        }
    }

    fn told(count: u64) -> impl Fn(&str) -> bool {
        move |line| line.ends_with(&format!("took no more lost={count}"))
    }

    #[test]
    fn lines_come_in_order_and_whole() {
        let (log, output) = scripted();
        let lines: Vec<_> = (0..1_000).map(|i| format!("line {i}\n")).collect();
        for line in &lines {
            log.add(line.as_bytes());
        }
        assert_eq!(output.rest(&log), lines.concat());
        assert_eq!(log.lost(), 0);
    }

    #[test]
    fn a_line_that_was_cut_is_lost_and_the_next_begins_a_new_one() {
        let (log, output) = scripted();
        output.answers.send(Ok(3)).unwrap();
        output.answers.send(Output::full()).unwrap();
        output.answers.send(Output::full()).unwrap();
        log.add(b"first\n");
        log.flush();
        assert_eq!(log.lost(), 1);
        log.add(b"second\n");
        let text = output.rest(&log);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!([lines[0], lines[2]], ["fir", "second"], "{text}");
        assert!(told(1)(lines[1]), "{text}");
    }

    #[test]
    fn while_nothing_can_be_written_every_line_is_counted() {
        let (log, output) = scripted();
        for round in 1..=5 {
            // At most twice: the lines, or the line about those before them, which is tried again behind them.
            output.answers.send(Output::full()).unwrap();
            output.answers.send(Output::full()).unwrap();
            log.add(b"line\n");
            log.flush();
            assert_eq!(log.lost(), round);
        }
        log.add(b"last\n");
        let text = output.rest(&log);
        let lines: Vec<_> = text.lines().collect();
        assert!(told(5)(lines[0]), "{text}");
        assert_eq!(lines[1..], ["last"]);
    }

    #[test]
    fn a_reader_that_stalls_costs_bounded_memory_and_no_time() {
        let (log, output) = scripted();
        let line = [&[b'x'; 16 << 10][..], b"\n"].concat();
        let added = 1_000;
        for _ in 0..added {
            log.add(&line);
        }
        let held = log.0.queue().lines.size();
        assert!(held <= MAX_BYTES, "{held}");
        let lost = log.lost();
        // One queue, and what the thread may have taken before.
        assert!(
            lost >= added - 2 * (MAX_BYTES / line.len()) as u64,
            "{lost}"
        );
        let text = output.rest(&log);
        // Two such lines, if the thread took what there was in the middle of it.
        let told = text
            .lines()
            .filter_map(|line| line.rsplit_once("lost=")?.1.parse::<u64>().ok());
        assert_eq!(told.sum::<u64>(), lost);
        let written = text.lines().filter(|line| line.starts_with('x'));
        assert_eq!(written.count() as u64, added - lost);
        let kept = log.0.queue().lines.bytes.capacity();
        assert!(kept <= KEPT_BYTES, "{kept} bytes were not given back");
    }

    #[test]
    fn a_line_larger_than_the_queue_is_lost_alone() {
        let (log, output) = scripted();
        log.add(&vec![b'x'; MAX_BYTES + 1]);
        let text = output.rest(&log);
        assert!(told(1)(text.trim_end()), "{}", text.len());
        log.add(b"small\n");
        assert!(log.0.queue().turned_away == 0);
    }

    #[test]
    fn the_end_waits_for_a_slow_reader_and_not_for_one_that_has_stalled() {
        let (log, output) = scripted();
        log.add(b"line\n");
        let began = Instant::now();
        log.flush();
        assert!((STALL..PATIENCE).contains(&began.elapsed()));
        // Not twice, while nothing changes.
        let began = Instant::now();
        log.flush();
        assert!(began.elapsed() < STALL);
        assert_eq!(output.rest(&log), "line\n");
    }

    #[test]
    fn a_record_is_one_line() {
        let (log, output) = scripted();
        log.add("a\nERROR b\r\n".as_bytes());
        assert_eq!(output.rest(&log), "a\\nERROR b\\r\n");
    }

    #[test]
    fn a_panic_is_a_line_of_the_log_in_its_form() {
        let (log, output) = scripted();
        drop(output.answers);
        log.report_panics();
        let panicking = || {
            thread::Builder::new()
                .name("t".into())
                .spawn(|| panic!("a\nb"))
        };
        let _ = panicking().unwrap().join();
        let taken: Vec<u8> = output.taken.try_iter().flatten().collect();
        let line = String::from_utf8(taken).unwrap();
        assert!(
            line.contains("ERROR tidegate: thread 't' panicked at "),
            "{line}"
        );
        assert!(line.contains("log_writer.rs:"), "{line}");
        assert!(line.contains(": a\\nb"), "{line}");
        log.use_json();
        let _ = panicking().unwrap().join();
        let _ = panic::take_hook();
        let taken: Vec<u8> = output.taken.try_iter().flatten().collect();
        let record: serde_json::Value = serde_json::from_slice(&taken).unwrap();
        assert_eq!(record["level"], "ERROR");
        let message = record["fields"]["message"].as_str().unwrap();
        assert!(message.ends_with(": a\nb"), "{message}");
    }
}
