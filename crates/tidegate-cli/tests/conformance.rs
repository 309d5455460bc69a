//! `tidegate conformance`, with clients that are no clients.
#![cfg(unix)]
#![allow(
    clippy::disallowed_methods,
    reason = "what is waited for is in other processes, and no other task waits on these threads"
)]

mod child;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use rustix::io::ioctl_fionread;
use serde_json::Value;

fn conformance(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .arg("conformance")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

fn json_lines(output: &Output) -> Vec<Value> {
    let lines = stdout(output).lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
    folder
}

#[test]
fn list_has_every_scenario_with_its_rule() {
    let output = conformance(&["--list", "--output", "json"]);
    assert!(output.status.success());
    let listed = json_lines(&output);
    assert!(listed.len() > 100);
    for line in listed {
        assert_eq!(line["type"], "listed");
        assert!(!line["title"].as_str().unwrap().is_empty(), "{line}");
        assert!(!line["rows"].as_array().unwrap().is_empty(), "{line}");
    }
    let text = conformance(&["--list", "--only", "position-gap"]);
    let names: Vec<_> = stdout(&text)
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "position-gap/OVERFLOW",
            "position-gap/BACKPLANE",
            "position-gap/EVICTED"
        ]
    );
}

#[test]
fn wrong_command_line_ends_with_2() {
    for (arguments, words) in [
        (
            &["--only", "position-bach", "--", "true"][..],
            "did you mean \"position-batch\"?",
        ),
        (&["--only", "zzz", "--", "true"], "--list has their names"),
        (&[], "required"),
        (&["--without", "wings", "--", "true"], "possible values"),
        (&["--listen", "127.0.0.1:0"], "--only"),
        (
            &["--only", "position-gap", "--listen", "127.0.0.1:0"],
            "--only selects 3",
        ),
        (
            &[
                "--only",
                "client-id-taken",
                "--without",
                "client-id",
                "--",
                "true",
            ],
            "no scenario is left",
        ),
        (
            &[
                "--only",
                "client-id-taken",
                "--without",
                "client-id",
                "--listen",
                "127.0.0.1:0",
            ],
            "--without leaves out",
        ),
        (&["--list", "--", "true"], "cannot be used"),
    ] {
        let output = conformance(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = format!("{}{}", stdout(&output), stderr(&output));
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}

#[test]
fn wrong_scenario_ends_with_2_and_is_named() {
    const STREAM: &str = "title = 'x'\n[[stream]]\n";
    for (name, text, words) in [
        ("empty", "", "missing field `title`"),
        ("no-toml", "title = ", "line 1"),
        (
            "unknown",
            "title = 'x'\nstreams = []",
            "unknown field `streams`",
        ),
        ("no-stream", "title = 'x'\nstream = []", "no `stream`"),
        (
            "open",
            "title = 'x'\n[[stream]]\n[[stream]]\nexpect.resume_after = 1",
            "needs an `end`",
        ),
        (
            "nowhere",
            "title = 'x'\n[[stream]]\nend = 'cut'\n[[stream]]",
            "needs a `resume_after`",
        ),
        (
            "late",
            &format!("{STREAM}play = [{{ events = [1] }}]"),
            "begin with `subscribed`",
        ),
        (
            "digits",
            &format!("{STREAM}play = [{{ subscribed = {{ head = 1 }} }}, {{ bytes = 'abc' }}]"),
            "hexadecimal",
        ),
        ("code", &format!("{STREAM}end.status.code = 'NOPE'"), "NOPE"),
        ("reset", &format!("{STREAM}end.reset = 'NOPE'"), "NOPE"),
        (
            "reason",
            &format!(
                "{STREAM}play = [{{ subscribed = {{ head = 1 }} }}, {{ gap = {{ reason = 'NOPE', first = 1, last = 1, count = 1 }} }}]"
            ),
            "NOPE",
        ),
        (
            "position",
            &format!("{STREAM}play = [{{ subscribed = {{ head = 'here' }} }}]"),
            "EPOCH:SEQUENCE",
        ),
        (
            "negative",
            &format!("{STREAM}play = [{{ subscribed = {{ head = -1 }} }}]"),
            "line 3",
        ),
        ("case", &format!("case = [{{}}]\n{STREAM}"), "no `name`"),
        (
            "word",
            "case = [{ name = 'a' }]\ntitle = '${b}'\nstream = [{}]",
            "${b}",
        ),
        (
            "token",
            &format!("{STREAM}play = [{{ subscribed = {{ head = 1 }} }}, {{ token = 'x' }}]"),
            "`token`",
        ),
        (
            "page",
            &format!("{STREAM}play = [{{ subscribed = {{ head = 1 }} }}]\nend.http.status = 503"),
            "plays nothing",
        ),
        ("status", &format!("{STREAM}end.http.status = 99"), "HTTP"),
        (
            "trailer",
            &format!("{STREAM}end.status = {{ code = 'OK', trailers = {{ 'a b' = 'x' }} }}"),
            "a b",
        ),
    ] {
        let folder = folder(name, &[(&format!("{name}.toml"), text)]);
        let output = conformance(&["--scenarios", folder.to_str().unwrap(), "--", "true"]);
        assert_eq!(output.status.code(), Some(2), "{name}: {}", stdout(&output));
        let said = stderr(&output);
        assert!(said.contains(&format!("scenario {name}")), "{name}: {said}");
        assert!(said.contains(words), "{name}: {said}");
    }
    for path in ["/nowhere", folder("none", &[]).to_str().unwrap()] {
        let output = conformance(&["--scenarios", path, "--", "true"]);
        assert_eq!(output.status.code(), Some(2), "{path}");
        assert!(stderr(&output).contains(path), "{}", stderr(&output));
    }
}

#[test]
fn folder_of_scenarios_may_hold_regular_files_only() {
    let pipe = folder("pipe", &[]);
    let made = Command::new("mkfifo").arg(pipe.join("a.toml")).status();
    assert!(made.unwrap().success());
    let endless = folder("endless", &[]);
    std::os::unix::fs::symlink("/dev/zero", endless.join("a.toml")).unwrap();
    let large = " ".repeat((1 << 20) + 1);
    let large = folder("large", &[("a.toml", &large)]);
    for (folder, words) in [
        (pipe, "no regular file"),
        (endless, "no regular file"),
        (large, "larger than 1 MiB"),
    ] {
        let output = conformance(&["--scenarios", folder.to_str().unwrap(), "--", "true"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
}

#[test]
fn signal_ends_a_list_that_nobody_reads() {
    let (mut reader, writer) = child::full_pipe();
    let full = ioctl_fionread(&reader).unwrap();
    let mut list = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["conformance", "--list"])
        .stdout(writer)
        .spawn()
        .unwrap();
    // Room for a part of the list. When the next line of it has none, it waits for its reader; a signal before ends it, too.
    reader.read_exact(&mut [0; 4096]).unwrap();
    while ioctl_fionread(&reader).unwrap() + 1024 < full {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&list);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(!list.wait().unwrap().success());
    drop(reader);
}

#[test]
fn program_that_cannot_be_started_is_named() {
    let output = conformance(&["--only", "position-batch", "--", "/no/such/program"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("/no/such/program"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn program_that_never_calls_ends_the_run() {
    let output = conformance(&["--jobs", "2", "--", "sh", "-c", "echo off >&2; exit 1"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output).matches("FAIL  ").count(), 3);
    assert!(
        stderr(&output).contains("check its command"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn program_that_is_no_client_fails_with_its_words() {
    for (script, words) in [
        (
            "echo broken >&2; exit 3",
            "exit code 3; its last words: broken",
        ),
        ("echo 'not json'; sleep 60", "not json"),
        ("kill -9 $$", "without an exit code"),
        ("exit 0", "exit code 0"),
        ("head -c 3000000 /dev/zero; sleep 60", "lines of JSON"),
        (
            "echo '{\"type\":\"event\",\"sequence\":1,\"topic\":\"a\",\"payload\":\"\"}'; sleep 60",
            "nothing yet",
        ),
    ] {
        let output = conformance(&["--only", "position-batch", "--", "sh", "-c", script]);
        assert_eq!(output.status.code(), Some(1), "{script}");
        let told = stdout(&output);
        assert!(told.starts_with("FAIL  position-batch"), "{script}: {told}");
        assert!(told.contains(words), "{script}: {told}");
        assert!(told.ends_with("0 passed, 1 failed\n"), "{script}: {told}");
    }
}

#[test]
fn command_gets_the_arguments_of_sub_in_their_places() {
    let text = "title = 'x'
[client]
filters = ['a.b', 'c d']
client_id = 'ann'
resume_after = '000000000000000a:7'
heartbeat_s = 2
token = 't'
[[stream]]
";
    let folder = folder("arguments", &[("all.toml", text)]);
    let echo = |words: &[&str]| -> Vec<String> {
        let script = "for word; do echo \"[$word]\" >&2; done; exit 1";
        let before = [
            "--scenarios",
            folder.to_str().unwrap(),
            "--",
            "sh",
            "-c",
            script,
            "sh",
        ];
        let output = conformance(&[&before[..], words].concat());
        let words = stdout(&output).lines().filter_map(|line| {
            let (_, word) = line.split_once("(standard error) [")?;
            word.strip_suffix(']').map(ToOwned::to_owned)
        });
        words.collect()
    };
    let words = echo(&[]);
    assert_eq!(words[0], "--server");
    assert!(words[1].starts_with("http://127.0.0.1:"), "{words:?}");
    let known = [
        "--output",
        "json",
        "--client-id",
        "ann",
        "--resume",
        "000000000000000a:7",
    ];
    assert_eq!(words[2..8], known);
    assert_eq!(words[8..11], ["--heartbeat", "2s", "--token-file"]);
    assert_eq!(words[12..], ["a.b", "c d"]);

    let words = echo(&["--address={address}", "{arguments}", "last"]);
    assert!(words[0].starts_with("--address=127.0.0.1:"), "{words:?}");
    assert_eq!(words[1..3], ["--output", "json"]);
    assert_eq!(words.last().unwrap(), "last");
}

#[test]
fn verdicts_are_json_for_programs() {
    let output = conformance(&[
        "--output",
        "json",
        "--only",
        "position-batch",
        "--only",
        "client-id-taken",
        "--without",
        "client-id",
        "--",
        "false",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["type"], "scenario");
    assert_eq!(lines[0]["name"], "position-batch");
    assert_eq!(lines[0]["passed"], false);
    assert_eq!(lines[0]["problems"][0]["stream"], 1);
    assert_eq!(lines[0]["transcript"][0]["from"], "output");
    assert_eq!(
        lines[1],
        serde_json::json!({ "type": "summary", "passed": 0, "failed": 1, "left_out": 1 })
    );
}

#[test]
fn client_of_the_program_is_judged_by_hand_and_by_its_requests() {
    let sub = env!("CARGO_BIN_EXE_tidegate");
    for more in [&[][..], &["--requests-only"]] {
        let arguments = [more, &["--only", "position-batch", "--", sub, "sub"]].concat();
        let output = conformance(&arguments);
        assert!(output.status.success(), "{}", stdout(&output));
    }
    let mut played = Command::new(sub)
        .args([
            "conformance",
            "--only",
            "position-batch",
            "--listen",
            "127.0.0.1:0",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(played.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let address = first.strip_prefix("listening on ").unwrap();
    let mut client = Command::new(sub)
        .args(["sub", "conformance.>", "--server", address])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let rest: Vec<_> = lines.map(Result::unwrap).collect();
    let _ = client.kill();
    client.wait().unwrap();
    assert!(played.wait().unwrap().success(), "{rest:?}");
    assert!(rest[0].contains("filters [\"conformance.>\"]"), "{rest:?}");
    assert!(rest[1].starts_with("ok    position-batch"), "{rest:?}");
    assert_eq!(rest[2], "1 passed, 0 failed");
}

#[test]
fn client_below_a_shell_ends_with_its_scenario() {
    let pid_file = folder("below", &[]).join("pid");
    let sub = env!("CARGO_BIN_EXE_tidegate");
    let script = format!("echo $$ >{}; {sub} sub \"$@\" & wait", pid_file.display());
    let output = conformance(&["--only", "position-batch", "--", "sh", "-c", &script, "sh"]);
    assert!(output.status.success(), "{}", stdout(&output));
    let shell = fs::read_to_string(&pid_file).unwrap();
    let group = shell
        .trim()
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .unwrap();
    // Those that were killed may still be on their way out.
    while rustix::process::test_kill_process_group(group).is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn flood_of_lines_ends_with_a_verdict() {
    let script = "yes '{\"type\":\"heartbeat\",\"position\":\"1:1\"}'";
    let output = conformance(&[
        "--scenarios",
        flooded().to_str().unwrap(),
        "--",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(output.status.code(), Some(1));
    let told = stdout(&output);
    assert!(
        told.contains("expected a call of Subscribe within 1 s; seen: no call"),
        "{told}"
    );
    assert!(told.len() < 200_000, "{}", told.len());
}

fn flooded() -> PathBuf {
    let text = "title = 'x'\n[[stream]]\nexpect.within_ms = 1000\nplay = [{ subscribed = { head = 1 } }]\n";
    folder("flooded", &[("flood.toml", text)])
}

#[test]
fn client_that_ends_early_is_noticed_by_its_requests_alone() {
    let output = conformance(&[
        "--requests-only",
        "--only",
        "position-batch",
        "--",
        "sh",
        "-c",
        "echo no >&2; exit 4",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let told = stdout(&output);
    assert!(told.contains("exit code 4; its last words: no"), "{told}");
}
