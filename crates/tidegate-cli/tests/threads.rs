//! `tidegate` where the system gives it few threads, or no more.
#![cfg(target_os = "linux")]

mod child;

use std::{
    fs,
    io::{self, BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use child::{Folder, Serve, serve_with_tokens, skipped, token_line};
use rustix::process::getuid;
use tidegate_client::{Client, Error, SubscribeOptions, Update};

/// The program as a user without other processes, who may have this many threads.
fn program_of_few(threads: &str, user: u32, arguments: &[String]) -> Command {
    let mut command = as_user(user, &[&format!("--nproc={threads}")]);
    command
        .arg(env!("CARGO_BIN_EXE_tidegate"))
        .args(arguments)
        .env_remove("RUST_BACKTRACE");
    command
}

/// `prlimit` as a user without other processes.
fn as_user(user: u32, arguments: &[&str]) -> Command {
    let id = (1_000_000_000 + std::process::id() * 4 + user).to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "prlimit"])
        .args(arguments);
    command
}

/// Lets a server of the second user have this many threads. Its own user does so, as root may not in a container.
fn limit(server: &Serve, threads: u32) {
    let (id, limit) = (server.id().to_string(), format!("--nproc={threads}:"));
    let set = as_user(1, &["--pid", &id, &limit]).status().unwrap();
    assert!(set.success());
}

fn cannot_run() -> bool {
    let cannot = !getuid().is_root();
    if cannot {
        skipped("only root has processes of other users");
    }
    cannot
}

/// Everything that the program says, and its exit code; nothing if it serves.
fn outcome(mut command: Command) -> Option<(String, Option<i32>)> {
    let (reader, writer) = io::pipe().unwrap();
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().unwrap())
        .stderr(writer);
    let mut child = command.spawn().unwrap();
    // It has the writing ends, and the reader would wait for itself.
    drop(command);
    let mut told = String::new();
    for line in BufReader::new(reader).lines() {
        let line = line.unwrap();
        if line.starts_with("listening on") || line.contains("serves all the same") {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        told.push_str(&(line + "\n"));
    }
    Some((told, child.wait().unwrap().code()))
}

#[test]
fn where_no_thread_can_be_started_the_program_says_so_and_ends() {
    if cannot_run() {
        return;
    }
    let folder = Folder::new("threads");
    let serve = serve_with_tokens(&folder);
    let processors = std::thread::available_parallelism().unwrap().get();
    for arguments in [
        &serve[..],
        &["check-config".into()],
        &["completions".into(), "bash".into()],
    ] {
        let mut refused = 0;
        for threads in 1..processors + 8 {
            let command = program_of_few(&threads.to_string(), 0, arguments);
            let Some((told, code)) = outcome(command) else {
                continue;
            };
            assert!(!told.contains("panicked"), "{threads}: {told}");
            if code == Some(0) {
                continue;
            }
            refused += 1;
            assert!(
                told.contains("thread") && told.contains("raise the limit on processes"),
                "{threads}: {told}"
            );
            // Threads may be had later, so a supervisor is to try again.
            assert_eq!(code, Some(1), "{threads}: {told}");
        }
        assert!(refused >= 3, "{arguments:?}: {refused}");
    }
}

#[tokio::test]
async fn a_server_that_gets_no_more_threads_keeps_what_it_has_and_says_so() {
    if cannot_run() {
        return;
    }
    let folder = Folder::new("no-more-threads");
    let mut command = program_of_few("1000", 1, &serve_with_tokens(&folder));
    command.args(["--log", "info"]);
    for name in ["tokens", "rules"] {
        fs::set_permissions(folder.at(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let (mut server, mut log) = Serve::logging(command);
    log.until("listening");
    limit(&server, 1);
    let told = log.until("no thread could be started") + &log.until("stay in force");
    assert!(told.contains("raise the limit on processes"), "{told}");
    subscribe(&server, "alice").await.unwrap();
    limit(&server, 1_000);
    // What changes from here on is taken.
    folder.write("tokens", token_line("bob"));
    let began = Instant::now();
    while let Err(error) = subscribe(&server, "bob").await {
        // Who tries too often with a token that is not known has to wait.
        assert!(
            matches!(
                error,
                Error::Unauthenticated(_) | Error::ResourceExhausted(_)
            ),
            "{error}"
        );
        assert!(began.elapsed() < Duration::from_secs(30), "{error}");
    }
    server.child.kill().unwrap();
    let told = told + &log.rest();
    assert!(!told.contains("panic"), "{told}");
}

async fn subscribe(server: &Serve, token: &str) -> Result<(), Error> {
    let client = Client::builder(server.url()).token(token).connect_lazy()?;
    let mut subscription = client.subscribe(SubscribeOptions::new(["a"]).no_reconnect());
    let first = subscription.next().await.unwrap()?;
    assert!(matches!(first, Update::Subscribed(_)));
    Ok(())
}
