//! The output of a client, as a driver hands it to a player.

use tokio::{sync::mpsc, time::Instant};

/// Items that wait to be judged. A client that prints more waits.
const WAITING: usize = 1024;

/// A part of the output of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// A line of standard output, as docs/conformance.md has it.
    Line(String),
    /// A line of standard error, for people.
    Words(String),
    /// The end of the program, with its exit code unless a signal ended it. Nothing follows.
    Exit(Option<i32>),
}

/// The sending half of an output. Cheap to clone.
#[derive(Clone, Debug)]
pub struct OutputSender(mpsc::Sender<(Instant, Output)>);

/// The output of a client, in order.
#[derive(Debug)]
pub struct OutputReceiver(mpsc::Receiver<(Instant, Output)>);

/// Returns both halves of an output.
pub fn output() -> (OutputSender, OutputReceiver) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (OutputSender(sender), OutputReceiver(receiver))
}

impl OutputSender {
    /// Hands over a part of the output. Returns whether anybody still wants it.
    pub async fn send(&self, output: Output) -> bool {
        self.0.send((Instant::now(), output)).await.is_ok()
    }
}

impl OutputReceiver {
    /// Waits for the next part. None: nothing more will come.
    pub(crate) async fn next(&mut self) -> Option<(Instant, Output)> {
        self.0.recv().await
    }
}
