//! The configuration: file, environment and flags; checking it, printing it, and reading it again.
#![cfg(target_os = "linux")]

mod child;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use child::{Folder, Log, Serve, limited};
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
    assert_eq!(missing.status.code(), Some(1), "it may be there later");
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

/// A server with this configuration.
fn serve(file: &File) -> (Serve, Log) {
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--config", file.path()];
    Serve::logging(tidegate(&arguments))
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
    let (server, mut log) = serve(&file);
    let client = Client::connect_lazy(server.url()).unwrap();
    let _first = subscribe(&client).await.unwrap();
    let _second = subscribe(&client).await.unwrap();

    let quota = "[quotas.address]\nsubscriptions = 1\n";
    let limits = "[limits]\nmax_filters = 3\n";
    file.write(&format!("log = \"info\"\n{quota}{limits}"));
    kill_process(server.pid(), Signal::HUP).unwrap();
    let told = log.until("configuration reloaded");
    assert!(told.contains("quotas.address.subscriptions"), "{told}");
    assert!(
        told.contains("limits.max_filters") && told.contains("after a restart"),
        "{told}"
    );
    let refused = subscribe(&client).await.unwrap_err();
    assert!(matches!(refused, Error::ResourceExhausted(_)), "{refused}");

    file.write("log = \"info\"\n[quotas.address]\nsubscriptions = 0\n");
    kill_process(server.pid(), Signal::HUP).unwrap();
    let told = log.until("nothing has changed");
    assert!(told.contains(":3: quotas.address.subscriptions"), "{told}");
    subscribe(&client).await.unwrap_err();

    // The log changes too.
    file.write("log = \"tidegate=debug\"\n");
    kill_process(server.pid(), Signal::HUP).unwrap();
    log.until("configuration reloaded");
    drop(subscribe(&client).await.unwrap());
}

#[test]
fn a_hangup_reads_tokens_again_without_a_configuration_file_too() {
    let tokens = File::new("tokens", "");
    let mut command = tidegate(&["serve", "--listen", "127.0.0.1:0", "--log", "info"]);
    command.args(["--auth-tokens", tokens.path()]);
    let (server, mut log) = Serve::logging(command);
    kill_process(server.pid(), Signal::HUP).unwrap();
    log.until("certificates, credentials and rules reloaded");
    tokens.write("ann");
    kill_process(server.pid(), Signal::HUP).unwrap();
    log.until("its previous contents stay in force");
}

#[test]
fn a_memory_budget_that_is_far_too_small_is_warned_of() {
    let file = File::new("budget", "memory_budget = \"1KiB\"\n");
    let (_server, mut log) = serve(&file);
    let read = log.until("the memory budget is less than one publish may have");
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

#[test]
fn log_filters_with_slips_are_refused_wherever_they_are_written() {
    let refused = |command: &mut Command| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let told = said(&output.stderr).to_owned();
        assert!(told.contains("did you mean `info`?"), "{told}");
        told
    };
    let file = File::new("slip", "log = \"inof\"\n");
    refused(&mut tidegate(&["serve", "--log", "inof"]));
    refused(&mut tidegate(&["--log", "warn,inof", "stats"]));
    refused(&mut tidegate(&["serve", "--config", file.path()]));
    refused(&mut tidegate(&["check-config", file.path()]));
    refused(tidegate(&["serve"]).env("TIDEGATE_LOG", "tidegate=inof"));
    for command in ["serve", "check-config", "stats"] {
        let told = refused(tidegate(&[command]).env("RUST_LOG", "inof"));
        assert!(told.contains("RUST_LOG: "), "{told}");
    }
    // In a server that runs, it changes nothing.
    let file = File::new("slip-later", "log = \"info\"\n");
    let (server, mut log) = serve(&file);
    file.write("log = \"inof\"\n");
    kill_process(server.pid(), Signal::HUP).unwrap();
    let told = log.until("nothing has changed");
    assert!(told.contains("did you mean `info`?"), "{told}");
    file.write("log = \"info\"\n");
    kill_process(server.pid(), Signal::HUP).unwrap();
    log.until("configuration reloaded");
}

#[test]
fn flags_for_yes_and_no_are_written_as_anyone_would() {
    let value = |arguments: &[&str], key: &str| {
        let mut command = tidegate(&["serve", "--print-config"]);
        let printed = command.args(arguments).output().unwrap();
        assert!(printed.status.success(), "{printed:?}");
        let text = said(&printed.stdout).to_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let line = line.unwrap().strip_prefix(" = ").unwrap();
        line.split(" # ")
            .next()
            .unwrap()
            .trim_matches('"')
            .to_owned()
    };
    let settings = SETTINGS.iter();
    let mut count = 0;
    for setting in settings.filter(|setting| setting.value_name == "BOOL") {
        let (flag, key) = (format!("--{}", setting.flag()), setting.key);
        let name = key.rsplit('.').next().unwrap();
        for (arguments, expected) in [
            (vec![&*flag], "true"),
            (vec![&*flag, "false"], "false"),
            (vec![&*flag, "true"], "true"),
            (vec![&*format!("{flag}=false")], "false"),
            (vec![&*flag, "--heartbeat", "5s"], "true"),
        ] {
            assert_eq!(value(&arguments, name), expected, "{arguments:?}");
        }
        let refused = tidegate(&["serve", &*flag, "maybe"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2));
        let told = said(&refused.stderr);
        assert!(told.contains("must be true or false"), "{told}");
        count += 1;
    }
    assert!(count >= 3);
}

#[test]
fn an_address_that_cannot_be_taken_is_told_with_its_cause() {
    let told = |command: &mut Command| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        said(&output.stderr).to_owned()
    };
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    for arguments in [
        &["serve", "--listen", &*taken][..],
        &["serve", "--listen", "127.0.0.1:0", "--http", &*taken],
    ] {
        let told = told(&mut tidegate(arguments));
        assert!(told.contains("the address is in use"), "{told}");
    }
    drop(holder);
    // An address for documentation (RFC 5737), which no machine has.
    for arguments in [
        &["serve", "--listen", "192.0.2.1:0"][..],
        &["serve", "--listen", "127.0.0.1:0", "--http", "192.0.2.1:0"],
    ] {
        let told = told(&mut tidegate(arguments));
        assert!(told.contains("this machine has no such address"), "{told}");
    }
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first.is_ok_and(|first| first.trim() == "1024") {
        // By its descriptor, because the folder of the program may be closed to another user.
        let script = match rustix::process::geteuid().is_root() {
            true => {
                "exec 9<\"$0\"; exec setpriv --reuid=65534 --clear-groups -- /proc/self/fd/9 \"$@\""
            }
            false => "exec \"$0\" \"$@\"",
        };
        let mut shell = Command::new("sh");
        shell.args(["-c", script, env!("CARGO_BIN_EXE_tidegate")]);
        shell.args(["serve", "--listen", "127.0.0.1:80"]);
        let told = told(&mut shell);
        assert!(told.contains("ports below 1024"), "{told}");
    }
}

/// The texts of the warnings that `check-config` prints.
fn warnings(checked: &Output) -> Vec<String> {
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    assert_eq!(said(&checked.stdout), "configuration is valid\n");
    said(&checked.stderr)
        .lines()
        .map(|line| line.strip_prefix("warning: ").unwrap().to_owned())
        .collect()
}

#[test]
fn check_config_warns_of_what_a_server_warns_of_when_it_starts() {
    let tokens = File::new("no-tokens", "# none yet\n");
    let folder = tokens.path();
    for (text, expected) in [
        (
            "memory_budget = \"1KiB\"\nlog = \"info\"\n".to_owned(),
            vec!["memory_budget", "filter_budget"],
        ),
        (
            "memory_budget = \"1000000GiB\"\nlog = \"info\"\n".to_owned(),
            vec!["is above"],
        ),
        (
            format!("log = \"info\"\n[auth]\ntokens = {folder:?}\n"),
            vec!["no rules are configured", "has no token"],
        ),
        (
            format!(
                "listen = \"0.0.0.0:0\"\nlog = \"info\"\n[auth]\ninsecure = true\ntokens = {folder:?}\n"
            ),
            vec!["no rules are configured", "has no token", "without TLS"],
        ),
        (
            "listen = \"0.0.0.0:0\"\nlog = \"info\"\nadmin = true\n".to_owned(),
            vec!["anyone who reaches the server may administer it"],
        ),
    ] {
        let text = match text.contains("listen") {
            true => text,
            false => format!("listen = \"127.0.0.1:0\"\n{text}"),
        };
        let file = File::new("warned", &text);
        let checked = tidegate(&["check-config", file.path()])
            .env("TIDEGATE_FOO", "1")
            .output()
            .unwrap();
        let warned = warnings(&checked);
        assert_eq!(warned.len(), expected.len() + 1, "{warned:?}");
        for part in expected {
            assert!(
                warned.iter().any(|line| line.contains(part)),
                "{part}: {warned:?}"
            );
        }
        let mut command = tidegate(&["serve", "--config", file.path()]);
        command.env("TIDEGATE_FOO", "1");
        let (_server, mut log) = Serve::logging(command);
        let log = log.until("listening");
        for line in &warned {
            // Behind its origin, which is `file:line`, a variable or a key.
            let (_, message) = line.split_once(": ").unwrap();
            assert!(log.contains(message), "{message} is not in:\n{log}");
        }
        let logged = log.lines().filter(|line| line.contains(" WARN "));
        assert_eq!(logged.count(), warned.len(), "{log}");
    }
}

#[test]
fn check_config_refuses_what_a_server_refuses_before_it_binds() {
    let file = File::new("refused", "");
    for (text, problem) in [
        (
            "[connections]\nmax = 100000000\n",
            ":2: the connection limit needs",
        ),
        (
            "listen = \"127.0.0.1:5051\"\nhttp = \"127.0.0.1:5051\"\n",
            ":2: http = 127.0.0.1:5051 is taken by listen",
        ),
        (
            "listen = \"0.0.0.0:5051\"\nhttp = \"127.0.0.1:5051\"\n",
            ":2: http = 127.0.0.1:5051 is taken by listen",
        ),
    ] {
        file.write(text);
        let checked = check(&file);
        assert_eq!(checked.status.code(), Some(2), "{text}");
        let told = said(&checked.stderr);
        assert!(told.contains(problem), "{told}");
        let refused = tidegate(&["serve", "--config", file.path()])
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(2));
        let (_, message) = problem.split_once(": ").unwrap();
        let told = said(&refused.stderr);
        assert!(told.contains(message), "{told}");
    }
}

#[test]
fn check_config_takes_its_file_as_serve_does_and_from_a_pipe() {
    let file = File::new("by-flag", "heartbeet = \"5s\"\n");
    let arguments = ["check-config", "--config", file.path()];
    let checked = tidegate(&arguments).output().unwrap();
    assert_eq!(checked.status.code(), Some(2));
    assert!(said(&checked.stderr).contains(":1: there is no setting `heartbeet`"));
    for name in ["/dev/stdin", "-"] {
        let mut piped = tidegate(&["check-config", name]);
        let mut piped = piped
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = piped.stdin.take().unwrap();
        input.write_all(b"heartbeet = \"5s\"\n").unwrap();
        drop(input);
        let checked = piped.wait_with_output().unwrap();
        assert_eq!(checked.status.code(), Some(2));
        let told = said(&checked.stderr);
        assert!(
            told.contains("/dev/stdin:1: there is no setting `heartbeet`"),
            "{told}"
        );
    }
}

#[test]
fn a_switch_that_is_given_a_value_says_that_it_takes_none() {
    let refused = tidegate(&["serve", "--print-config", "false"]).output();
    let refused = refused.unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let told = said(&refused.stderr);
    assert!(told.contains("--print-config takes no value"), "{told}");
}

#[test]
fn filters_that_turn_the_log_off_without_a_word_are_refused_or_warned_of() {
    for slip in [
        "TIDEGATE=debug",
        "tidegate::nosuch",
        "tidegate_server::nosuch",
        "access=info",
        "warn,tidegate::access_log=info",
        "warn,tidegate_server::access_log=info",
        "tidegate::ACCESS=info",
        "server=debug",
        "[nosuch]",
        "[{x=1}]=info",
    ] {
        let refused = tidegate(&["check-config", "--log", slip]).output().unwrap();
        let told = said(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{slip}: {told}");
        assert!(told.contains(slip), "{told}");
    }
    let warning = "gives no level to the program's own modules";
    let file = File::new("silent", "log = \"h2=debug\"\n");
    for mut command in [
        tidegate(&["check-config", "--log", "h2=debug"]),
        tidegate(&["check-config", file.path()]),
    ] {
        let checked = command.output().unwrap();
        let told = said(&checked.stderr);
        assert_eq!(checked.status.code(), Some(0), "{told}");
        assert_eq!(told.matches(warning).count(), 1, "{told}");
    }
    let (_server, mut log) = serve(&file);
    log.until(warning);
    let meant = tidegate(&["check-config", "--log", "off,h2=debug"]).output();
    assert!(meant.unwrap().stderr.is_empty());
}

#[test]
fn authorities_that_are_none_and_keys_beside_them_are_warned_of() {
    let made = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
    let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let (certificate, both) = (
        File::new("leaf", &pem),
        File::new("both", &(pem.clone() + &key)),
    );
    let key = File::new("leaf-key", &key);
    let text = format!(
        "[tls]\ncertificate = {:?}\nkey = {:?}\nclient_ca = {both:?}\n\
         [auth.jwt]\nissuer = \"i\"\naudience = \"a\"\nkey_sets = [\"https://localhost:1/\"]\nkey_set_ca = {both:?}\n",
        certificate.path(),
        key.path(),
        both = both.path(),
    );
    let file = File::new("authorities", &text);
    let checked = check(&file);
    let told = said(&checked.stderr);
    assert_eq!(checked.status.code(), Some(0), "{told}");
    for line in [":4: ", ":9: "] {
        for fault in [
            "not marked as that of an authority",
            "has a private key beside",
        ] {
            let is_told = told
                .lines()
                .any(|told| told.contains(line) && told.contains(fault));
            assert!(is_told, "{line}{fault} is not in:\n{told}");
        }
    }
}

#[test]
fn a_configuration_from_a_pipe_is_kept_at_a_hangup() {
    let folder = Folder::new("hangup");
    let pipe = folder.pipe("pipe");
    let writer = {
        let pipe = pipe.clone();
        std::thread::spawn(move || fs::write(pipe, "log = \"info\"\n").unwrap())
    };
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--config", &pipe];
    let (server, mut log) = Serve::logging(tidegate(&arguments));
    writer.join().unwrap();
    for _ in 0..2 {
        kill_process(server.pid(), Signal::HUP).unwrap();
        let told = log.until("it is kept as it is");
        assert!(!told.contains("ERROR"), "{told}");
    }
    // A file in its place is read.
    folder.write("pipe", "log = \"info\"\nheartbeat = \"7s\"\n");
    kill_process(server.pid(), Signal::HUP).unwrap();
    log.until("configuration reloaded");
}

/// A command, and the code and the words that it ends with.
type Ending<'a> = (&'a [&'a str], i32, &'a str);

#[test]
fn what_trying_again_does_not_mend_ends_with_2_and_what_it_may_mend_with_1() {
    let tokens = File::new("codes-tokens", "");
    let rules = File::new(
        "codes-rules",
        "[[rule]]\nprincipals = ['*']\npublish = { allow = ['>'] }\n",
    );
    let wrong = File::new("codes-wrong", "nothing of the kind\n");
    let (tokens, rules, wrong) = (tokens.path(), rules.path(), wrong.path());
    let endings: &[Ending<'_>] = &[
        (&["--auth-rules", rules], 2, "rules"),
        (
            &["--listen", "0.0.0.0:0", "--auth-tokens", tokens],
            2,
            "without TLS",
        ),
        (&["--connections-max", "100000000"], 2, "open files"),
        (&["--auth-tokens", wrong], 2, "line 1"),
        (
            &["--auth-tokens", tokens, "--auth-rules", wrong],
            2,
            "codes-wrong",
        ),
        (
            &["--tls-certificate", wrong, "--tls-key", wrong],
            2,
            "codes-wrong",
        ),
        (&["--auth-tokens", "/"], 2, "is a folder"),
        (
            &[
                "--auth-jwt-issuer",
                "i",
                "--auth-jwt-audience",
                "a",
                "--auth-jwt-key-sets",
                "http://keys.example/set",
            ],
            2,
            "http://keys.example/set",
        ),
        (&["--heartbeat", "1ms"], 2, "heartbeat"),
        (&["--auth-tokens", "/nowhere/tokens"], 1, "does it exist"),
        (
            &[
                "--tls-certificate",
                "/nowhere/c.pem",
                "--tls-key",
                "/nowhere/k.pem",
            ],
            1,
            "does it exist",
        ),
        (
            &["--auth-tokens", "/proc/self/mem"],
            1,
            "cannot read /proc/self/mem: Input/output error",
        ),
    ];
    for (arguments, code, words) in endings {
        let mut command = tidegate(&["serve", "--listen", "127.0.0.1:0"]);
        if arguments[0] == "--listen" {
            command = tidegate(&["serve"]);
        }
        let refused = command.args(*arguments).output().unwrap();
        let told = said(&refused.stderr);
        assert_eq!(refused.status.code(), Some(*code), "{arguments:?}: {told}");
        assert!(told.contains(words), "{arguments:?}: {told}");
        // The same by the environment, checked.
        let mut check = tidegate(&["check-config"]);
        for pair in arguments.chunks(2) {
            let variable = pair[0]
                .trim_start_matches('-')
                .replace('-', "_")
                .to_uppercase();
            check.env(format!("TIDEGATE_{variable}"), pair[1]);
        }
        let checked = check.output().unwrap();
        let told = said(&checked.stderr);
        assert_eq!(checked.status.code(), Some(*code), "{arguments:?}: {told}");
    }
    for command in [["serve", "--config"], ["check-config", "--config"]] {
        for (file, code) in [
            ("/nowhere/config.toml", 1),
            (wrong, 2),
            ("/", 2),
            ("/dev/null", 2),
        ] {
            let refused = tidegate(&command).arg(file).output().unwrap();
            assert_eq!(refused.status.code(), Some(code), "{command:?} {file}");
        }
    }
    // One error that stays, beside one that may pass.
    let checked = tidegate(&["check-config"])
        .env("TIDEGATE_AUTH_TOKENS", "/nowhere/tokens")
        .env("TIDEGATE_AUTH_RULES", wrong)
        .output()
        .unwrap();
    assert_eq!(checked.status.code(), Some(2), "{}", said(&checked.stderr));
}

#[test]
fn too_many_open_files_are_told_as_what_they_are() {
    let config = File::new("too-many", "heartbeat = \"5s\"\n");
    let mut seen = 0;
    // How many are open when the file is read depends on the machine.
    for max in 4..24 {
        let arguments = ["check-config", "--config", config.path()];
        let refused = limited(max, &arguments).output().unwrap();
        let told = said(&refused.stderr);
        if told.contains("cannot read ") && told.contains("os error 24") {
            assert_eq!(refused.status.code(), Some(1), "{told}");
            assert!(
                told.contains("too many files are open: raise the limit"),
                "{told}"
            );
            assert!(!told.contains("does it exist"), "{told}");
            seen += 1;
        }
    }
    assert!(seen > 0);
}
