//! The files that a server reads: of other kinds than regular ones, replaced, emptied, and out of reach.
#![cfg(target_os = "linux")]

mod child;

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::fs::symlink},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use child::{Folder, Log, RULES, Serve, program, serve_with_tokens, token_line};
use rustix::{
    fs::inotify,
    process::{Signal, kill_process},
};
use tidegate_client::{Client, Error, SubscribeOptions, Subscription, Update};
use tidegate_server::settings::SETTINGS;

fn told(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A server with files of tokens and rules in `folder`.
fn serve(folder: &Folder) -> (Serve, Log) {
    let mut command = program(serve_with_tokens(folder));
    command.args(["--log", "info", "--drain-timeout", "1s"]);
    Serve::logging(command)
}

async fn subscribe(server: &Serve, token: &str, filter: &str) -> Result<Subscription, Error> {
    let mut client = Client::builder(server.url());
    if !token.is_empty() {
        client = client.token(token);
    }
    let client = client.connect_lazy()?;
    let mut subscription = client.subscribe(SubscribeOptions::new([filter]).no_reconnect());
    let first = subscription.next().await.unwrap()?;
    assert!(matches!(first, Update::Subscribed(_)));
    Ok(subscription)
}

/// Ends the server, which drains for a second at most.
fn ends_at_once(mut server: Serve) {
    let began = Instant::now();
    kill_process(server.pid(), Signal::TERM).unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn each_setting_that_names_a_file_refuses_what_can_be_read_once_or_never_ends() {
    let folder = Folder::new("kinds");
    let config = folder.at("config.toml");
    let pipe = folder.pipe("pipe");
    for (place, problem) in [
        (&*pipe, "is a pipe: it can be read only once"),
        ("/dev/zero", "is a device"),
        ("/dev/stdin", "is a pipe: it can be read only once"),
        ("/", "is a folder"),
    ] {
        let mut text = String::new();
        let mut settings = Vec::new();
        for setting in SETTINGS {
            if !setting.value_name.starts_with("FILE") {
                continue;
            }
            let value = match setting.takes_several() {
                true => format!("[{place:?}]"),
                false => format!("{place:?}"),
            };
            text.push_str(&format!("{} = {value}\n", setting.key));
            settings.push(setting.key);
        }
        assert!(settings.len() >= 10, "{settings:?}");
        fs::write(&config, text).unwrap();
        let checked = output_with_open_input(program(["check-config", &config]));
        assert_eq!(checked.status.code(), Some(2));
        let told = told(&checked);
        for setting in settings {
            let expected = format!("{setting}: {place}: {problem}");
            assert!(told.contains(&expected), "{expected} is not in:\n{told}");
        }
    }
}

/// The output of the program, whose standard input stays open without anything in it.
fn output_with_open_input(mut command: Command) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(input);
    output
}

#[test]
fn a_server_refuses_tokens_of_a_process_substitution_and_of_a_pipe_that_nobody_writes() {
    let folder = Folder::new("substitution");
    let (tokens, pipe) = (
        folder.write("tokens", token_line("alice")),
        folder.pipe("pipe"),
    );
    for tokens in [format!("<(cat {tokens})"), pipe] {
        let script = format!("exec \"$0\" serve --listen 127.0.0.1:0 --auth-tokens {tokens}");
        let refused = Command::new("bash")
            .args(["-c", &script, env!("CARGO_BIN_EXE_tidegate")])
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(2));
        let told = told(&refused);
        assert!(
            told.contains("is a pipe: it can be read only once"),
            "{told}"
        );
    }
}

#[test]
fn open_files_are_refused_where_a_file_is_read_again() {
    let folder = Folder::new("input");
    let tokens = folder.write("tokens", token_line("alice"));
    let link = folder.at("link");
    symlink("/dev/stdin", &link).unwrap();
    let through = folder.at("through");
    symlink("link", &through).unwrap();
    for path in [
        "/dev/stdin",
        "/dev/fd/0",
        "/proc/self/fd/0",
        "/proc/thread-self/fd/0",
        "/proc/../dev/./stdin",
        &link,
        &through,
    ] {
        let config = folder.write("config.toml", format!("auth.tokens = {path:?}\n"));
        let mut check = program(["check-config", &*config]);
        let mut serve = program(["serve", "--listen", "127.0.0.1:0", "--auth-tokens", path]);
        for command in [&mut check, &mut serve] {
            let input = fs::File::open(&tokens).unwrap();
            let refused = command.stdin(input).output().unwrap();
            assert_eq!(refused.status.code(), Some(2), "{path}");
            let told = told(&refused);
            assert!(
                told.contains(&format!("{path}: is an open file of a process")),
                "{told}"
            );
        }
    }
    // A folder may be named like that, and a link may lead to a file.
    fs::create_dir_all(folder.at("fd")).unwrap();
    fs::copy(&tokens, folder.at("fd/0")).unwrap();
    let good = folder.at("good");
    symlink("fd/0", &good).unwrap();
    let config = folder.write("config.toml", format!("auth.tokens = {good:?}\n"));
    let checked = program(["check-config", &*config]).output().unwrap();
    assert_eq!(checked.status.code(), Some(0), "{}", told(&checked));
}

#[tokio::test]
async fn a_configuration_of_standard_input_holds_and_a_hangup_says_that_it_cannot_be_read_again() {
    let folder = Folder::new("config-input");
    let text = "listen = \"127.0.0.1:0\"\ndrain_timeout = \"1s\"\nlog = \"warn\"\n";
    let config = folder.write("config", text);
    for file in ["-", "/dev/stdin", "/dev/fd/0"] {
        folder.write("config", text);
        let script = format!("exec \"$0\" serve --config {file} < {config}");
        let mut command = Command::new("bash");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_tidegate")]);
        let (server, mut log) = Serve::logging(command);
        log.until("so it cannot be read again on SIGHUP");
        folder.write("config", "log = \"info\"\n");
        kill_process(server.pid(), Signal::HUP).unwrap();
        log.until("is an open file of a process");
        log.until("nothing has changed");
        ends_at_once(server);
    }
}

#[tokio::test]
async fn a_file_that_becomes_a_pipe_revokes_nobody_and_holds_up_no_other_file() {
    let folder = Folder::new("becomes");
    let (server, mut log) = serve(&folder);
    let mut stream = subscribe(&server, "alice", "a").await.unwrap();
    folder.pipe("tokens");
    let told = log.until("its previous contents stay in force");
    assert!(told.contains("is a pipe"), "{told}");
    // A later look at the other file is later than one at the pipe.
    folder.write("rules", RULES.replace("'>'", "'a'"));
    while subscribe(&server, "alice", "b").await.is_ok() {}
    let standing = tokio::time::timeout(Duration::from_millis(1), stream.next()).await;
    assert!(standing.is_err(), "the stream ended: {standing:?}");
    kill_process(server.pid(), Signal::HUP).unwrap();
    let told = log.until("its previous contents stay in force");
    assert_eq!(
        told.matches("is a pipe").count(),
        1,
        "it is told once, and once for the signal: {told}"
    );
    drop(stream);
    // Credentials that are withdrawn by what replaces the pipe end, as if nothing had been.
    folder.write("tokens", token_line("bob"));
    while subscribe(&server, "alice", "a").await.is_ok() {}
    drop(subscribe(&server, "bob", "a").await.unwrap());
    ends_at_once(server);
}

#[tokio::test]
async fn a_configuration_from_a_pipe_holds_and_a_hangup_says_that_it_cannot_be_read_again() {
    let folder = Folder::new("config-pipe");
    let text =
        "listen = \"127.0.0.1:0\"\ndrain_timeout = \"1s\"\n[quotas.address]\nsubscriptions = 1\n";
    let config = folder.write("config", text);
    let pipe = folder.pipe("pipe");
    for file in [format!("<(cat {config})"), pipe.clone()] {
        let script = format!("exec \"$0\" serve --config {file}");
        let mut command = Command::new("bash");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_tidegate")]);
        let writer = (file == pipe).then(|| {
            let pipe = pipe.clone();
            std::thread::spawn(move || fs::write(pipe, text).unwrap())
        });
        let (server, mut log) = Serve::logging(command);
        log.until("the configuration came from a pipe");
        if let Some(writer) = writer {
            writer.join().unwrap();
        }
        kill_process(server.pid(), Signal::HUP).unwrap();
        let told = log.until("it is kept as it is");
        assert!(!told.contains("ERROR"), "{told}");
        let first = subscribe(&server, "", "a").await.unwrap();
        let refused = subscribe(&server, "", "b").await.unwrap_err();
        assert!(matches!(refused, Error::ResourceExhausted(_)), "{refused}");
        drop(first);
        ends_at_once(server);
    }
}

#[test]
fn a_configuration_that_becomes_a_pipe_holds_up_neither_reload_nor_end() {
    let folder = Folder::new("config-becomes");
    let config = folder.write("config", "listen = \"127.0.0.1:0\"\nlog = \"info\"\n");
    let (server, mut log) = Serve::logging(program(["serve", "--config", &config]));
    folder.pipe("config");
    kill_process(server.pid(), Signal::HUP).unwrap();
    let told = log.until("nothing has changed");
    assert!(told.contains("is a pipe"), "{told}");
    folder.write("config", "listen = \"127.0.0.1:0\"\nlog = \"debug\"\n");
    kill_process(server.pid(), Signal::HUP).unwrap();
    let told = log.until("configuration reloaded");
    assert!(told.contains("log"), "{told}");
    folder.pipe("config");
    kill_process(server.pid(), Signal::HUP).unwrap();
    ends_at_once(server);
}

#[test]
fn files_that_become_empty_are_warned_of() {
    let folder = Folder::new("empty");
    let (server, mut log) = serve(&folder);
    folder.write("tokens", "");
    let told = log.until("the file of tokens has become empty");
    assert!(told.contains("WARN"), "{told}");
    folder.write("rules", "# nothing\n");
    log.until("the file of rules has become empty");
    ends_at_once(server);
}

#[tokio::test]
async fn a_file_that_is_truncated_before_it_is_written_revokes_nobody() {
    let folder = Folder::new("truncated");
    let (server, _log) = serve(&folder);
    let mut stream = subscribe(&server, "alice", "a").await.unwrap();
    let tokens = folder.at("tokens");
    let events = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    fs::write(&tokens, "").unwrap();
    inotify::add_watch(&events, &tokens, inotify::WatchFlags::CLOSE_NOWRITE).unwrap();
    // The server has read the empty file.
    rustix::io::read(&events, &mut [0; 256][..]).unwrap();
    fs::write(&tokens, token_line("alice") + &token_line("bob")).unwrap();
    while subscribe(&server, "bob", "a").await.is_err() {}
    let standing = tokio::time::timeout(Duration::from_millis(1), stream.next()).await;
    assert!(standing.is_err(), "the stream ended: {standing:?}");
}

/// A file system that answers nothing, like one of a network whose server is gone. `None` if this user may not mount.
struct Silent {
    place: String,
    _device: fs::File,
}

impl Silent {
    fn mount(folder: &Folder) -> Option<Self> {
        let place = folder.at("silent");
        fs::create_dir_all(&place).unwrap();
        let device = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .ok()?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount(
            "silent",
            &*place,
            "fuse",
            rustix::mount::MountFlags::empty(),
            &*options,
        )
        .ok()?;
        Some(Self {
            place,
            _device: device,
        })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&*self.place, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_file_system_that_does_not_answer_is_told_and_holds_up_neither_other_files_nor_the_end() {
    let folder = Folder::new("hangs");
    let Some(silent) = Silent::mount(&folder) else {
        child::skipped("this user may not mount a file system");
        return;
    };
    let (server, mut log) = serve(&folder);
    let stream = subscribe(&server, "alice", "a").await.unwrap();
    let tokens = folder.at("tokens");
    fs::remove_file(&tokens).unwrap();
    symlink(format!("{}/tokens", silent.place), &tokens).unwrap();
    let logged = log.until("its previous contents stay in force");
    assert!(logged.contains("could not be read in time"), "{logged}");
    folder.write("rules", RULES.replace("'>'", "'a'"));
    let began = Instant::now();
    while subscribe(&server, "alice", "b").await.is_ok() {}
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(subscribe(&server, "alice", "a").await.unwrap());
    kill_process(server.pid(), Signal::HUP).unwrap();
    log.until("could not be read in time");
    drop(stream);
    ends_at_once(server);
    // Nor does it start with it, or check it, without an end.
    let rules = folder.at("rules");
    let mut command = program(["serve", "--listen", "127.0.0.1:0"]);
    command.args(["--auth-tokens", &tokens, "--auth-rules", &rules]);
    let refused = command.output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = told(&refused);
    assert!(said.contains("could not be read in time"), "{said}");
}

#[test]
fn a_configuration_that_becomes_empty_is_warned_of() {
    let folder = Folder::new("config-empty");
    let config = folder.write("config", "[quotas.address]\nsubscriptions = 1\n");
    let (server, mut log) = Serve::logging(program([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--config",
        &config,
    ]));
    folder.write("config", "");
    kill_process(server.pid(), Signal::HUP).unwrap();
    log.until("the file of the configuration has become empty");
    ends_at_once(server);
}

#[test]
fn an_endless_configuration_is_refused() {
    let script = "exec \"$0\" check-config <(yes)";
    let refused = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_tidegate")])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let told = told(&refused);
    assert!(told.contains("has more than 1 MiB"), "{told}");
}

#[test]
fn a_client_says_that_the_token_of_an_open_file_is_not_renewed() {
    let folder = Folder::new("client-input");
    let token = folder.write("token", "secret\n");
    for (path, is_told) in [("/dev/stdin", true), (&*token, false)] {
        let output = program(["stats", "--server", "127.0.0.1:1", "--token-file", path])
            .stdin(fs::File::open(&token).unwrap())
            .output()
            .unwrap();
        let told = told(&output);
        assert_eq!(
            told.contains("is an open file of a process"),
            is_told,
            "{told}"
        );
    }
}
