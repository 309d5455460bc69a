//! Standard error and standard output of `tidegate serve`, whatever they are: nothing but lines of the log is lost.
#![cfg(target_os = "linux")]

mod child;

use std::{
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Read as _, Write as _, pipe},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use child::full_pipe;
use rustix::{
    io::ioctl_fionbio,
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;
use tidegate_client::{Client, Error, SubscribeOptions, Update};

const PATIENCE: Duration = Duration::from_secs(30);

/// `tidegate serve` with HTTP and one principal, `alice`.
struct Server {
    child: Child,
    address: String,
    http: String,
    tokens: PathBuf,
    rules: PathBuf,
}

/// A path that no other test has.
fn scratch(name: &str) -> PathBuf {
    let process = std::process::id();
    std::env::temp_dir().join(format!("tidegate-logs-{process}-{name}"))
}

fn token_file(name: &str, token: &str) -> PathBuf {
    let path = scratch(name);
    let line = tidegate_server::token_line("alice", token).unwrap();
    std::fs::write(&path, format!("{line}\n")).unwrap();
    path
}

impl Server {
    /// Starts a server that logs all there is, to `stderr`. `name` is that of the test.
    fn start(name: &str, stderr: impl Into<Stdio>, arguments: &[&str]) -> Self {
        let tokens = token_file(name, "first");
        let rules = scratch(&format!("{name}-rules"));
        std::fs::write(
            &rules,
            "[[rule]]\nprincipals = [\"alice\"]\nadmin = true\nsubscribe = { allow = [\">\"] }\n",
        )
        .unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .args(["--auth-tokens", tokens.to_str().unwrap()])
            .args([
                "--auth-rules",
                rules.to_str().unwrap(),
                "--drain-timeout",
                "2s",
            ])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut announced = |before| {
            let line = lines.next().expect("it has ended").unwrap();
            line.strip_prefix(before).expect(&line).to_owned()
        };
        Self {
            address: announced("listening on "),
            http: announced("HTTP on "),
            child,
            tokens,
            rules,
        }
    }

    fn client(&self) -> Client {
        let client = Client::builder(format!("http://{}", self.address)).token("first");
        client.connect_lazy().unwrap()
    }

    /// The value of a metric.
    fn metric(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let mut lines = response.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.expect(name).parse().unwrap()
    }

    /// Connects until the metric of lost lines has moved, and returns its value.
    fn until_lines_are_lost(&self) -> u64 {
        let began = Instant::now();
        loop {
            let lost = self.metric("tidegate_log_lines_lost_total");
            if lost > 0 {
                return lost;
            }
            assert!(began.elapsed() < PATIENCE, "no line was lost");
            for _ in 0..20 {
                drop(TcpStream::connect(&self.address).unwrap());
            }
        }
    }

    /// Ends it by SIGTERM.
    fn terminate(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.ended()
    }

    fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end");
            thread::yield_now();
        }
    }

    /// Checks everything that lost lines must not change: a subscriber is served, a token that is withdrawn ends its
    /// stream, and the server ends when it is told to.
    async fn serves_on(&mut self) {
        let client = self.client();
        let mut options = SubscribeOptions::new(["t"]);
        options = options.no_reconnect();
        let mut subscription = client.subscribe(options);
        let first = tokio::time::timeout(PATIENCE, subscription.next()).await;
        let first = first.expect("nobody is answered").unwrap().unwrap();
        assert!(matches!(first, Update::Subscribed(_)), "{first:?}");

        let line = tidegate_server::token_line("alice", "second").unwrap();
        std::fs::write(&self.tokens, format!("{line}\n")).unwrap();
        let revoked = async {
            loop {
                if let Err(error) = subscription.next().await.expect("it ended in silence") {
                    return error;
                }
            }
        };
        let revoked = tokio::time::timeout(Duration::from_secs(10), revoked).await;
        let error = revoked.expect("the withdrawn token stays good");
        assert!(matches!(error, Error::Unauthenticated(_)), "{error:?}");
        assert_eq!(self.terminate().code(), Some(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // This fails if the child has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.tokens);
        let _ = std::fs::remove_file(&self.rules);
    }
}

const ALL: [&str; 2] = ["--log", "trace"];

fn full_device() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

#[tokio::test]
async fn full_disk_loses_lines_of_the_log_and_nothing_else() {
    let mut server = Server::start("full", full_device(), &ALL);
    assert!(server.until_lines_are_lost() > 0);
    server.serves_on().await;
}

#[tokio::test]
async fn reader_that_has_gone_loses_lines_of_the_log_and_nothing_else() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let mut server = Server::start("gone", writer, &ALL);
    assert!(server.until_lines_are_lost() > 0);
    server.serves_on().await;
}

#[tokio::test]
async fn reader_that_stalls_loses_lines_of_the_log_and_nothing_else() {
    let (_reader, writer) = full_pipe();
    let mut server = Server::start("stalled", writer, &ALL);
    assert!(server.until_lines_are_lost() > 0);
    let began = Instant::now();
    server.serves_on().await;
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test]
async fn reader_that_stalls_on_a_pipe_that_does_not_block_loses_lines_and_nothing_else() {
    let (_reader, writer) = full_pipe();
    ioctl_fionbio(&writer, true).unwrap();
    let mut server = Server::start("stalled-again", writer, &ALL);
    assert!(server.until_lines_are_lost() > 0);
    server.serves_on().await;
}

#[tokio::test]
async fn closed_standard_error_changes_nothing() {
    let script = "exec \"$0\" serve --listen 127.0.0.1:0 --drain-timeout 1s --log trace 2>&-";
    let mut child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_tidegate")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on ").expect(&line);
    let client = Client::connect_lazy(format!("http://{address}")).unwrap();
    let first = client.subscribe(SubscribeOptions::new(["t"])).next().await;
    assert!(
        matches!(first, Some(Ok(Update::Subscribed(_)))),
        "{first:?}"
    );
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn file_beyond_its_size_limit_loses_lines_of_the_log_and_nothing_else() {
    let file = scratch("limited");
    let output = file.to_str().unwrap();
    // In blocks of 512 bytes.
    let script = "ulimit -f 1; exec \"$0\" serve --listen 127.0.0.1:0 --drain-timeout 1s --log trace 2>\"$1\"";
    let mut child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_tidegate"), output])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on ").expect(&line);
    for _ in 0..50 {
        drop(TcpStream::connect(address).unwrap());
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(std::fs::metadata(&file).unwrap().len() <= 1024);
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn lost_lines_are_told_in_their_place_when_the_reader_goes_on() {
    let (reader, writer) = full_pipe();
    let arguments = ["--log", "trace", "--log-format", "json"];
    let mut server = Server::start("told", writer, &arguments);
    server.until_lines_are_lost();
    let (is_told, told) = channel();
    let reading = thread::spawn(move || {
        let lines = BufReader::new(reader).lines();
        let lines = lines.map(|line| line.expect("it is text"));
        let lines = lines.inspect(|line| {
            if line.contains("log lines were lost") {
                is_told.send(()).unwrap();
            }
        });
        lines.collect::<Vec<_>>()
    });
    told.recv_timeout(PATIENCE).unwrap();
    // From here on somebody reads.
    let lost = server.metric("tidegate_log_lines_lost_total");
    assert_eq!(server.terminate().code(), Some(0));
    let lines = reading.join().unwrap();
    let lines = lines.iter().map(|line| line.trim_start_matches('-'));
    let records: Vec<Value> = lines
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let told: Vec<_> = records
        .iter()
        .filter_map(|record| record["fields"]["lost"].as_str())
        .map(|lost| lost.parse::<u64>().unwrap())
        .collect();
    assert_eq!(told.iter().sum::<u64>(), lost, "{told:?}");
    let last = &records.last().unwrap()["fields"]["message"];
    assert_eq!(last, "ended", "{last}");
}

#[test]
fn slow_reader_of_a_pipe_that_does_not_block_gets_every_line_whole() {
    let (mut reader, writer) = full_pipe();
    ioctl_fionbio(&writer, true).unwrap();
    let arguments = ["--log", "debug", "--log-format", "json"];
    let mut server = Server::start("whole", writer, &arguments);
    for _ in 0..200 {
        drop(TcpStream::connect(&server.address).unwrap());
    }
    let reading = thread::spawn(move || {
        let mut all = Vec::new();
        let mut part = [0; 100];
        while let Ok(length @ 1..) = reader.read(&mut part) {
            all.extend_from_slice(&part[..length]);
            thread::yield_now();
        }
        String::from_utf8(all).unwrap()
    });
    assert_eq!(server.metric("tidegate_log_lines_lost_total"), 0);
    assert_eq!(server.terminate().code(), Some(0));
    let log = reading.join().unwrap();
    let log = log.trim_start_matches('-');
    for line in log.lines() {
        serde_json::from_str::<Value>(line).expect(line);
    }
    assert!(log.lines().last().unwrap().contains("\"ended\""));
}

#[test]
fn failure_is_reported_to_a_pipe_that_is_full_without_waiting_for_its_reader() {
    let (mut reader, writer) = full_pipe();
    let began = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["serve", "--listen", "203.0.113.1:1"])
        .stderr(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(began.elapsed() < PATIENCE);
    // There was no room for it.
    let mut all = String::new();
    reader.read_to_string(&mut all).unwrap();
    assert!(all.bytes().all(|byte| byte == b'-'));
}

#[tokio::test]
async fn server_whose_announcement_nobody_takes_serves_and_says_so() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap().to_string();
    drop(port);
    let closed = || {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let (_stalled, full) = full_pipe();
    for (stdout, is_told) in [
        (Stdio::from(full_device()), true),
        (closed(), true),
        (Stdio::from(full), false),
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["serve", "--listen", &address, "--drain-timeout", "1s"])
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        if is_told {
            let mut line = String::new();
            let stderr = child.stderr.as_mut().unwrap();
            BufReader::new(stderr).read_line(&mut line).unwrap();
            assert!(line.contains("cannot be announced"), "{line}");
            assert!(line.contains(&address), "{line}");
        }
        let client = Client::connect_lazy(format!("http://{address}")).unwrap();
        let subscribed = async {
            let mut subscription = client.subscribe(SubscribeOptions::new(["t"]));
            while !matches!(subscription.next().await, Some(Ok(Update::Subscribed(_)))) {}
        };
        tokio::time::timeout(PATIENCE, subscribed).await.unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn commands_say_that_their_output_cannot_be_written() {
    let server = Server::start("commands", Stdio::null(), &[]);
    let url = format!("http://{}", server.address);
    let token = scratch("commands-token");
    std::fs::write(&token, "first").unwrap();
    let of_server = ["--server", &url, "--token-file", token.to_str().unwrap()];
    let commands: [(&[&str], bool); 7] = [
        (&["serve", "--print-config"], false),
        (&["check-config"], false),
        (&["completions", "bash"], false),
        (&["--help"], false),
        (&["--version"], false),
        (&["stats"], true),
        (&["clients", "--output", "table"], true),
    ];
    for (command, is_of_server) in commands {
        let mut run = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        run.args(command).stdin(Stdio::null());
        if is_of_server {
            run.args(of_server);
        }
        let output = run
            .stdout(full_device())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(
            said.starts_with("tidegate: cannot write to standard output: "),
            "{command:?}: {said}"
        );
        // A reader that has read enough is no fault.
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let output = run.stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{command:?}");
    }
    let _ = std::fs::remove_file(&token);
}

#[test]
fn messages_of_commands_survive_a_standard_error_that_takes_nothing() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    for stderr in [Stdio::from(full_device()), Stdio::from(writer)] {
        let status = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["stats", "--server", "http://127.0.0.1:1"])
            .stderr(stderr)
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(3));
    }
}
