//! The table, its sources and its reload, tested together.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::Path,
    time::Duration,
};

use super::*;
use crate::{
    identity::jwt::{JwksUrl, JwtKeys},
    network::tls::ClientAuth,
};

static NOTHING: BTreeMap<OsString, OsString> = BTreeMap::new();

fn environment<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<OsString, OsString> {
    BTreeMap::from(pairs.map(|(name, value)| (name.into(), value.into())))
}

/// The problems of a file, each with its line.
fn problems(text: &str) -> Vec<(usize, String)> {
    let path = PathBuf::from("t.toml");
    let read = read(Sources {
        file: Some((&path, text)),
        environment: &NOTHING,
        flags: &[],
    });
    let told = read.unwrap_err().into_iter().map(|problem| {
        let Origin::File(_, line) = problem.origin else {
            panic!("{problem}")
        };
        (line, problem.message)
    });
    told.collect()
}

#[test]
fn the_table_is_consistent() {
    let keys: HashSet<_> = SETTINGS.iter().map(|setting| setting.key).collect();
    let flags: HashSet<_> = SETTINGS.iter().map(Setting::flag).collect();
    assert_eq!((keys.len(), flags.len()), (SETTINGS.len(), SETTINGS.len()));
    let mut sections: Vec<_> = SETTINGS.iter().map(Setting::section).collect();
    sections.dedup();
    let distinct: HashSet<_> = sections.iter().collect();
    assert_eq!(
        distinct.len(),
        sections.len(),
        "a section stands in two places"
    );
    for setting in SETTINGS {
        setting.check(&setting.default()).unwrap();
        assert!(
            setting.check("\u{1}").is_err(),
            "{} takes anything",
            setting.key
        );
        assert!(setting.about.ends_with('.'), "{}", setting.key);
    }
}

#[test]
fn the_example_has_every_setting_at_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tidegate.example.toml");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, example()).unwrap();
    }
    let listed = fs::read_to_string(&path).unwrap();
    assert!(
        listed == example(),
        "{} is not what the table says; set UPDATE_EXPECT=1 if that is meant",
        path.display()
    );
    let (configuration, written) = read(Sources {
        file: Some((&path, &listed)),
        environment: &NOTHING,
        flags: &[],
    })
    .unwrap();
    for setting in SETTINGS {
        assert!(written.origin(setting.key).is_some(), "{}", setting.key);
        assert_eq!((setting.get)(&configuration), setting.default());
    }
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let path = PathBuf::from("t.toml");
    let text = "drain_timeout = \"1s\"\nheartbeat = \"2s\"\n[history]\nevents = 3\n";
    let environment = environment([
        ("TIDEGATE_HEARTBEAT", "20s"),
        ("TIDEGATE_HISTORY_EVENTS", "30"),
    ]);
    let (configuration, written) = read(Sources {
        file: Some((&path, text)),
        environment: &environment,
        flags: &[("history.events", "300".into())],
    })
    .unwrap();
    let server = &configuration.server;
    assert_eq!(server.drain_timeout.as_secs(), 1);
    assert_eq!(server.service.heartbeat_interval.as_secs(), 20);
    assert_eq!(server.history.max_events, 300);
    let effective = written.effective(&configuration);
    for line in [
        "drain_timeout = \"1s\" # t.toml:1",
        "heartbeat = \"20s\" # TIDEGATE_HEARTBEAT",
        "[history]\nevents = 300 # --history-events",
        "max_filters = 1024 # default",
    ] {
        assert!(effective.contains(line), "{line} is not in:\n{effective}");
    }
    // The printed form means the same when it is read.
    let (again, _) = read(Sources {
        file: Some((&path, &effective)),
        environment: &NOTHING,
        flags: &[],
    })
    .unwrap();
    for setting in SETTINGS {
        assert_eq!((setting.get)(&again), (setting.get)(&configuration));
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once_each_with_its_line() {
    let text = "\
drain_timeout = 5
heartbeet = \"5s\"
history = 3
log = [\"debug\"]
http = \"50080\"

[limits]
max_filters = -1
max_event_bytes = \"2 apples\"
client_ids = \"reject\"

[histroy]
events = 1

[quotas.address]
publish_events = 0
publish_bytes = \"1MiB\"
";
    let told = problems(text);
    for (line, part) in [
        (1, "drain_timeout = \"5\": write it with a unit"),
        (
            2,
            "there is no setting `heartbeet`; did you mean `heartbeat`?",
        ),
        (3, "`history` is a section: write [history]"),
        (
            4,
            "log: must be a string in quotes, a whole number, true or false",
        ),
        (5, "http = \"50080\": write it as ADDRESS:PORT"),
        (8, "limits.max_filters = \"-1\": must be a whole number"),
        (
            9,
            "limits.max_event_bytes = \"2 apples\": write it as a number of bytes",
        ),
        (
            10,
            "there is no setting `limits.client_ids`; did you mean `client_ids`?",
        ),
        (12, "there is no section `histroy`; did you mean `history`?"),
        (
            16,
            "quotas.address.publish_events = \"0\": must be at least 1",
        ),
    ] {
        assert!(
            told.iter()
                .any(|(at, message)| *at == line && message.contains(part)),
            "{line}: {part} is not in {told:#?}"
        );
    }
    assert_eq!(told.len(), 10, "{told:#?}");
    assert!(told.is_sorted_by_key(|(line, _)| *line));
}

#[test]
fn what_is_no_toml_is_told_with_its_line_together_with_the_rest() {
    let told = problems("listen = \nhttp = \"x\"\nlog = \"a\"\nlog = \"b\"\n");
    let lines: Vec<_> = told.iter().map(|(line, _)| *line).collect();
    assert!(
        lines.contains(&1) && lines.contains(&2) && lines.contains(&4),
        "{told:#?}"
    );
}

#[test]
fn contradictions_are_told_where_they_were_written() {
    let told = problems("\n[limits]\nmax_event_bytes = \"8MiB\"\n");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, 3);
    assert!(told[0].1.contains("above limits.max_publish_bytes"));
    let told = problems(
        "[tls]\nkey = \"k\"\nclient_auth = \"optional\"\n[auth.jwt]\nkey_sets = [\"a\"]\n",
    );
    let told: Vec<_> = told.iter().map(|(line, told)| (*line, &**told)).collect();
    assert_eq!(
        told,
        [
            (2, "tls.key needs tls.certificate: set it too"),
            (3, "tls.client_auth needs tls.client_ca: set it too"),
            (5, "auth.jwt.key_sets needs auth.jwt.issuer: set it too"),
        ]
    );
}

#[test]
fn tls_and_credentials_are_made_of_their_settings() {
    let text = "\
[tls]
certificate = \"c.pem\"
key = \"k.pem\"
client_ca = \"ca.pem\"
client_auth = \"optional\"
[auth]
tokens = \"tokens\"
rules = \"rules.toml\"
insecure = true
[auth.jwt]
issuer = \"i\"
audience = \"7\"
public_keys = [\"a.pem\", \"1\"]
key_sets = \"set.json,https://issuer.example/keys\"
key_set_refresh_interval = \"1m\"
";
    let path = PathBuf::from("t.toml");
    let of = |text: &str| {
        read(Sources {
            file: Some((&path, text)),
            environment: &NOTHING,
            flags: &[("auth.jwt.secrets", "s1,s2".into())],
        })
        .unwrap()
    };
    let (configuration, written) = of(text);
    let tls = configuration.server.tls.as_ref().unwrap();
    assert_eq!(tls.client_ca.as_deref(), Some(Path::new("ca.pem")));
    assert_eq!(tls.client_auth, ClientAuth::Optional);
    let auth = &configuration.server.auth;
    assert!(auth.tokens.is_some() && auth.rules_file.is_some() && auth.insecure);
    let jwt = auth.jwt.as_ref().unwrap();
    assert_eq!((&*jwt.issuer, &*jwt.audience), ("i", "7"));
    let mut set = JwksUrl::new("https://issuer.example/keys");
    set.refresh_interval = Duration::from_secs(60);
    let keys = [
        JwtKeys::Pem("a.pem".into()),
        JwtKeys::Pem("1".into()),
        JwtKeys::Secret("s1".into()),
        JwtKeys::Secret("s2".into()),
        JwtKeys::JwksFile("set.json".into()),
        JwtKeys::JwksUrl(set),
    ];
    assert_eq!(jwt.keys, keys);
    // The printed form means the same.
    let (again, _) = of(&written.effective(&configuration));
    assert_eq!(again.server.auth.jwt.unwrap().keys, keys);
    let told = problems("[auth.jwt]\nsecrets = [\"a,b\"]\n");
    assert!(told[0].1.contains("without commas"), "{told:?}");
}

#[test]
fn the_environment_is_checked_and_named() {
    let environment = environment([("TIDEGATE_ON_STALL", "panic")]);
    let told = read(Sources {
        file: None,
        environment: &environment,
        flags: &[],
    })
    .unwrap_err();
    assert_eq!(
        told[0].to_string(),
        "TIDEGATE_ON_STALL: on_stall = \"panic\": must be park or close"
    );
}

/// Flags that were renamed, and the keys that name them now.
const FORMER_FLAGS: &[(&str, &str)] = &[
    ("max-connections", "connections.max"),
    ("max-connections-per-address", "connections.max_per_address"),
    ("max-connection-age", "connections.max_age"),
    ("max-connection-age-grace", "connections.max_age_grace"),
    ("tls-client-crl", "tls.client_crls"),
    ("tokens", "auth.tokens"),
    ("rules", "auth.rules"),
    ("insecure", "auth.insecure"),
    ("jwt-issuer", "auth.jwt.issuer"),
    ("jwt-audience", "auth.jwt.audience"),
    ("jwt-public-key", "auth.jwt.public_keys"),
    ("jwt-secret", "auth.jwt.secrets"),
    ("jwt-keys", "auth.jwt.key_sets"),
    ("jwt-keys-ca", "auth.jwt.key_set_ca"),
    ("jwt-refresh", "auth.jwt.key_set_refresh_interval"),
    ("jwt-keys-max-age", "auth.jwt.key_set_max_age"),
    ("jwt-leeway", "auth.jwt.leeway"),
    ("request-timeout", "limits.request_timeout"),
    ("max-filters", "limits.max_filters"),
    ("max-publish-events", "limits.max_publish_events"),
    ("max-publish-bytes", "limits.max_publish_bytes"),
    ("max-event-bytes", "limits.max_event_bytes"),
    ("quota-observe-only", "quotas.observe_only"),
    (
        "quota-address-subscriptions",
        "quotas.address.subscriptions",
    ),
    ("quota-address-filters", "quotas.address.filters"),
    (
        "quota-address-publish-events",
        "quotas.address.publish_events",
    ),
    (
        "quota-address-publish-bytes",
        "quotas.address.publish_bytes",
    ),
    (
        "quota-address-auth-failures",
        "quotas.address.auth_failures",
    ),
    (
        "quota-principal-connections",
        "quotas.principal.connections",
    ),
    (
        "quota-principal-subscriptions",
        "quotas.principal.subscriptions",
    ),
    ("quota-principal-filters", "quotas.principal.filters"),
    (
        "quota-principal-publish-events",
        "quotas.principal.publish_events",
    ),
    (
        "quota-principal-publish-bytes",
        "quotas.principal.publish_bytes",
    ),
    ("max-streams", "http2.max_concurrent_streams"),
    ("preface-timeout", "http2.preface_timeout"),
    ("keep-alive-interval", "http2.keep_alive_interval"),
    ("keep-alive-timeout", "http2.keep_alive_timeout"),
    ("write-timeout", "http2.write_timeout"),
];

/// Keys that were renamed, and what they are now.
const FORMER_KEYS: &[(&str, &str)] = &[
    ("auth.jwt.keys", "auth.jwt.key_sets"),
    ("auth.jwt.keys_ca", "auth.jwt.key_set_ca"),
    ("auth.jwt.refresh", "auth.jwt.key_set_refresh_interval"),
    ("auth.jwt.max_age", "auth.jwt.key_set_max_age"),
    ("http2.max_streams", "http2.max_concurrent_streams"),
];

#[test]
fn flags_and_variables_are_made_from_keys() {
    let setting = Setting::of("http2.stream_window").unwrap();
    assert_eq!(setting.flag(), "http2-stream-window");
    assert_eq!(setting.variable(), "TIDEGATE_HTTP2_STREAM_WINDOW");
}

#[test]
fn a_former_name_is_refused_and_the_present_one_is_named() {
    for (flag, key) in FORMER_FLAGS {
        let setting = Setting::nearest(flag).unwrap_or_else(|| panic!("{flag}"));
        assert_eq!(setting.key, *key, "{flag}");
        let variable = format!("TIDEGATE_{}", flag.replace('-', "_").to_uppercase());
        let told = read(Sources {
            file: None,
            environment: &environment([(&variable, "1")]),
            flags: &[],
        });
        let expected = format!(
            "{variable}: there is no such setting; did you mean {}?",
            setting.variable()
        );
        assert_eq!(told.unwrap_err()[0].to_string(), expected);
    }
    for (former, key) in FORMER_KEYS {
        let told = problems(&format!("{former} = 1\n"));
        let expected = format!("there is no setting `{former}`; did you mean `{key}`?");
        assert_eq!(told, [(1, expected)]);
    }
}

#[test]
fn slip_in_a_variable_is_refused() {
    for (variable, meant) in [
        ("TIDEGATE_AUTH_TOKNES", "TIDEGATE_AUTH_TOKENS"),
        ("TIDEGATE_AUTHTOKENS", "TIDEGATE_AUTH_TOKENS"),
        ("TIDEGATE_AUTH_RULSE", "TIDEGATE_AUTH_RULES"),
        ("TIDEGATE_MEMORYBUDGET", "TIDEGATE_MEMORY_BUDGET"),
    ] {
        let told = read(Sources {
            file: None,
            environment: &environment([(variable, "1")]),
            flags: &[],
        });
        let expected = format!("{variable}: there is no such setting; did you mean {meant}?");
        assert_eq!(told.unwrap_err()[0].to_string(), expected);
    }
}

#[test]
fn variables_that_orchestrators_set_are_left_alone() {
    for service in [
        "TIDEGATE",
        "TIDEGATE_ADMIN",
        "TIDEGATE_HTTP",
        "TIDEGATE_LISTEN_TLS",
    ] {
        for name in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "PORT",
            "PORT_50051_TCP",
            "PORT_50051_TCP_PROTO",
            "PORT_50051_TCP_PORT",
            "PORT_50051_TCP_ADDR",
        ] {
            let name = format!("{service}_{name}");
            let read = read(Sources {
                file: None,
                environment: &environment([(&name, "tcp://10.0.0.1:50051")]),
                flags: &[],
            });
            assert!(read.is_ok(), "{}", read.unwrap_err()[0]);
        }
    }
}

#[test]
fn a_reload_changes_what_it_may_and_names_the_rest() {
    let mut running = Configuration::default();
    let mut next = Configuration::default();
    next.server.history.max_events = 5;
    next.server.quotas.observe_only = true;
    next.server.service.max_filters = 7;
    let reloaded = reload(&mut running, &next);
    assert_eq!(reloaded.changed, ["history.events", "quotas.observe_only"]);
    assert_eq!(reloaded.needs_restart, ["limits.max_filters"]);
    assert_eq!(running.server.history.max_events, 5);
    assert_ne!(running.server.service.max_filters, 7);
    // A setting that needs a restart is named again.
    let again = reload(&mut running, &next);
    assert_eq!(again.changed, [""; 0]);
    assert_eq!(again.needs_restart, ["limits.max_filters"]);
}

#[test]
fn a_value_without_its_quotes_is_told_with_them() {
    for (text, expected) in [
        ("heartbeat = 5s", "heartbeat = \"5s\""),
        ("heartbeat=5s # a comment", "heartbeat = \"5s\""),
        ("memory_budget = 2GiB", "memory_budget = \"2GiB\""),
        ("listen = 0.0.0.0:50051", "listen = \"0.0.0.0:50051\""),
        ("log = info", "log = \"info\""),
        ("heartbeat = \u{201c}5s\u{201d}", "heartbeat = \"5s\""),
        ("admin = True", "admin = true"),
    ] {
        let told = problems(&format!("# first\n{text}\n"));
        assert_eq!(told[0].0, 2, "{told:?}");
        assert!(told[0].1.ends_with(expected), "{told:?}");
        let hints = told
            .iter()
            .filter(|(_, message)| message.contains("write "));
        assert!(hints.count() <= 2, "{told:?}");
    }
    // A number needs none, and the fault is another.
    let told = problems("heartbeat = \"5s\"\nheartbeat.x = 1\n");
    assert!(
        told.iter()
            .all(|(_, message)| !message.contains("quotes: write")),
        "{told:?}"
    );
}

#[test]
fn orchestrators_are_not_even_warned_of() {
    let environment = environment([
        ("TIDEGATE_PORT", "tcp://10.0.0.1:50051"),
        ("TIDEGATE_PORT_50051_TCP_PORT", "50051"),
        ("TIDEGATE_SERVICE_PORT_HTTP_PLAIN", "50051"),
        ("TIDEGATE_FOO", "1"),
    ]);
    let (_, written) = read(Sources {
        file: None,
        environment: &environment,
        flags: &[],
    })
    .unwrap();
    let warned: Vec<_> = written.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].starts_with("TIDEGATE_FOO: "), "{warned:?}");
}
