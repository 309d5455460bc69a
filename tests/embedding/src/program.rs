//! A program that a test runs, and uses as a person would.

use std::process::{ExitStatus, Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::within_patience;

/// A running program. It is killed on drop.
#[derive(Debug)]
pub struct Program {
    /// The URL that it serves, if it is a server.
    pub url: String,
    child: Child,
    typed: Option<ChildStdin>,
    printed: Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// Starts a program.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let printed = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            url: String::new(),
            typed: child.stdin.take(),
            printed,
            child,
        }
    }

    /// Starts one of the examples as a server, on a free port.
    ///
    /// # Panics
    /// If it does not announce its address.
    pub async fn serve(program: &str) -> Self {
        let mut server = Self::start(program, &["serve", "--listen", "127.0.0.1:0"]);
        let line = server.line().await;
        let address = line.strip_prefix("listening on ").unwrap();
        server.url = format!("http://{address}");
        server
    }

    /// Returns the next line that it prints.
    ///
    /// # Panics
    /// If it ends, or prints nothing.
    pub async fn line(&mut self) -> String {
        let line = within_patience(self.printed.next_line()).await.unwrap();
        line.expect("it has ended")
    }

    /// Expects a line.
    ///
    /// # Panics
    /// If it prints another.
    pub async fn prints(&mut self, line: &str) {
        assert_eq!(self.line().await, line);
    }

    /// Types a line.
    ///
    /// # Panics
    /// If it does not read.
    pub async fn types(&mut self, line: &str) {
        let typed = self.typed.as_mut().expect("it can be typed to");
        typed
            .write_all(format!("{line}\n").as_bytes())
            .await
            .unwrap();
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it does not.
    pub async fn ends(&mut self) -> ExitStatus {
        within_patience(self.child.wait()).await.unwrap()
    }

    /// Kills it.
    ///
    /// # Panics
    /// If that fails.
    pub async fn end(mut self) {
        self.child.kill().await.unwrap();
    }
}
