//! The outcome of a scenario: what was wrong, and everything that happened.

use std::{fmt, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

/// Characters of a line of the transcript; the rest of a longer one is left out.
const LINE: usize = 300;

/// Lines that a transcript keeps. Later ones are counted.
const LINES: usize = 400;

/// The outcome of one scenario.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Verdict {
    /// Name of the scenario.
    pub name: String,
    /// Rule that it proves.
    pub title: String,
    /// Places of docs/protocol.md that have the rule.
    pub rows: Vec<String>,
    /// Calls of `Subscribe` that the client made.
    pub calls: usize,
    /// Breaches of it. None: the client passed.
    pub problems: Vec<Problem>,
    /// Everything that happened, in order.
    pub transcript: Vec<Entry>,
    /// Duration of the run, in seconds.
    pub seconds: f64,
}

/// A breach of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// Number of the stream, from 1, or 0 if it belongs to none.
    pub stream: usize,
    /// Step that the client had to take.
    pub expected: String,
    /// Step that it took, or its lack.
    pub seen: String,
}

/// A line of a transcript.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// Seconds since the beginning.
    pub at: f64,
    /// Side that acted.
    pub from: Side,
    /// Its action.
    pub text: String,
}

/// A side of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Side {
    /// The client, over the network.
    Client,
    /// The scripted server.
    Server,
    /// The client, in its output.
    Output,
}

/// A transcript that is being written.
#[derive(Debug)]
pub(crate) struct Transcript {
    begin: Instant,
    entries: Vec<Entry>,
    /// Lines beyond those that are kept.
    left_out: usize,
}

impl Verdict {
    /// Whether the client did everything right.
    pub fn is_passed(&self) -> bool {
        self.problems.is_empty()
    }
}

impl Transcript {
    pub(crate) fn new() -> Self {
        Self {
            begin: Instant::now(),
            entries: Vec::new(),
            left_out: 0,
        }
    }

    pub(crate) fn add(&mut self, at: Instant, from: Side, text: impl Into<String>) {
        if self.entries.len() >= LINES {
            self.left_out += 1;
            return;
        }
        let mut text = text.into();
        if let Some((end, _)) = text.char_indices().nth(LINE) {
            text.truncate(end);
            text.push_str(" ...");
        }
        let at = at.saturating_duration_since(self.begin);
        self.entries.push(Entry {
            at: rounded(at),
            from,
            text,
        });
    }

    pub(crate) fn elapsed(&self) -> f64 {
        rounded(self.begin.elapsed())
    }

    pub(crate) fn finish(mut self) -> Vec<Entry> {
        // The output is taken later than it is written.
        self.entries
            .sort_by(|one, other| one.at.total_cmp(&other.at));
        if self.left_out > 0 {
            let text = format!("{} more lines", self.left_out);
            let at = self.entries.last().map_or(0.0, |last| last.at);
            self.entries.push(Entry {
                at,
                from: Side::Output,
                text,
            });
        }
        self.entries
    }
}

fn rounded(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, seconds, .. } = self;
        if self.is_passed() {
            return write!(f, "ok    {name:<50} {seconds:>6.2} s");
        }
        write!(f, "FAIL  {name:<50} {seconds:>6.2} s\n      {}", self.title)?;
        for row in &self.rows {
            write!(f, "\n      docs/protocol.md: {row}")?;
        }
        for problem in &self.problems {
            write!(f, "\n      {problem}")?;
        }
        write!(f, "\n      Everything that happened, by seconds:")?;
        for entry in &self.transcript {
            let side = match entry.from {
                Side::Client => "client",
                Side::Server => "server",
                Side::Output => "output",
            };
            write!(f, "\n      {:>8.3}  {side}  {}", entry.at, entry.text)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stream {
            0 => {}
            stream => write!(f, "Stream {stream}: ")?,
        }
        write!(f, "expected {}; seen: {}", self.expected, self.seen)
    }
}
