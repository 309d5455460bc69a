//! `tidegate bench` against a server that it starts: its figures must be consistent.
#![cfg(target_os = "linux")]

mod child;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use child::Serve;
use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .arg("bench")
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn report(arguments: &[&str]) -> Value {
    let output = bench(&[arguments, &["--output", "json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).expect("the output is JSON")
}

fn number(report: &Value, path: &str) -> f64 {
    let value = report.pointer(path).and_then(Value::as_f64);
    value.unwrap_or_else(|| panic!("{path} is no number in {report:#}"))
}

fn count(report: &Value, path: &str) -> u64 {
    let value = report.pointer(path).and_then(Value::as_u64);
    value.unwrap_or_else(|| panic!("{path} is no count in {report:#}"))
}

/// Writes a file for a test. Returns its path.
fn write(name: &str, text: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{name}"));
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const SHORT: [&str; 4] = ["--duration", "400ms", "--warm-up", "100ms"];

fn assert_close(got: f64, expected: f64) {
    assert!(
        (got - expected).abs() <= expected.abs() * 1e-6,
        "{got} is not {expected}"
    );
}

/// Asserts the invariants of every report on a window with deliveries.
fn assert_consistent(report: &Value) {
    let seconds = number(report, "/figures/seconds");
    let delivered = number(report, "/figures/deliveries");
    assert!(delivered > 0.0);
    assert_close(
        number(report, "/figures/deliveries_per_second") * seconds,
        delivered,
    );
    let user = number(report, "/figures/server/cpu/user_seconds");
    let system = number(report, "/figures/server/cpu/system_seconds");
    let cost = number(report, "/figures/server/per_delivery/total_us");
    assert!(user + system > 0.0, "the server took no time");
    assert_close(cost * delivered / 1e6, user + system);
    let quantile = |name: &str| number(report, &format!("/figures/latency/{name}_us"));
    let quantiles = ["p50", "p90", "p99", "p999", "max"].map(quantile);
    assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{quantiles:?}");
    assert!(number(report, "/figures/client/cpu_share") > 0.0);
    assert!(count(report, "/figures/server/resident_before") > 0);
    assert_eq!(
        count(report, "/figures/totals/published"),
        count(report, "/figures/totals/accepted")
    );
}

#[test]
fn a_paced_fan_out_delivers_everything_to_everybody() {
    let fanout = [
        "fanout",
        "--subscribers",
        "12",
        "--connections",
        "4",
        "--rate",
        "200",
    ];
    let report = report(&[&fanout[..], &SHORT].concat());
    assert_consistent(&report);
    assert_eq!(count(&report, "/conditions/connections"), 4);
    assert_eq!(count(&report, "/figures/totals/published"), 100);
    assert_eq!(count(&report, "/figures/totals/delivered"), 1_200);
    assert_eq!(count(&report, "/figures/totals/missed"), 0);
    let samples = count(&report, "/figures/latency/samples");
    assert_eq!(
        samples,
        12 * 80,
        "every event that was due in the window, at every subscriber"
    );
}

#[test]
fn a_fan_out_flat_out_delivers_everything_to_everybody() {
    let report = report(&[&["fanout", "--subscribers", "5"][..], &SHORT].concat());
    assert_consistent(&report);
    assert_eq!(
        count(&report, "/figures/totals/delivered"),
        5 * count(&report, "/figures/totals/published")
    );
    assert_eq!(count(&report, "/figures/totals/missed"), 0);
}

#[test]
fn an_unbounded_fan_out_accounts_for_what_it_drops() {
    let report = report(
        &[
            &["fanout", "--subscribers", "5", "--ahead", "0"][..],
            &SHORT,
        ]
        .concat(),
    );
    assert_consistent(&report);
    assert_eq!(
        count(&report, "/figures/totals/delivered") + count(&report, "/figures/totals/missed"),
        5 * count(&report, "/figures/totals/published")
    );
}

#[test]
fn every_filter_shape_gets_its_events() {
    for (shape, published, delivered) in [
        // 100 events to 3 topics in turn, 6 subscribers, two for each topic.
        ("literal", 100, 200),
        ("wildcard", 100, 600),
        // 100 events to 6 topics in turn.
        ("own", 100, 100),
        // 100 events to 7 topics in turn: 86 go to one subscriber, 14 to all.
        ("own-and-shared", 100, 86 + 14 * 6),
        ("distinct", 100, 600),
    ] {
        let fanout = [
            "fanout",
            "--subscribers",
            "6",
            "--topics",
            "3",
            "--rate",
            "200",
        ];
        let report = report(&[&fanout[..], &["--filter", shape], &SHORT].concat());
        assert_eq!(
            count(&report, "/figures/totals/published"),
            published,
            "{shape}"
        );
        assert_eq!(
            count(&report, "/figures/totals/delivered"),
            delivered,
            "{shape}"
        );
    }
}

#[test]
fn stalled_clients_do_not_change_what_others_get() {
    let fanout = [
        "fanout",
        "--subscribers",
        "6",
        "--stalled",
        "2",
        "--rate",
        "200",
    ];
    let report = report(&[&fanout[..], &SHORT].concat());
    assert_consistent(&report);
    assert_eq!(count(&report, "/figures/totals/delivered"), 400);
}

#[test]
fn everything_published_is_accepted() {
    let report = report(
        &[
            &["publish", "--publishers", "2", "--subscribers", "2"][..],
            &SHORT,
        ]
        .concat(),
    );
    assert_consistent(&report);
    assert!(number(&report, "/figures/answer_latency/p50_us") > 0.0);
    assert!(number(&report, "/figures/server/per_event/total_us") > 0.0);
}

#[test]
fn clients_subscribe_and_leave() {
    for reconnect in [&[][..], &["--reconnect"]] {
        let report = report(&[&["connect", "--clients", "4"][..], reconnect, &SHORT].concat());
        let subscriptions = count(&report, "/subscriptions");
        assert!(subscriptions > 0);
        // At the edges of the window, a subscription may be counted without its latency, or the reverse.
        let samples = count(&report, "/latency/samples");
        assert!(
            samples.abs_diff(subscriptions) <= 8,
            "{samples} of {subscriptions}"
        );
        assert!(number(&report, "/server_per_subscription/total_us") > 0.0);
    }
}

#[test]
fn clients_come_in_a_storm_and_come_back() {
    for options in [&[][..], &["--restart"], &["--tls"]] {
        let storm = ["storm", "--clients", "40", "--missed", "70"];
        let report = report(&[&storm[..], options].concat());
        for wave in ["opened", "first", "back"] {
            let number = |name: &str| number(&report, &format!("/{wave}/{name}"));
            assert_eq!(number("caught_up/samples"), 40.0, "{wave}");
            let (connected, caught_up) = (number("connected/max_us"), number("caught_up/max_us"));
            assert!(connected <= caught_up, "{connected} {caught_up}");
            // Three digits of it are kept.
            let seconds = number("seconds");
            assert!((seconds * 1e6 / caught_up - 1.0).abs() < 0.01);
            assert_close(number("clients_per_second"), 40.0 / seconds);
        }
        assert_eq!(
            report["cut"],
            if options == ["--restart"] {
                "server"
            } else {
                "connections"
            }
        );
    }
}

#[test]
fn idle_subscribers_cost_memory() {
    let idle = [
        "idle",
        "--connections",
        "20",
        "--streams-per-connection",
        "5",
    ];
    let report = report(&[&idle[..], &["--duration", "100ms"]].concat());
    let each = number(&report, "/memory/per_subscriber");
    assert!(each > 0.0);
    assert_close(number(&report, "/memory/per_connection"), each * 5.0);
}

#[test]
fn the_table_for_people_has_the_figures() {
    let fanout = ["fanout", "--subscribers", "2", "--rate", "100"];
    let output = bench(&[&fanout[..], &SHORT].concat());
    let table = String::from_utf8_lossy(&output.stdout);
    for label in [
        "processor per delivery",
        "latency p99.9",
        "processor model",
        "memory per subscriber",
    ] {
        assert!(table.contains(label), "{label:?} is not in {table}");
    }
}

#[test]
fn impossible_requests_are_explained() {
    for (arguments, code, explanation) in [
        (
            &["fanout", "--payload", "3"][..],
            2,
            "--payload must be at least 16",
        ),
        (
            &["fanout", "--subscribers", "2", "--stalled", "2"],
            2,
            "--stalled must leave",
        ),
        (&["fanout", "--server-cores", "900"], 2, "nproc"),
        (&["storm", "--clients", "0"], 2, "at least 1"),
        (&["storm", "--clients", "10000000"], 2, "ulimit -Hn"),
        (
            &["fanout", "--server", "http://127.0.0.1:1"],
            3,
            "is it running",
        ),
        (
            &["idle", "--server", "http://127.0.0.1:1"],
            2,
            "--server-pid",
        ),
    ] {
        let output = bench(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(explanation), "{arguments:?}: {errors}");
    }
}

#[test]
fn bench_makes_a_certificate_for_tls() {
    for arguments in [
        &["fanout", "--subscribers", "6", "--connections", "2"][..],
        &["publish", "--subscribers", "2"],
    ] {
        let report = report(&[arguments, &["--tls"], &SHORT].concat());
        assert_consistent(&report);
        assert_eq!(report["environment"]["tls"], true);
    }
    let plain = ["fanout", "--subscribers", "2", "--rate", "100"];
    let report = report(&[&plain[..], &SHORT].concat());
    assert_eq!(report["environment"]["tls"], false);
}

#[test]
fn tls_is_spoken_by_every_benchmark() {
    let churn = report(&[&["connect", "--tls", "--reconnect"][..], &SHORT].concat());
    assert!(count(&churn, "/subscriptions") > 0);
    let idle = report(&["idle", "--tls", "--connections", "5", "--duration", "100ms"]);
    assert!(number(&idle, "/memory/per_subscriber") > 0.0);
}

#[test]
fn bench_sends_credentials_and_checks_the_certificate() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate = write("certificate.pem", &made.cert.pem());
    let key = write("key.pem", &made.signing_key.serialize_pem());
    let tokens = write(
        "tokens",
        &tidegate_server::token_line("me", "secret").unwrap(),
    );
    let rule = "[[rule]]\nprincipals = ['me']\npublish = { allow = ['>'] }\nsubscribe = { allow = ['>'] }\n";
    let rules = write("rules.toml", rule);
    let server = Serve::start(&[
        "--tls-certificate",
        &certificate,
        "--tls-key",
        &key,
        "--auth-tokens",
        &tokens,
        "--auth-rules",
        &rules,
    ]);
    let url = format!("https://{}", server.address());
    let fanout = |options: &[&str]| {
        let fanout = [
            "fanout",
            "--subscribers",
            "3",
            "--rate",
            "200",
            "--server",
            &url,
        ];
        bench(&[&fanout[..], &SHORT, options].concat())
    };
    let token = write("token", "secret\n");
    let other = write("other", "another\n");
    let trusted = ["--tls-ca", &certificate];
    for (options, code) in [
        (&[&trusted[..], &["--token-file", &token]].concat()[..], 0),
        (&[&trusted[..], &["--token-file", &other]].concat(), 4),
        (&trusted[..], 4),
        (&["--token-file", &token], 3),
    ] {
        let output = fanout(options);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{options:?}: {errors}");
        let is_explained = code != 3 || errors.contains("--tls-ca");
        assert!(is_explained, "{errors}");
    }
}
