//! Standard input, output and error that are not what a program hopes for: non-blocking, closed, full, slow.
#![cfg(target_os = "linux")]
#![allow(
    clippy::disallowed_methods,
    reason = "what is waited for is in other processes, and no other task waits on these threads"
)]

mod child;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use child::Serve;
use rustix::pipe::{PipeFlags, pipe_with};

/// A pipe whose ends do not block.
fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
}

/// Reads everything from a pipe, slowly.
fn read_slowly(pipe: OwnedFd) -> Vec<u8> {
    let mut pipe = File::from(pipe);
    let mut all = Vec::new();
    let mut piece = [0; 8192];
    loop {
        match pipe.read(&mut piece) {
            Ok(0) => return all,
            Ok(count) => all.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn command(arguments: &[&str], server: &Serve) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).args(["--server", &server.url()]);
    command.stdin(Stdio::null());
    command
}

const LINES: usize = 5_000;

/// Publishes lines of 100 bytes through a pipe.
fn publish(server: &Serve, stdin: impl Into<Stdio>) -> thread::JoinHandle<std::process::Output> {
    let mut command = command(&["pub", "a.b"], server);
    command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    thread::spawn(move || child.wait_with_output().unwrap())
}

#[test]
fn slow_reader_of_a_non_blocking_pipe_is_waited_for() {
    let server = Serve::start(&[]);
    let (from, to) = pipe();
    let count = LINES.to_string();
    // The command goes with this block, and its end of the pipe with it.
    let mut sub = {
        let arguments = ["sub", "a.*", "--count", &count, "--output", "raw"];
        let mut sub = command(&arguments, &server);
        sub.stdout(to).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut errors = std::io::BufReader::new(sub.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut errors, &mut line).unwrap();
    assert!(line.contains("subscribed"), "{line}");

    // Standard input does not block either, and is written in bursts.
    let (input, into) = pipe();
    let publisher = publish(&server, input);
    let writer = thread::spawn(move || {
        let mut into = File::from(into);
        for number in 0..LINES {
            let line = format!("{number:0>99}\n");
            while let Err(error) = into.write_all(line.as_bytes()) {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let all = read_slowly(from);
    writer.join().unwrap();
    let published = publisher.join().unwrap();
    assert!(published.status.success(), "{published:?}");
    assert_eq!(
        published.stdout,
        format!("{LINES} events accepted\n").into_bytes()
    );
    assert!(sub.wait().unwrap().success());
    let expected: String = (0..LINES)
        .map(|number| format!("{number:0>99}\n"))
        .collect();
    assert_eq!(String::from_utf8(all).unwrap(), expected);
}

#[test]
fn full_output_is_a_failure_with_words() {
    let server = Serve::start(&[]);
    for arguments in [
        &["stats"][..],
        &["stats", "--output", "json"],
        &["clients"],
        &["sub", "a", "--output", "json"],
        &["kick", "nobody"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = command(arguments, &server).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?} {output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("cannot write to standard output: No space left"),
            "{said}"
        );
    }
}

#[test]
fn full_and_stalled_standard_error_stops_nothing() {
    let server = Serve::start(&[]);
    let (_reader, stalled) = pipe();
    // As full as it can be.
    while rustix::io::write(&stalled, &[b'x'; 4096]).is_ok() {}
    let mut command = command(&["pub", "a.b", "--skip-invalid"], &server);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stalled);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&vec![b'y'; 1_100_000]).unwrap();
    stdin.write_all(b"\nafter\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"1 event accepted\n");
}

#[test]
fn closed_standard_input_is_empty_and_closed_output_is_none() {
    let server = Serve::start(&[]);
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_tidegate"), &server.url()]);
        command.output().unwrap()
    };
    let output = shell("exec \"$0\" pub a.b --server \"$1\" <&-");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"0 events accepted\n");
    let output = shell("echo x | \"$0\" pub a.b --server \"$1\" >&-");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = shell("echo x | \"$0\" pub a.b --server \"$1\" 2>&-");
    assert_eq!(output.stdout, b"1 event accepted\n", "{output:?}");
}
