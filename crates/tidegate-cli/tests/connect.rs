//! Why `tidegate sub` and its siblings cannot connect: one line that says so, and an exit code by what can heal.
#![cfg(target_os = "linux")]
#![allow(
    clippy::disallowed_methods,
    reason = "what is waited for is in other processes, and no other task waits on these threads"
)]

mod child;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use child::Serve;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

const PATIENCE: Duration = Duration::from_secs(60);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command to its end, which must come.
fn run(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let end = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("it does not end: {:?}", child.wait_with_output());
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs the command and expects its exit code, and one line with some words.
fn fails(arguments: &[&str], code: i32, words: &str) {
    let output = run(command(arguments));
    let said = stderr(&output);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {output:?}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(words), "{arguments:?}: {said}");
}

/// Certificates for a server, each in a folder of its own test.
struct Certificates {
    folder: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = CertifiedIssuer::self_signed(params, key).unwrap();
        fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
        Self { folder, authority }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().into()
    }

    fn ca(&self) -> String {
        self.path("ca.pem")
    }

    /// Starts a server whose certificate is for `name` and ends in `year`.
    fn serve(&self, name: &str, year: i32, more: &[&str]) -> Serve {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let (chain, private) = (self.path("server.pem"), self.path("server.key"));
        fs::write(&chain, certificate.pem()).unwrap();
        fs::write(&private, key.serialize_pem()).unwrap();
        let tls = ["--tls-certificate", &chain, "--tls-key", &private];
        Serve::start(&[&tls, more].concat())
    }
}

fn https(server: &Serve) -> String {
    format!("https://{}", server.address())
}

#[test]
fn address_without_tls_is_named_and_so_is_one_with_it() {
    let certificates = Certificates::new("scheme");
    let with = certificates.serve("127.0.0.1", 2100, &[]);
    let url = with.url();
    for arguments in [
        &["sub", "a"][..],
        &["pub", "a", "x"],
        &["pub", "a"],
        &["stats"],
        &["clients"],
    ] {
        let arguments = [arguments, &["--server", &url]].concat();
        let output = run(command(&arguments));
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert!(
            stderr(&output).contains("use an https:// address"),
            "{output:?}"
        );
    }
    let without = Serve::start(&[]);
    let url = https(&without);
    fails(
        &["sub", "a", "--server", &url],
        4,
        "the server speaks no TLS there: use an http:// address",
    );
}

#[test]
fn certificate_that_is_not_accepted_says_why() {
    let certificates = Certificates::new("certificates");
    let ca = certificates.ca();
    let good = certificates.serve("127.0.0.1", 2100, &[]);
    fails(
        &["sub", "a", "--server", &https(&good)],
        4,
        "no authority that this client trusts has issued it",
    );
    let output = run(command(&[
        "stats",
        "--server",
        &https(&good),
        "--tls-ca",
        &ca,
    ]));
    assert!(output.status.success(), "{output:?}");
    drop(good);
    for (name, year, words) in [
        ("other.example", 2100, "it is for another name"),
        ("127.0.0.1", 2021, "it has expired"),
    ] {
        let server = certificates.serve(name, year, &[]);
        let url = https(&server);
        fails(&["sub", "a", "--server", &url, "--tls-ca", &ca], 4, words);
        fails(
            &["pub", "a", "x", "--server", &url, "--tls-ca", &ca],
            4,
            words,
        );
    }
}

#[test]
fn client_certificate_that_is_missing_or_not_accepted_is_named_every_time() {
    let certificates = Certificates::new("client-certificates");
    let ca = certificates.ca();
    let server = certificates.serve("127.0.0.1", 2100, &["--tls-client-ca", &ca]);
    let url = https(&server);
    let other = rcgen::generate_simple_self_signed(["me".to_owned()]).unwrap();
    let (chain, key) = (certificates.path("me.pem"), certificates.path("me.key"));
    fs::write(&chain, other.cert.pem()).unwrap();
    fs::write(&key, other.signing_key.serialize_pem()).unwrap();
    // The alert comes after the handshake, and races with the call.
    for _ in 0..5 {
        let trusting = ["sub", "a", "--server", &url, "--tls-ca", &ca];
        fails(&trusting, 4, "the server requires a client certificate");
        let own = ["--tls-certificate", &chain, "--tls-key", &key];
        let arguments = [&trusting[..], &own].concat();
        fails(
            &arguments,
            4,
            "the server does not accept the client certificate",
        );
    }
}

#[test]
fn missing_server_heals_and_is_named_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut child = command(&["sub", "a", "--server", &address])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let why = lines.next().unwrap().unwrap();
    assert!(
        why.contains("Connection refused") && why.contains(&address),
        "{why}"
    );
    // Several attempts, of which the first alone is told.
    thread::sleep(Duration::from_secs(1));
    let mut serve = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    serve.args(["serve", "--listen", &address]);
    let _server = Serve::spawn(serve);
    let next = lines.next().unwrap().unwrap();
    assert!(next.starts_with("# subscribed as"), "{next}");
    child.kill().unwrap();
    child.wait().unwrap();

    fails(
        &["stats", "--server", "127.0.0.1:1"],
        3,
        "no connection to http://127.0.0.1:1: Connection refused (os error 111): start the server, or correct the address",
    );
}

// ===== Proxies =====

/// A proxy that answers each call with a page, by HTTP/2 in the clear.
fn proxy(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut read = [0; 4096];
            // The preface, settings and the call.
            let mut received = 0;
            while received < 100 {
                received += socket.read(&mut read).unwrap_or(100).max(1);
            }
            let page = b"<html><b>No entry</b></html>";
            let mut headers = vec![0x08, 3];
            headers.extend(status.as_bytes());
            headers.extend([0x0f, 0x10, 9]);
            headers.extend(b"text/html");
            let mut answer = vec![0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];
            answer.extend([0, 0, headers.len() as u8, 1, 4, 0, 0, 0, 1]);
            answer.extend(headers);
            answer.extend([0, 0, page.len() as u8, 0, 1, 0, 0, 0, 1]);
            answer.extend(page);
            let _ = socket.write_all(&answer);
            thread::sleep(Duration::from_millis(200));
        }
    });
    format!("http://{address}")
}

#[test]
fn status_of_a_proxy_decides() {
    for (status, code) in [("401", 4), ("403", 4), ("404", 1), ("431", 1)] {
        let url = proxy(status);
        fails(&["sub", "a", "--server", &url], code, "\"No entry\"");
        fails(&["pub", "a", "x", "--server", &url], code, "not published");
    }
    for status in ["429", "502", "503", "504"] {
        let url = proxy(status);
        let words = format!("HTTP {status}");
        fails(&["sub", "a", "--no-reconnect", "--server", &url], 3, &words);
        fails(&["stats", "--server", &url], 3, &words);
    }
}

// ===== A kick =====

#[test]
fn kicked_one_reads_that_an_operator_did_it() {
    let server = Serve::start(&[]);
    let url = server.url();
    let mut child = command(&["sub", "a", "--client-id", "ann", "--server", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    assert!(
        run(command(&["kick", "ann", "--server", &url]))
            .status
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(6));
    let said = stderr(&output);
    assert!(said.contains("its operator ended the stream"), "{said}");
    assert!(!said.contains("another stream"), "{said}");
}

#[test]
fn json_has_the_reason_of_the_end() {
    let server = Serve::start(&[]);
    let url = server.url();
    let arguments = ["sub", "a", "--client-id", "ann", "--output", "json"];
    let arguments = [&arguments[..], &["--server", &url]].concat();
    for (end, reason) in [("kick", "DISCONNECTED"), ("sub", "TAKEN_OVER")] {
        let mut child = command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.next().unwrap().unwrap();
        let mut other = match end {
            "kick" => command(&["kick", "ann", "--server", &url]),
            _ => command(&arguments),
        };
        let mut other = other.stdout(Stdio::null()).spawn().unwrap();
        let ended: serde_json::Value =
            serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(ended["type"], "ended");
        assert_eq!(ended["code"], "ABORTED");
        assert_eq!(ended["reason"], reason);
        assert!(lines.next().is_none());
        assert_eq!(child.wait().unwrap().code(), Some(6));
        // The one that took over goes on.
        let _ = other.kill();
        other.wait().unwrap();
    }
}

// ===== Variables =====

#[test]
fn flag_wins_over_a_variable_and_an_empty_one_is_unset() {
    use std::os::unix::ffi::OsStrExt as _;

    let server = Serve::start(&[]);
    let url = server.url();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let token = folder.join("variables-token");
    fs::write(&token, "\u{feff}secret\r\n").unwrap();
    let token = token.to_str().unwrap();
    let stats = |flags: &[&str], variables: &[(&str, &[u8])]| {
        let mut command = command(&[&["stats"], flags].concat());
        for (name, value) in variables {
            command.env(name, std::ffi::OsStr::from_bytes(value));
        }
        run(command)
    };
    let address = ["--server", &url];
    for (flags, variables) in [
        (
            &["--token-file", token][..],
            &[("TIDEGATE_TOKEN", &b"two words"[..])][..],
        ),
        (&["--token", "x"], &[("TIDEGATE_TOKEN_FILE", b"/nowhere")]),
        (&["--token", "x"], &[("TIDEGATE_TOKEN", b"\xff")]),
        (
            &[],
            &[
                ("TIDEGATE_TOKEN", b""),
                ("TIDEGATE_TOKEN_FILE", b""),
                ("TIDEGATE_TLS_CA", b""),
            ],
        ),
        (
            &[],
            &[
                ("TIDEGATE_TOKEN", b""),
                ("TIDEGATE_TOKEN_FILE", token.as_bytes()),
            ],
        ),
        (&[], &[("TIDEGATE_TLS_CA", b"/nowhere")]),
        (&[], &[("TIDEGATE_SERVER", b"\xff")]),
    ] {
        let output = stats(&[&address, flags].concat(), variables);
        assert!(
            output.status.success(),
            "{flags:?} {variables:?}: {output:?}"
        );
    }
    let output = stats(&[], &[("TIDEGATE_SERVER", url.as_bytes())]);
    assert!(output.status.success(), "{output:?}");
    for (flags, variables, code, words) in [
        (
            &[][..],
            &[("TIDEGATE_TOKEN", &b"\xff"[..])][..],
            2,
            "TIDEGATE_TOKEN is not valid UTF-8",
        ),
        (
            &[],
            &[("TIDEGATE_SERVER", b"\xff")],
            2,
            "TIDEGATE_SERVER is not valid UTF-8",
        ),
        (
            &[],
            &[("TIDEGATE_TOKEN_FILE", b"/nowhere/\xff")],
            4,
            "/nowhere/",
        ),
        (
            &[],
            &[("TIDEGATE_TOKEN", b"x"), ("TIDEGATE_TOKEN_FILE", b"y")],
            2,
            "both set",
        ),
        (
            &["--tls-ca", token],
            &[],
            4,
            "certificates need an https endpoint",
        ),
        (&["--token", ""], &[], 4, "not empty"),
    ] {
        let flags = match variables.iter().any(|(name, _)| *name == "TIDEGATE_SERVER") {
            true => flags.to_vec(),
            false => [&address, flags].concat(),
        };
        let output = stats(&flags, variables);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{variables:?}: {output:?}"
        );
        assert!(stderr(&output).contains(words), "{output:?}");
    }
}

#[test]
fn token_from_a_pipe_is_read_once_and_that_is_said() {
    let server = Serve::start(&[]);
    let mut command = Command::new("bash");
    let script = "exec \"$0\" stats --server \"$1\" --token-file <(echo secret)";
    command.args(["-c", script, env!("CARGO_BIN_EXE_tidegate"), &server.url()]);
    let output = run(command);
    assert!(output.status.success(), "{output:?}");
    assert!(stderr(&output).contains("read from it once"), "{output:?}");
}
