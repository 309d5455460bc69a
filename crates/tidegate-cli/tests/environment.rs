//! Variables of the environment: none is ignored in silence.
#![cfg(target_os = "linux")]

mod child;

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    process::{Command, Output},
};

use child::{Folder, program};
use tidegate_server::settings::SETTINGS;

/// A value that is not UTF-8.
const LATIN_1: &[u8] = b"/path/tok\xe9ns";

fn latin_1() -> &'static OsStr {
    OsStr::from_bytes(LATIN_1)
}

fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn each_variable_that_is_not_utf_8_is_refused_by_name() {
    for setting in SETTINGS {
        let variable = setting.variable();
        let (code, told) = run(program(["check-config"]).env(&variable, latin_1()));
        assert_eq!(code, Some(2), "{variable}: {told}");
        let expected = format!("{variable}: {}: the value is not UTF-8", setting.key);
        assert!(told.contains(&expected), "{told}");
    }
    let (code, told) = run(program(["serve"]).env("TIDEGATE_AUTH_TOKENS", latin_1()));
    assert_eq!(code, Some(2));
    assert!(told.contains("TIDEGATE_AUTH_TOKENS: "), "{told}");
    for command in ["serve", "check-config", "stats"] {
        let (code, told) = run(program([command]).env("RUST_LOG", latin_1()));
        assert_eq!(code, Some(2), "{command}: {told}");
        assert!(told.contains("RUST_LOG"), "{told}");
    }
    for variable in ["TIDEGATE_SERVER", "TIDEGATE_TOKEN"] {
        let (code, told) = run(program(["stats"]).env(variable, latin_1()));
        assert_eq!(code, Some(2), "{variable}: {told}");
        assert!(told.contains(variable), "{told}");
    }
    let (code, told) = run(program(["serve", "--auth-tokens"]).arg(latin_1()));
    assert_eq!(code, Some(2));
    assert!(told.contains("tok\\xE9ns"), "{told}");
}

#[test]
fn paths_that_are_not_utf_8_are_used_where_a_path_is_all_that_is_meant() {
    let folder = Folder::new("latin-1");
    let mut path = OsString::from(folder.at("conf"));
    path.push(OsStr::from_bytes(b"\xe9"));
    std::fs::write(&path, "heartbeat = \"7s\"\n").unwrap();
    let mut by_variable = program(["serve", "--print-config"]);
    by_variable.env("TIDEGATE_CONFIG", &path);
    let mut by_flag = program(["serve", "--print-config", "--config"]);
    by_flag.arg(&path);
    for command in [&mut by_variable, &mut by_flag] {
        let printed = command.output().unwrap().stdout;
        let printed = String::from_utf8_lossy(&printed).into_owned();
        assert!(printed.contains("heartbeat = \"7s\""), "{printed}");
    }
}

#[test]
fn names_that_are_misspelled_or_not_in_capitals_are_refused() {
    for (name, meant) in [
        (&b"TIDEGATE_AUTH_TOK\xe9NS"[..], "TIDEGATE_AUTH_TOKENS"),
        (b"tidegate_auth_tokens", "TIDEGATE_AUTH_TOKENS"),
        (b"Tidegate_Auth_Rules", "TIDEGATE_AUTH_RULES"),
        (b"TIDEGATE__AUTH__TOKENS", "TIDEGATE_AUTH_TOKENS"),
        (b"TIDEGATE-AUTH-TOKENS", "TIDEGATE_AUTH_TOKENS"),
        (b"TIDEGATE.AUTH.TOKENS", "TIDEGATE_AUTH_TOKENS"),
        (b"TIDEGATE_AUTH_TOKENS ", "TIDEGATE_AUTH_TOKENS"),
    ] {
        let name = OsStr::from_bytes(name);
        let (code, told) = run(program(["check-config"]).env(name, "x"));
        assert_eq!(code, Some(2), "{name:?}: {told}");
        assert!(told.contains(&format!("did you mean {meant}?")), "{told}");
    }
}

#[test]
fn variables_of_the_program_in_another_case_are_refused() {
    for (name, meant) in [
        ("tidegate_config", "TIDEGATE_CONFIG"),
        ("Tidegate_Config", "TIDEGATE_CONFIG"),
        ("TIDEGATE-CONFIG", "TIDEGATE_CONFIG"),
        ("TIDEGATE__CONFIG", "TIDEGATE_CONFIG"),
        ("tidegate_server", "TIDEGATE_SERVER"),
        ("tidegate_token", "TIDEGATE_TOKEN"),
        ("tidegate_token_file", "TIDEGATE_TOKEN_FILE"),
        ("tidegate_tls_ca", "TIDEGATE_TLS_CA"),
        ("rust_log", "RUST_LOG"),
    ] {
        for command in ["serve", "check-config"] {
            let (code, told) = run(program([command]).env(name, "/x"));
            assert_eq!(code, Some(2), "{name}: {told}");
            let expected = format!("{name}: there is no such variable; did you mean {meant}?");
            assert!(told.contains(&expected), "{told}");
        }
        let (_, told) = run(program(["stats", "--server", "127.0.0.1:1"]).env(name, "x"));
        let expected = format!("{name}: it is ignored; did you mean {meant}?");
        assert!(told.contains(&expected), "{told}");
        let (code, told) = run(program(["check-config"]).env(name, ""));
        assert_eq!((code, &*told), (Some(0), ""), "{name}");
    }
}

#[test]
fn variables_that_may_be_meant_to_keep_the_server_closed_are_refused() {
    for (name, meant) in [
        ("TIDEGATE_CONFIG_FILE", "TIDEGATE_CONFIG"),
        ("TIDEGATE_CONF", "TIDEGATE_CONFIG"),
        ("TIDEGATE_CONFIGFILE", "TIDEGATE_CONFIG"),
        ("TIDEGATE_CONFG", "TIDEGATE_CONFIG"),
        ("TIDEGATE_TOKENS_FILE", "TIDEGATE_AUTH_TOKENS"),
        ("TIDEGATE_TLS_CERT", "TIDEGATE_TLS_CERTIFICATE"),
        ("TIDEGATE_TLS_CERT_FILE", "TIDEGATE_TLS_CERTIFICATE"),
        ("TIDEGATE_SSL", "TIDEGATE_TLS_CERTIFICATE"),
        ("TIDEGATE_CA_FILE", "TIDEGATE_TLS_CLIENT_CA"),
        ("TIDEGATE_TLSCERT", "TIDEGATE_TLS_CERTIFICATE"),
        ("TIDEGATE_JWKS_URI", "TIDEGATE_AUTH_JWT_KEY_SETS"),
        ("TIDEGATE_RULES_PATH", "TIDEGATE_AUTH_RULES"),
        ("tidegate_password", "TIDEGATE_AUTH_TOKENS"),
    ] {
        for command in ["serve", "check-config"] {
            let (code, told) = run(program([command]).env(name, "/x"));
            assert_eq!(code, Some(2), "{name}: {told}");
            assert!(
                told.contains(&format!("{name}: "))
                    && told.contains(&format!("did you mean {meant}?")),
                "{told}"
            );
        }
    }
}

#[test]
fn variables_that_are_no_settings_are_warned_of_but_for_those_of_orchestrators() {
    let ignored = |name: &str, value: &str| {
        let (code, told) = run(program(["check-config"]).env(name, value));
        assert_eq!(code, Some(0), "{told}");
        told
    };
    for name in [
        "TIDEGATE_FOO",
        "tidegate_foo",
        "TIDEGATE_",
        "TIDEGATE_\u{e9}",
    ] {
        let expected = format!("warning: {name}: there is no such setting, so this is ignored");
        let told = ignored(name, "1");
        assert!(told.contains(&expected), "{told}");
    }
    let told = ignored("TIDEGATE_PORT", "8080");
    assert!(
        told.contains("the port is part of TIDEGATE_LISTEN"),
        "{told}"
    );
    for (name, value) in [
        ("TIDEGATE_PORT", "tcp://10.0.0.1:50051"),
        ("TIDEGATE_SERVICE_HOST", "10.0.0.1"),
        ("TIDEGATE_SERVICE_PORT", "50051"),
        ("TIDEGATE_SERVICE_PORT_GRPC_PLAIN", "50051"),
        ("TIDEGATE_ADMIN_SERVICE_PORT", "50051"),
        ("TIDEGATE_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
        ("TIDEGATE_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("TIDEGATE_PORT_50051_TCP_PORT", "50051"),
        ("TIDEGATE_AUTH_PORT_50051_UDP_PROTO", "udp"),
        ("TIDEGATE_CONFIG_SERVICE_HOST", "10.0.0.1"),
        ("TIDEGATE_TLS_PORT", "tcp://10.0.0.1:50051"),
        ("TIDEGATE_TOKENS_SERVICE_PORT_GRPC", "50051"),
        ("TIDEGATE_SERVER", "http://localhost"),
        ("TIDEGATE_TOKEN", "t"),
        ("TIDEGATED", "1"),
        ("TIDE", "1"),
    ] {
        assert_eq!(ignored(name, value), "", "{name}");
    }
    // A server says so too.
    let (mut server, mut log) = child::Serve::logging({
        let mut command = program(["serve", "--listen", "127.0.0.1:0"]);
        command.env("TIDEGATE_FOO", "1");
        command
    });
    log.until("TIDEGATE_FOO: there is no such setting");
    server.child.kill().unwrap();
}

#[test]
fn empty_variables_are_as_if_they_were_not_set() {
    let mut command = program(["serve", "--print-config"]);
    for setting in SETTINGS {
        command.env(setting.variable(), "");
    }
    command.env("TIDEGATE_CONFIG", "").env("RUST_LOG", "");
    command
        .env("TIDEGATE_FOO", "")
        .env("TIDEGATE_AUTH_TOKNES", "");
    let printed = command.output().unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let text = String::from_utf8(printed.stdout).unwrap();
    let values = text.lines().filter(|line| line.contains(" = "));
    assert_eq!(values.clone().count(), SETTINGS.len());
    for line in values {
        assert!(line.contains(" # default"), "{line}");
    }
    assert_eq!(printed.stderr, b"");
}

#[test]
fn empty_flags_and_empty_strings_in_the_file_are_refused() {
    let folder = Folder::new("empty-values");
    for setting in SETTINGS {
        if setting.key != "log" {
            let flag = format!("--{}=", setting.flag());
            let (code, told) = run(&mut program(["serve", &*flag]));
            assert_eq!(code, Some(2), "{flag}: {told}");
        }
        let file = folder.write("config.toml", format!("{} = \"\"\n", setting.key));
        let (code, told) = run(&mut program(["check-config", &*file]));
        assert_eq!(code, Some(2), "{}: {told}", setting.key);
        assert!(
            told.contains(&format!("{file}:1: {}", setting.key)),
            "{told}"
        );
    }
    let (code, _) = run(&mut program(["serve", "--log", ""]));
    assert_eq!(code, Some(2));
}

#[test]
fn values_with_line_ends_and_white_space_around_them_are_refused() {
    for setting in SETTINGS {
        for value in [" x", "x ", "x\n", "\tx"] {
            let variable = setting.variable();
            let (code, told) = run(program(["check-config"]).env(&variable, value));
            assert_eq!(code, Some(2), "{variable}={value:?}: {told}");
            assert!(told.contains(&format!("{variable}: ")), "{told}");
        }
    }
}

#[test]
fn variables_of_other_commands_that_are_misspelled_are_warned_of() {
    for (name, meant) in [
        ("TIDEGATE_TOKN", "TIDEGATE_TOKEN"),
        ("TIDEGATE_TOKENFILE", "TIDEGATE_TOKEN_FILE"),
        ("TIDEGATE_TLSCA", "TIDEGATE_TLS_CA"),
        ("tidegate_token", "TIDEGATE_TOKEN"),
        ("TIDEGATE_SERVR", "TIDEGATE_SERVER"),
    ] {
        let (_, told) = run(program(["stats", "--server", "127.0.0.1:1"]).env(name, "x"));
        let expected = format!("{name}: it is ignored; did you mean {meant}?");
        assert!(told.contains(&expected), "{told}");
    }
    for name in ["TIDEGATE_LISTEN", "TIDEGATE_SERVICE_HOST", "TIDEGATE_PORT"] {
        let (_, told) = run(program(["stats", "--server", "127.0.0.1:1"]).env(name, "x"));
        assert!(!told.contains(name), "{told}");
    }
}

#[test]
fn a_token_in_a_variable_with_anything_around_it_is_refused_by_name() {
    for token in [
        " tok1",
        "tok1 ",
        "tok1\n",
        "\u{feff}tok1",
        "to k1",
        "tok1\r",
        "\t",
        "tok\u{e9}",
    ] {
        let (code, told) = run(program(["stats"]).env("TIDEGATE_TOKEN", token));
        assert_eq!(code, Some(2), "{token:?}: {told}");
        assert!(told.contains("TIDEGATE_TOKEN is no token"), "{told}");
        assert!(!told.contains("tok1"), "{told}");
    }
}

#[test]
fn a_server_with_a_path_is_refused() {
    for url in [
        "http://127.0.0.1:1/path",
        "https://127.0.0.1:1/?a",
        "127.0.0.1:1/path",
    ] {
        let (code, told) = run(program(["stats"]).env("TIDEGATE_SERVER", url));
        assert_eq!(code, Some(2), "{url}: {told}");
        assert!(told.contains("take the path away"), "{told}");
    }
}
