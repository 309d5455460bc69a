//! The configuration: file, environment and flags; checking it, printing it, and reading it again.
#![cfg(target_os = "linux")]

mod child;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ChildStderr, Command, Output, Stdio},
};

use child::Serve;
use rustix::process::{Signal, kill_process};
use tidegate_client::{Client, Error, SubscribeOptions, Subscription, Update};
use tidegate_server::settings::SETTINGS;

fn tidegate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments);
    command
}

fn said(output: &[u8]) -> &str {
    std::str::from_utf8(output).unwrap()
}

/// A file that goes with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let file = Self(folder.join(format!("{name}-{}.toml", std::process::id())));
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        fs::write(&self.0, text).unwrap();
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Nothing is lost if it stays.
        let _ = fs::remove_file(&self.0);
    }
}

fn check(file: &File) -> Output {
    tidegate(&["check-config", file.path()]).output().unwrap()
}

#[test]
fn check_config_tells_all_errors_at_once_with_their_lines() {
    let text = "drain_timeout = 5\nheartbeet = \"5s\"\n\n[limits]\nmax_filters = \"many\"\n";
    let file = File::new("wrong", text);
    let checked = check(&file);
    let told = said(&checked.stderr);
    assert_eq!(checked.status.code(), Some(2), "{told}");
    assert!(checked.stdout.is_empty());
    let path = file.path();
    for line in [
        "tidegate: the configuration has 3 errors:".to_owned(),
        format!(
            "{path}:1: drain_timeout = \"5\": write it with a unit, such as 5s, 250ms or 1m30s"
        ),
        format!("{path}:2: there is no setting `heartbeet`; did you mean `heartbeat`?"),
        format!("{path}:5: limits.max_filters = \"many\": must be a whole number"),
    ] {
        assert!(
            told.lines().any(|told| told == line),
            "{line} is not in:\n{told}"
        );
    }
    assert_eq!(told.lines().count(), 4);
    // A server does not start with it either.
    let refused = tidegate(&["serve", "--config", path]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(said(&refused.stderr), told);
}

#[test]
fn check_config_reads_the_files_that_are_named_and_tells_all_that_is_wrong() {
    let pair = || {
        let pair = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        (pair.cert.pem(), pair.signing_key.serialize_pem())
    };
    let (certificate, key) = pair();
    let certificate = File::new("certificate", &certificate);
    let (key, other_key) = (File::new("key", &key), File::new("other-key", &pair().1));
    let garbage = File::new("garbage", "nothing of use\n");
    let text = format!(
        "[tls]\ncertificate = {:?}\nkey = {:?}\nclient_ca = {garbage:?}\nclient_crls = [{garbage:?}]\n\
         [auth]\ntokens = {garbage:?}\nrules = {garbage:?}\n\
         [auth.jwt]\nissuer = \"i\"\naudience = \"a\"\npublic_keys = [{garbage:?}, \"/nowhere/key.pem\"]\n\
         secrets = [{garbage:?}]\nkey_sets = [{garbage:?}, \"http://issuer.example/\"]\nkey_set_ca = {garbage:?}\n\
         [limits]\nmax_filters = -1\n",
        certificate.path(),
        other_key.path(),
        garbage = garbage.path()
    );
    let file = File::new("files", &text);
    let checked = check(&file);
    let told = said(&checked.stderr);
    assert_eq!(checked.status.code(), Some(2), "{told}");
    let garbage = garbage.path();
    let expected = [
        (
            3,
            format!(
                "tls.key: {}: does not match the key in {}: ",
                certificate.path(),
                other_key.path()
            ),
        ),
        (
            4,
            format!("tls.client_ca: {garbage}: contains no certificate in PEM"),
        ),
        (
            5,
            format!("tls.client_crls: {garbage}: contains no certificate revocation list in PEM"),
        ),
        (7, format!("auth.tokens: {garbage}: line 1: write it as")),
        (
            8,
            format!("auth.rules: {garbage}: TOML parse error at line 1"),
        ),
        (12, format!("auth.jwt.public_keys: {garbage}: ")),
        (
            12,
            "auth.jwt.public_keys: cannot read /nowhere/key.pem: does it exist".into(),
        ),
        (13, format!("auth.jwt.secrets: {garbage}: ")),
        (
            14,
            format!("auth.jwt.key_sets: {garbage}: not a JSON Web Key Set"),
        ),
        (
            14,
            "auth.jwt.key_sets: http://issuer.example/: anyone on the path could replace the keys"
                .into(),
        ),
        (
            15,
            format!("auth.jwt.key_set_ca: {garbage}: contains no certificate in PEM"),
        ),
        (17, "limits.max_filters = \"-1\"".into()),
    ];
    for (line, problem) in &expected {
        let beginning = format!("{}:{line}: {problem}", file.path());
        assert!(
            told.lines().any(|told| told.starts_with(&beginning)),
            "{beginning} is not in:\n{told}"
        );
    }
    assert!(
        told.contains(&format!("{} errors", expected.len())),
        "{told}"
    );

    // Each file is good, and they go together, but for what they are to do.
    file.write(&format!(
        "[tls]\ncertificate = {:?}\nkey = {:?}\n",
        certificate.path(),
        key.path()
    ));
    let checked = check(&file);
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked.stderr));
    let rules = File::new("rules", "[[rule]]\nprincipals = ['*']\n");
    file.write(&format!("[auth]\nrules = {:?}\n", rules.path()));
    let told = check(&file).stderr;
    let expected = format!(
        "{}:2: there are rules, but no credentials that they could apply to",
        file.path()
    );
    assert!(said(&told).contains(&expected), "{}", said(&told));
    rules.write(&format!("p sha256:{}\n", "0".repeat(64)));
    file.write(&format!(
        "listen = \"0.0.0.0:50051\"\n[auth]\ntokens = {:?}\n",
        rules.path()
    ));
    let told = check(&file).stderr;
    let expected = format!(
        "{}:1: credentials would be sent to 0.0.0.0:50051 without TLS",
        file.path()
    );
    assert!(said(&told).contains(&expected), "{}", said(&told));
}

#[test]
fn check_config_takes_the_example_and_names_a_file_that_is_not_there() {
    let example = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/tidegate.example.toml"
    );
    let checked = tidegate(&["check-config", example]).output().unwrap();
    assert_eq!(said(&checked.stdout), "configuration is valid\n");
    assert!(checked.status.success());
    let missing = tidegate(&["check-config", "/not/there.toml"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(2));
    let told = said(&missing.stderr);
    assert!(
        told.contains("check-config: cannot read /not/there.toml: ")
            && told.contains("No such file"),
        "{told}"
    );
}

#[test]
fn check_config_looks_at_the_environment_too() {
    let checked = tidegate(&["check-config"])
        .env("TIDEGATE_HISTORY_AGE", "5")
        .output()
        .unwrap();
    assert_eq!(checked.status.code(), Some(2));
    assert!(said(&checked.stderr).contains("TIDEGATE_HISTORY_AGE: history.age = \"5\""));
}

#[test]
fn print_config_shows_what_counts_and_where_it_comes_from() {
    let file = File::new(
        "print",
        "drain_timeout = \"1s\"\nheartbeat = \"2s\"\nlog = \"error\"\n[history]\nevents = 3\n",
    );
    let arguments = [
        "serve",
        "--print-config",
        "--history-events",
        "300",
        "--log",
        "info",
    ];
    let printed = tidegate(&arguments)
        .env("TIDEGATE_CONFIG", file.path())
        .env("TIDEGATE_HEARTBEAT", "20s")
        .env("TIDEGATE_HISTORY_EVENTS", "30")
        .output()
        .unwrap();
    let text = said(&printed.stdout);
    for line in [
        &*format!("drain_timeout = \"1s\" # {}:1", file.path()),
        "heartbeat = \"20s\" # TIDEGATE_HEARTBEAT",
        "events = 300 # --history-events",
        "log = \"info\" # --log",
        "on_stall = \"park\" # default",
    ] {
        assert!(
            text.lines().any(|told| told == line),
            "{line} is not in:\n{text}"
        );
    }
    // It is a configuration that means the same.
    let again = File::new("again", text);
    let reprinted = tidegate(&["serve", "--print-config", "--config", again.path()]);
    let without_origins = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.split(" # ").next().unwrap());
        lines.map(ToOwned::to_owned).collect()
    };
    let output = { reprinted }.output().unwrap();
    assert_eq!(without_origins(said(&output.stdout)), without_origins(text));
}

#[test]
fn every_setting_is_a_flag_and_a_wrong_value_is_told() {
    let help = tidegate(&["serve", "--help"]).output().unwrap();
    let help = said(&help.stdout);
    for setting in SETTINGS {
        let flag = format!("--{}", setting.flag());
        assert!(
            help.split_whitespace()
                .any(|word| word == flag || word.starts_with(&format!("{flag}["))),
            "{flag}"
        );
    }
    let wrong = tidegate(&["serve", "--on-stall", "panic"])
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(said(&wrong.stderr).contains("must be park or close"));
}

#[test]
fn former_names_of_settings_are_refused_and_the_present_ones_are_named() {
    let refused = |command: &mut Command| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        said(&output.stderr).to_owned()
    };
    let told = refused(&mut tidegate(&["serve", "--preface-timeout", "5s"]));
    assert!(
        told.contains("'--preface-timeout'") && told.contains("'--http2-preface-timeout'"),
        "{told}"
    );
    let file = File::new("former", "[http2]\nmax_streams = 5\n");
    let told = refused(&mut tidegate(&["check-config", file.path()]));
    let expected =
        ":2: there is no setting `http2.max_streams`; did you mean `http2.max_concurrent_streams`?";
    assert!(told.lines().any(|line| line.ends_with(expected)), "{told}");
    let expected = "TIDEGATE_MAX_CONNECTIONS: there is no such setting; did you mean TIDEGATE_CONNECTIONS_MAX?";
    for command in ["serve", "check-config"] {
        let told = refused(tidegate(&[command]).env("TIDEGATE_MAX_CONNECTIONS", "5"));
        assert!(told.lines().any(|line| line == expected), "{told}");
    }
}

#[test]
fn variables_of_other_commands_and_other_programs_are_no_settings() {
    let mut checked = tidegate(&["check-config"]);
    for name in [
        "SERVER",
        "TOKEN",
        "TOKEN_FILE",
        "TLS_CA",
        "PORT",
        "SERVICE_HOST",
    ] {
        checked.env(format!("TIDEGATE_{name}"), "x");
    }
    let checked = checked.output().unwrap();
    assert!(checked.status.success(), "{}", said(&checked.stderr));
}

/// A server whose log is read.
fn logging(file: &File) -> (Serve, BufReader<ChildStderr>) {
    let mut command = tidegate(&["serve", "--listen", "127.0.0.1:0", "--config", file.path()]);
    command.stderr(Stdio::piped());
    let mut server = Serve::spawn(command);
    let log = BufReader::new(server.child.stderr.take().unwrap());
    (server, log)
}

/// Reads the log up to a line with this part, and returns what was read.
fn until_logged(log: &mut BufReader<ChildStderr>, part: &str) -> String {
    let mut read = String::new();
    loop {
        let before = read.len();
        assert!(
            log.read_line(&mut read).unwrap() > 0,
            "{part} is not in:\n{read}"
        );
        if read[before..].contains(part) {
            return read;
        }
    }
}

async fn subscribe(client: &Client) -> Result<Subscription, Error> {
    let mut subscription = client.subscribe(SubscribeOptions::new(["t"]).no_reconnect());
    let first = subscription.next().await.unwrap()?;
    assert!(matches!(first, Update::Subscribed(_)));
    Ok(subscription)
}

#[tokio::test]
async fn a_hangup_reads_the_file_again_and_a_bad_file_changes_nothing() {
    let file = File::new("reload", "log = \"info\"\n");
    let (server, mut log) = logging(&file);
    let client = Client::connect_lazy(server.url()).unwrap();
    let _first = subscribe(&client).await.unwrap();
    let _second = subscribe(&client).await.unwrap();

    let quota = "[quotas.address]\nsubscriptions = 1\n";
    let limits = "[limits]\nmax_filters = 3\n";
    file.write(&format!("log = \"info\"\n{quota}{limits}"));
    kill_process(server.pid(), Signal::HUP).unwrap();
    let told = until_logged(&mut log, "configuration reloaded");
    assert!(told.contains("quotas.address.subscriptions"), "{told}");
    assert!(
        told.contains("limits.max_filters") && told.contains("after a restart"),
        "{told}"
    );
    let refused = subscribe(&client).await.unwrap_err();
    assert!(matches!(refused, Error::ResourceExhausted(_)), "{refused}");

    file.write("log = \"info\"\n[quotas.address]\nsubscriptions = 0\n");
    kill_process(server.pid(), Signal::HUP).unwrap();
    let told = until_logged(&mut log, "nothing has changed");
    assert!(told.contains(":3: quotas.address.subscriptions"), "{told}");
    subscribe(&client).await.unwrap_err();

    // The log changes too.
    file.write("log = \"tidegate=debug\"\n");
    kill_process(server.pid(), Signal::HUP).unwrap();
    until_logged(&mut log, "configuration reloaded");
    drop(subscribe(&client).await.unwrap());
}

#[test]
fn a_hangup_reads_tokens_again_without_a_configuration_file_too() {
    let tokens = File::new("tokens", "");
    let mut command = tidegate(&["serve", "--listen", "127.0.0.1:0", "--log", "info"]);
    command.args(["--auth-tokens", tokens.path()]);
    command.stderr(Stdio::piped());
    let mut server = Serve::spawn(command);
    let mut log = BufReader::new(server.child.stderr.take().unwrap());
    kill_process(server.pid(), Signal::HUP).unwrap();
    until_logged(&mut log, "certificates, credentials and rules reloaded");
    tokens.write("ann");
    kill_process(server.pid(), Signal::HUP).unwrap();
    until_logged(&mut log, "its previous contents stay in force");
}

#[test]
fn a_memory_budget_that_is_far_too_small_is_warned_of() {
    let file = File::new("budget", "memory_budget = \"1KiB\"\n");
    let (_server, mut log) = logging(&file);
    let read = until_logged(
        &mut log,
        "the memory budget is less than one publish may have",
    );
    assert!(read.contains("WARN"), "{read}");
}

#[test]
fn without_a_file_a_hangup_ends_it() {
    let mut server = Serve::start(&[]);
    kill_process(server.pid(), Signal::HUP).unwrap();
    let status = server.child.wait().unwrap();
    assert_eq!(status.signal(), Some(Signal::HUP.as_raw()));
}

#[test]
fn the_http_address_is_the_second_line_and_answers() {
    let mut child = tidegate(&["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut lines = [String::new(), String::new()];
    for line in &mut lines {
        stdout.read_line(line).unwrap();
    }
    let address = lines[1].trim_end().strip_prefix("HTTP on ").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = "GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ready\n"),
        "{answer}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
}
