//! `tidegate serve` as a child process, which ends with the test.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate and uses its part"
)]

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, PipeReader, PipeWriter, Write as _, pipe},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
};

use rustix::{io::ioctl_fionbio, process::Pid};

pub struct Serve {
    pub child: Child,
    address: String,
}

/// The program with these arguments.
pub fn program(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments);
    command
}

/// The program with these arguments and at most `max` file descriptors.
pub fn limited(max: u32, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("ulimit -n {max}; exec \"$0\" \"$@\""))
        .arg(env!("CARGO_BIN_EXE_tidegate"))
        .args(arguments);
    command
}

/// Says that a test, or a part of it, was not run, and why.
#[expect(clippy::print_stderr, reason = "whoever runs the tests reads it there")]
pub fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// A pipe that takes nothing more until somebody reads.
pub fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'-'; 4096]).is_ok() {}
    ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file, in place of another one as `mv` does, and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let (path, new) = (self.at(name), self.at(&format!("{name}.new")));
        fs::write(&new, content).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }

    /// Makes a pipe, in place of what was there, and returns its path.
    pub fn pipe(&self, name: &str) -> String {
        let (path, new) = (self.at(name), self.at(&format!("{name}.new")));
        let made = Command::new("mkfifo").arg(&new).status().unwrap();
        assert!(made.success());
        fs::rename(new, &path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing is lost if it stays.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Rules by which everyone may subscribe to everything.
pub const RULES: &str = "[[rule]]\nprincipals = ['*']\nsubscribe = { allow = ['>'] }\n";

/// The line of a principal whose token is its name.
pub fn token_line(principal: &str) -> String {
    tidegate_server::token_line(principal, principal).unwrap() + "\n"
}

/// The arguments of a server whose files `tokens` and `rules` are in this folder: `alice` may subscribe.
pub fn serve_with_tokens(folder: &Folder) -> [String; 7] {
    [
        "serve".into(),
        "--listen".into(),
        "127.0.0.1:0".into(),
        "--auth-tokens".into(),
        folder.write("tokens", token_line("alice")),
        "--auth-rules".into(),
        folder.write("rules", RULES),
    ]
}

/// The log of a server.
pub struct Log(BufReader<ChildStderr>);

impl Log {
    /// Reads up to the end of the program.
    pub fn rest(&mut self) -> String {
        let mut read = String::new();
        std::io::Read::read_to_string(&mut self.0, &mut read).unwrap();
        read
    }

    /// Reads a line, and returns it without its end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "it has ended");
        line.truncate(line.trim_end_matches('\n').len());
        line
    }

    /// Reads up to a line with this part, and returns what was read.
    pub fn until(&mut self, part: &str) -> String {
        let mut read = String::new();
        loop {
            let before = read.len();
            assert!(
                self.0.read_line(&mut read).unwrap() > 0,
                "{part} is not in:\n{read}"
            );
            if read[before..].contains(part) {
                return read;
            }
        }
    }
}

impl Serve {
    /// A server whose log is read.
    pub fn logging(mut command: Command) -> (Self, Log) {
        command.stderr(Stdio::piped());
        let mut server = Self::spawn(command);
        let log = BufReader::new(server.child.stderr.take().expect("it is piped"));
        (server, Log(log))
    }

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
        limited(max, &Self::arguments(arguments))
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
