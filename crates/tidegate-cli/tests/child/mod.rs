//! `tidegate serve` as a child process, which ends with the test.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate and uses its part"
)]

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use rustix::process::Pid;

pub struct Serve {
    pub child: Child,
    address: String,
}

impl Serve {
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(Self::arguments(arguments));
        Self::spawn(command)
    }

    /// The same, with at most `max` file descriptors.
    pub fn start_with_descriptors(max: u32, arguments: &[&str]) -> Self {
        Self::spawn(Self::command_with_descriptors(max, arguments))
    }

    pub fn command_with_descriptors(max: u32, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("ulimit -n {max}; exec \"$0\" \"$@\""))
            .arg(env!("CARGO_BIN_EXE_tidegate"))
            .args(Self::arguments(arguments));
        command
    }

    fn arguments<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
        [&["serve", "--listen", "127.0.0.1:0"], arguments].concat()
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ");
        let address = address.unwrap_or_else(|| panic!("announced {line:?}"));
        Self {
            address: address.into(),
            child,
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // This fails if the child has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
