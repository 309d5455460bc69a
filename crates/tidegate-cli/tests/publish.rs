//! `tidegate pub` as a pipe uses it: whatever ends it, each line that it took is accounted for.
#![cfg(target_os = "linux")]
#![allow(
    clippy::disallowed_methods,
    reason = "what is waited for is in other processes, and no other task waits on these threads"
)]

mod child;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use child::Serve;
use rustix::process::{Signal, kill_process};
use tidegate_client::{Client, SubscribeOptions, Subscription, Update};

const PATIENCE: Duration = Duration::from_secs(60);
/// The time between two looks at what cannot be awaited.
const LOOK: Duration = Duration::from_millis(10);

/// A running `tidegate pub`, whose lines on standard error can be awaited.
struct Pub {
    child: Child,
    stdin: Option<ChildStdin>,
    errors: mpsc::Receiver<String>,
    /// The lines so far.
    said: Vec<String>,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command
        .arg("pub")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Pub {
    fn start(arguments: &[&str]) -> Self {
        Self::spawn(command(arguments))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, errors) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines() {
                let _ = sender.send(line.unwrap());
            }
        });
        Self {
            stdin: child.stdin.take(),
            child,
            errors,
            said: Vec::new(),
        }
    }

    fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes.as_ref()).unwrap();
    }

    /// Waits for a line on standard error that contains `words`.
    fn wait_for(&mut self, words: &str) -> String {
        loop {
            let line = self.errors.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no {words:?} in {:#?}", self.said));
            self.said.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Closes the input and waits for the end. Returns the exit code, standard output, and standard error.
    fn end(mut self) -> (i32, String, Vec<String>) {
        drop(self.stdin.take());
        self.wait()
    }

    /// Waits for the end, with the input open.
    fn wait(mut self) -> (i32, String, Vec<String>) {
        while let Ok(line) = self.errors.recv_timeout(PATIENCE) {
            self.said.push(line);
        }
        let mut output = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut output).unwrap();
        }
        let code = self.child.wait().unwrap().code().unwrap();
        (code, output, self.said)
    }
}

fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = command(arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // Its reader may end early.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

async fn subscribed(server: &Serve) -> Subscription {
    let client = Client::connect_lazy(server.url()).unwrap();
    // Whoever publishes meanwhile may be faster.
    let options = SubscribeOptions::new(["a.>"]).replay_last(100);
    let mut subscription = client.subscribe(options);
    let first = subscription.next().await.unwrap().unwrap();
    assert!(matches!(first, Update::Subscribed(_)));
    subscription
}

async fn next_payload(subscription: &mut Subscription) -> Vec<u8> {
    loop {
        let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
        if let Update::Event(event) = next.expect("nothing comes").unwrap().unwrap() {
            return event.payload.to_vec();
        }
    }
}

/// An address where nobody listens.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn serve_at(address: &str) -> Serve {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["serve", "--listen", address]);
    Serve::spawn(command)
}

// ===== The server goes =====

async fn quiet_publisher_goes_on_after(signal: Signal) {
    let server = Serve::start(&[]);
    let address = server.address().to_owned();
    let mut publisher = Pub::start(&["a.x", "--server", &address]);
    let mut seen = subscribed(&server).await;
    publisher.write("one\n");
    assert_eq!(next_payload(&mut seen).await, b"one");
    kill_process(server.pid(), signal).unwrap();
    publisher.wait_for("trying again");
    drop((server, seen));
    // Not taken while nobody accepts it.
    publisher.write("two\n");
    let server = serve_at(&address);
    let mut seen = subscribed(&server).await;
    assert_eq!(next_payload(&mut seen).await, b"two");
    let (code, output, said) = publisher.end();
    assert_eq!((code, &*output), (0, "2 events accepted\n"), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_publisher_goes_on_after_a_restart() {
    quiet_publisher_goes_on_after(Signal::TERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_publisher_goes_on_after_a_crash() {
    quiet_publisher_goes_on_after(Signal::KILL).await;
}

#[test]
fn publisher_without_a_server_takes_nothing_and_says_so() {
    let address = free_address();
    let mut publisher = Pub::start(&["a.x", "--server", &address]);
    publisher.write("one\n");
    let why = publisher.wait_for("trying again");
    assert!(why.contains(&address), "{why}");
    publisher.signal(Signal::TERM);
    let (code, output, said) = publisher.wait();
    assert_eq!((code, &*output), (130, "0 events accepted\n"));
    let last = said.last().unwrap();
    assert!(last.contains("0 lines were read"), "{said:#?}");
}

#[test]
fn publisher_that_does_not_reconnect_ends_before_it_takes_a_line() {
    let address = free_address();
    let publisher = Pub::start(&["a.x", "--no-reconnect", "--server", &address]);
    let (code, output, said) = publisher.wait();
    assert_eq!((code, &*output), (3, "0 events accepted\n"));
    assert!(said[0].contains(&address), "{said:#?}");
    assert!(said[0].contains("0 lines were read"), "{said:#?}");

    let server = Serve::start(&[]);
    let publisher = Pub::start(&["a.x", "--no-reconnect", "--server", server.address()]);
    // It is connected when the server sees it; a crash before is as good.
    drop(server);
    let (code, output, said) = publisher.wait();
    assert_eq!((code, &*output), (3, "0 events accepted\n"), "{said:#?}");
}

#[test]
fn wrong_token_ends_a_quiet_publisher_with_4() {
    let folder = std::env::temp_dir().join(format!("tidegate-pub-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let tokens = folder.join("tokens");
    let digest = "0".repeat(64);
    std::fs::write(&tokens, format!("alice sha256:{digest}\n")).unwrap();
    let server = Serve::start(&["--auth-tokens", tokens.to_str().unwrap()]);
    let arguments = ["a.x", "--token", "wrong", "--server", server.address()];
    let mut publisher = Pub::spawn(command(&arguments));
    publisher.write("one\n");
    let (code, output, said) = publisher.wait();
    assert_eq!((code, &*output), (4, "0 events accepted\n"), "{said:#?}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// Starts a publisher with these flags that has sent two lines to a server which does not answer any more.
async fn unanswered(flags: &[&str]) -> (Serve, Pub) {
    let server = Serve::start(&[]);
    let mut seen = subscribed(&server).await;
    let address = server.address().to_owned();
    let mut arguments = vec!["a.x", "--server", &address];
    arguments.extend(flags);
    let mut publisher = Pub::start(&arguments);
    publisher.write("one\n");
    assert_eq!(next_payload(&mut seen).await, b"one");
    kill_process(server.pid(), Signal::STOP).unwrap();
    let before = unread(&server);
    publisher.write("two\nthree\n");
    while fionread(&publisher) > 0 {
        thread::sleep(LOOK);
    }
    wait_until_sent(&server, before);
    (server, publisher)
}

/// Bytes that a server which is stopped was sent and has not read, once they stay as many.
fn unread(server: &Serve) -> u64 {
    let address: SocketAddrV4 = server.address().parse().unwrap();
    let ip = u32::from_ne_bytes(address.ip().octets());
    let address = format!("{ip:08X}:{:04X}", address.port());
    let unread = || -> u64 {
        let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
        let connections = sockets.lines().filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            // Of a connection, which the listener is not.
            let is_its_own = fields[1] == address && fields[3] == "01";
            let (_, received) = is_its_own.then(|| fields[4].split_once(':').unwrap())?;
            Some(u64::from_str_radix(received, 16).unwrap())
        });
        connections.sum()
    };
    let mut last = unread();
    loop {
        thread::sleep(LOOK);
        let now = unread();
        if now == last {
            return now;
        }
        last = now;
    }
}

/// Waits until a server which is stopped was sent more than `before`.
fn wait_until_sent(server: &Serve, before: u64) {
    let began = Instant::now();
    while unread(server) <= before {
        assert!(began.elapsed() < PATIENCE, "nothing was sent");
    }
}

#[track_caller]
fn assert_two_are_unknown(ended: &(i32, String, Vec<String>), code: i32) {
    let (found, output, said) = ended;
    assert_eq!(
        (*found, &**output),
        (code, "1 event accepted\n"),
        "{said:#?}"
    );
    let last = said.last().unwrap();
    assert!(
        last.contains("3 lines were read, 1 accepted, 2 sent and not answered"),
        "{said:#?}"
    );
}

/// The server stops to answer, but its connections stay: what is sent then is unknown.
#[tokio::test(flavor = "multi_thread")]
async fn lines_that_were_sent_and_not_answered_are_unknown_and_the_rest_is_not_read() {
    let (server, publisher) = unanswered(&[]).await;
    kill_process(server.pid(), Signal::KILL).unwrap();
    assert_two_are_unknown(&publisher.wait(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_unknown_if_the_connection_breaks_after_a_signal() {
    for signal in [Signal::TERM, Signal::HUP] {
        let (server, publisher) = unanswered(&[]).await;
        publisher.signal(signal);
        // The grace of 5 s has begun by then.
        thread::sleep(Duration::from_millis(300));
        kill_process(server.pid(), Signal::KILL).unwrap();
        assert_two_are_unknown(&publisher.wait(), 130);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_would_be_sent_again_are_unknown_at_a_signal() {
    let (server, mut publisher) = unanswered(&["--resend"]).await;
    kill_process(server.pid(), Signal::KILL).unwrap();
    publisher.wait_for("trying again");
    publisher.signal(Signal::TERM);
    assert_two_are_unknown(&publisher.wait(), 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_unknown_if_the_connection_breaks_after_the_input() {
    let server = Serve::start(&[]);
    let mut seen = subscribed(&server).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut input = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut stdin, _) = listener.accept().unwrap();
    let mut command = command(&["a.x", "--server", server.address()]);
    command.stdin(OwnedFd::from(stdin.try_clone().unwrap()));
    let publisher = Pub::spawn(command);
    input.write_all(b"one\n").unwrap();
    assert_eq!(next_payload(&mut seen).await, b"one");
    kill_process(server.pid(), Signal::STOP).unwrap();
    let before = unread(&server);
    input.write_all(b"two\nthree\n").unwrap();
    while rustix::io::ioctl_fionread(&stdin).unwrap() > 0 {
        thread::sleep(LOOK);
    }
    wait_until_sent(&server, before);
    // A socket that is closed with bytes in it resets the connection, so the next read of the input fails.
    stdin.write_all(b"unread").unwrap();
    drop(input);
    thread::sleep(Duration::from_millis(300));
    kill_process(server.pid(), Signal::KILL).unwrap();
    let ended = publisher.wait();
    assert_two_are_unknown(&ended, 1);
    assert!(
        ended
            .2
            .last()
            .unwrap()
            .contains("cannot read standard input"),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_waited_for_at_a_signal_after_the_end_of_the_input() {
    let (server, mut publisher) = unanswered(&[]).await;
    drop(publisher.stdin.take());
    thread::sleep(Duration::from_millis(300));
    publisher.signal(Signal::TERM);
    thread::sleep(Duration::from_millis(300));
    kill_process(server.pid(), Signal::CONT).unwrap();
    let (code, output, said) = publisher.wait();
    assert_eq!((code, &*output), (0, "3 events accepted\n"), "{said:#?}");
}

#[test]
fn signal_ends_a_publisher_whose_output_nobody_reads() {
    let server = Serve::start(&[]);
    let (mut reader, writer) = child::full_pipe();
    let mut command = command(&["a.x", "--server", server.address()]);
    command.stdout(writer);
    let mut publisher = Pub::spawn(command);
    publisher.write("one\n");
    drop(publisher.stdin.take());
    // It has sent the line and waits for its reader by then; a signal before is a test of less.
    thread::sleep(Duration::from_secs(2));
    publisher.signal(Signal::TERM);
    let (code, _, said) = publisher.wait();
    assert_eq!(code, 130, "{said:#?}");
    assert!(said.last().unwrap().contains("1 accepted"), "{said:#?}");
    let mut first = [0];
    reader.read_exact(&mut first).unwrap();
}

#[test]
fn topic_that_the_server_refuses_is_no_line_to_leave_out() {
    let server = Serve::start(&[]);
    let arguments = ["a..x", "--skip-invalid", "--server", server.address()];
    let mut publisher = Pub::start(&arguments);
    publisher.write("one\n");
    let (code, output, said) = publisher.wait();
    assert_eq!((code, &*output), (5, "0 events accepted\n"), "{said:#?}");
}

/// Bytes that the publisher has not read yet.
fn fionread(publisher: &Pub) -> u64 {
    rustix::io::ioctl_fionread(publisher.stdin.as_ref().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_in_the_middle_of_a_pipe_loses_no_line_and_doubles_none() {
    let server = Serve::start(&[]);
    let address = server.address().to_owned();
    let publisher = Pub::start(&["a.x", "--server", &address]);
    let mut stdin = publisher.stdin.as_ref().unwrap().try_clone_to_file();
    let lines: u64 = 200_000;
    let writer = thread::spawn(move || {
        for number in 0..lines {
            writeln!(stdin, "{number}").unwrap();
        }
    });
    let mut server = server;
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(150));
        kill_process(server.pid(), Signal::TERM).unwrap();
        server.child.wait().unwrap();
        server = serve_at(&address);
    }
    writer.join().unwrap();
    let (code, output, said) = publisher.end();
    assert_eq!(
        (code, output),
        (0, format!("{lines} events accepted\n")),
        "{said:#?}"
    );
    let breaks = said.iter().filter(|line| line.contains("trying again"));
    assert!(breaks.count() > 0, "it was not in the middle");
}

trait CloneToFile {
    fn try_clone_to_file(&self) -> std::fs::File;
}

impl CloneToFile for ChildStdin {
    fn try_clone_to_file(&self) -> std::fs::File {
        use std::os::fd::AsFd as _;
        self.as_fd().try_clone_to_owned().unwrap().into()
    }
}

// ===== It is interrupted, or cannot say what it did =====

#[tokio::test(flavor = "multi_thread")]
async fn interrupt_says_what_was_accepted() {
    for signal in [Signal::INT, Signal::TERM] {
        let server = Serve::start(&[]);
        let mut seen = subscribed(&server).await;
        let mut publisher = Pub::start(&["a.x", "--server", server.address()]);
        publisher.write("one\ntwo\nthr");
        assert_eq!(next_payload(&mut seen).await, b"one");
        assert_eq!(next_payload(&mut seen).await, b"two");
        publisher.signal(signal);
        let (code, output, said) = publisher.wait();
        assert_eq!((code, &*output), (130, "2 events accepted\n"), "{said:#?}");
        // The line whose end had not come is not published, and counted.
        let last = said.last().unwrap();
        assert!(
            last.contains("3 lines were read, 2 accepted, 1 not published"),
            "{said:#?}"
        );
    }
}

#[test]
fn count_is_told_on_standard_error_if_nobody_reads_the_output() {
    let server = Serve::start(&[]);
    let mut publisher = Pub::start(&["a.x", "--server", server.address()]);
    drop(publisher.child.stdout.take());
    publisher.write("one\n");
    let (code, _, said) = publisher.end();
    assert_eq!(code, 0, "{said:#?}");
    assert_eq!(said, ["tidegate: 1 event accepted"]);
}

#[test]
fn count_is_told_on_standard_error_if_the_output_is_full() {
    let server = Serve::start(&[]);
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = command(&["a.x", "--server", server.address()]);
    command.stdout(full);
    let mut publisher = Pub::spawn(command);
    publisher.write("one\ntwo\n");
    let (code, _, said) = publisher.end();
    assert_eq!(code, 1, "{said:#?}");
    assert!(said[0].contains("No space left on device"), "{said:#?}");
    assert!(
        said[0].contains("2 lines were read, 2 accepted"),
        "{said:#?}"
    );
}

#[test]
fn no_input_is_no_event() {
    let server = Serve::start(&[]);
    let output = run(&["a.x", "--server", server.address()], b"");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"0 events accepted\n");
}

#[test]
fn directory_as_standard_input_is_named() {
    let server = Serve::start(&[]);
    let folder = std::fs::File::open("/").unwrap();
    let mut command = command(&["a.x", "--server", server.address()]);
    command.stdin(folder);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        stderr(&output).contains("cannot read standard input"),
        "{output:?}"
    );
}
