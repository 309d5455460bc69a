//! A progress line on the terminal.

use std::{
    io::{IsTerminal as _, stderr},
    time::Duration,
};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// The progress line, on standard error. Writes nothing where that is no terminal.
#[derive(Debug)]
pub struct Progress(ProgressBar);

// ===== impl Progress =====

impl Progress {
    /// The time between two updates of the line.
    pub(crate) const INTERVAL: Duration = Duration::from_millis(200);

    /// Returns a line that is visible if standard error is a terminal.
    ///
    /// # Panics
    ///
    /// Never: the template is valid.
    #[must_use]
    pub fn on_terminal() -> Self {
        if !stderr().is_terminal() {
            return Self::hidden();
        }
        let style = ProgressStyle::with_template("{spinner} {prefix}, {elapsed} {msg}");
        Self(ProgressBar::new_spinner().with_style(style.expect("a valid template")))
    }

    /// Returns a line that is never visible.
    #[must_use]
    pub fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Whether the line is visible.
    #[must_use]
    pub fn is_visible(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Shows the name of the phase that begins.
    pub fn phase(&self, name: &str) {
        self.0.set_prefix(name.to_owned());
        self.0.set_message("");
        self.0.tick();
    }

    /// Shows the rate of deliveries and the count of events missed.
    pub(crate) fn rate(&self, delivered: u64, elapsed: Duration, missed: u64) {
        let rate = delivered as f64 / elapsed.as_secs_f64().max(0.001);
        self.0.set_message(format!(
            "{} deliveries/s, {} missed",
            HumanCount(rate as u64),
            HumanCount(missed)
        ));
        self.0.tick();
    }

    /// Shows a count.
    pub(crate) fn count(&self, count: u64, of: &str) {
        self.0.set_message(format!("{} {of}", HumanCount(count)));
        self.0.tick();
    }

    /// Removes the line.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}
