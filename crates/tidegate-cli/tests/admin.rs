//! `tidegate clients`, `publishers`, `kick` and `stats` against a server of their own.
#![cfg(target_os = "linux")]

mod child;

use std::{
    io::Write as _,
    net::TcpStream,
    process::{Command, Output},
};

use child::Serve;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidegate_client::{Client, Error, NewEvent, SubscribeOptions, Subscription, Update};

fn run(server: &Serve, arguments: &[&str]) -> Output {
    let url = server.url();
    Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(arguments)
        .args(["--server", &url])
        .output()
        .unwrap()
}

fn said(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    std::str::from_utf8(&output.stdout).unwrap()
}

fn json_lines(output: &Output) -> Vec<Value> {
    let lines = said(output).lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

async fn subscribed(client: &Client, id: &str) -> Subscription {
    let options = SubscribeOptions::new(["t", "u.*"]).client_id(id);
    let mut subscription = client.subscribe(options);
    let first = subscription.next().await.unwrap().unwrap();
    assert!(matches!(first, Update::Subscribed(_)));
    subscription
}

async fn publish(client: &Client, payload: &'static [u8], count: usize) {
    let event = NewEvent {
        topic: "t".into(),
        payload: payload.into(),
        ..NewEvent::default()
    };
    client.publish(vec![event; count]).await.unwrap();
}

/// Waits until something is so.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Waits until a line of the command in JSON is as wanted.
async fn until_listed(server: &Serve, command: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let listed = json_lines(&run(server, &[command, "--output", "json"]));
        if let Some(row) = listed.into_iter().find(|row| wanted(row)) {
            return row;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_was_stopped_is_listed_with_what_it_has_lost() {
    let server = Serve::start(&[]);
    let mut stopped = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["sub", "t", "--client-id", "stopped", "--max-events", "100"])
        .args(["--server", &server.url()])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until_listed(&server, "clients", |row| row["client_id"] == "stopped").await;
    let signal = |signal| kill_process(Pid::from_child(&stopped), signal).unwrap();
    signal(Signal::STOP);
    let client = Client::connect_lazy(server.url()).unwrap();
    static PAYLOAD: [u8; 10_000] = [b'x'; 10_000];
    const PUBLISHED: u64 = 2_000;
    for _ in 0..PUBLISHED / 100 {
        publish(&client, &PAYLOAD, 100).await;
    }
    let row = until_listed(&server, "clients", |row| row["pending_lost_events"] != 0).await;
    let number = |name: &str| row[name].as_u64().unwrap();
    // 100 events of 10,000 bytes are less than the limit of 1 MiB.
    assert_eq!(number("backlog"), 100, "{row}");
    assert_eq!(number("lost_events"), 0, "{row}");
    let lost = PUBLISHED - 100 - number("delivered_events");
    assert_eq!(number("pending_lost_events"), lost, "{row}");
    let table = run(&server, &["clients"]);
    assert!(said(&table).contains("PENDING LOSS"), "{table:?}");
    // Told, it is no longer pending.
    signal(Signal::CONT);
    let row = until_listed(&server, "clients", |row| row["backlog"] == 0).await;
    assert_eq!(row["lost_events"], lost, "{row}");
    assert_eq!(row["pending_lost_events"], 0, "{row}");
    stopped.kill().unwrap();
    stopped.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_lists_the_worst_first_as_table_and_json() {
    let server = Serve::start(&[]);
    let client = Client::connect_lazy(server.url()).unwrap();
    let mut reader = subscribed(&client, "reader").await;
    let small = Client::builder(server.url()).stream_window(65_535);
    let _behind = subscribed(&small.connect_lazy().unwrap(), "behind").await;
    static PAYLOAD: [u8; 10_000] = [b'x'; 10_000];
    for _ in 0..10 {
        publish(&client, &PAYLOAD, 100).await;
        for _ in 0..100 {
            let update = reader.next().await.unwrap().unwrap();
            assert!(matches!(update, Update::Event(_)), "{update:?}");
        }
    }
    let listed = json_lines(&run(&server, &["clients", "--output", "json"]));
    let ids: Vec<_> = listed
        .iter()
        .map(|row| row["client_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["behind", "reader"]);
    assert!(listed[0]["backlog"].as_u64().unwrap() > 0);
    assert_eq!(listed[1]["delivered_events"], 1_000);
    assert_eq!(listed[1]["filters"], serde_json::json!(["t", "u.*"]));
    assert_eq!(listed[1]["overflow"], "drop-oldest");

    let by_age = json_lines(&run(
        &server,
        &[
            "clients", "--sort", "since", "--output", "json", "--limit", "1",
        ],
    ));
    assert_eq!(by_age.len(), 1);
    assert_eq!(by_age[0]["client_id"], "reader");

    let output = run(&server, &["clients", "--client-id", "reader"]);
    let lines: Vec<_> = said(&output).lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("CLIENT  ADDRESS") && lines[0].ends_with("FILTERS"));
    assert!(lines[1].starts_with("reader  127.0.0.1:") && lines[1].ends_with("t u.*"));
}

/// A call of `PublishStream` that has sent one request with two events, and whose windows have no room for an answer.
fn publisher_that_does_not_read(server: &Serve) -> TcpStream {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let field = |(name, value): (&str, &str)| {
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        let (name_length, value_length) = (length(name), length(value));
        [
            &[0, name_length],
            name.as_bytes(),
            &[value_length],
            value.as_bytes(),
        ]
        .concat()
    };
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "server"),
        (":path", "/tidegate.v1.EventService/PublishStream"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let event = b"\x0a\x03\x0a\x01t";
    let request = [&[0, 0, 0, 0, 10], &event[..], event].concat();
    let mut socket = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
    let bytes = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        // SETTINGS_INITIAL_WINDOW_SIZE is 0.
        frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]),
        frame(1, 4, 1, &headers.map(field).concat()),
        frame(0, 0, 1, &request),
    ];
    socket.write_all(&bytes.concat()).unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn publisher_that_does_not_read_is_listed_first_with_how_long() {
    let server = Serve::start(&[]);
    assert_eq!(said(&run(&server, &["publishers", "--output", "json"])), "");
    let mut reading = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["pub", "t", "--server", &server.url()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = reading.stdin.take().unwrap();
    lines.write_all(b"1\n2\n3\n").unwrap();
    until_listed(&server, "publishers", |row| row["events"] == 3).await;
    let socket = publisher_that_does_not_read(&server);
    let is_unread = |row: &Value| row["unread_seconds"].as_f64().is_some_and(|it| it > 0.0);
    let unread = until_listed(&server, "publishers", is_unread).await;
    assert_eq!(
        (&unread["requests"], &unread["events"]),
        (&1.into(), &2.into()),
        "{unread}"
    );
    assert!(unread["unread_bytes"].as_u64().unwrap() > 0, "{unread}");
    let own = socket.local_addr().unwrap().to_string();
    assert_eq!(unread["address"], own);
    // The longer it takes none, the longer it says.
    let seconds = |row: &Value| row["unread_seconds"].as_f64().unwrap_or_default();
    until_listed(&server, "publishers", |row| seconds(row) > seconds(&unread)).await;

    let listed = json_lines(&run(&server, &["publishers", "--output", "json"]));
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!(listed[0]["address"], own, "{listed:?}");
    assert_eq!(listed[1]["unread_bytes"], 0, "{listed:?}");
    assert_eq!(listed[1]["unread_seconds"], Value::Null, "{listed:?}");
    let arguments = [
        "publishers",
        "--sort",
        "since",
        "--output",
        "json",
        "--limit",
        "1",
    ];
    let oldest = json_lines(&run(&server, &arguments));
    assert_eq!(oldest.len(), 1, "{oldest:?}");
    assert_eq!(oldest[0]["events"], 3, "{oldest:?}");
    let output = run(&server, &["publishers"]);
    let table: Vec<_> = said(&output).lines().collect();
    assert_eq!(table.len(), 3, "{table:?}");
    assert!(table[0].starts_with("STREAM  ADDRESS"), "{table:?}");
    assert!(table[0].contains("UNREAD FOR"), "{table:?}");
    assert!(table[1].contains(&own), "{table:?}");

    drop((socket, lines));
    assert!(reading.wait().unwrap().success());
    until(|| said(&run(&server, &["publishers", "--output", "json"])).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kick_ends_a_client_and_reports_an_unknown_one() {
    let server = Serve::start(&[]);
    let client = Client::connect_lazy(server.url()).unwrap();
    let mut kicked = subscribed(&client, "kicked").await;
    assert_eq!(said(&run(&server, &["kick", "kicked"])), "1 stream ended\n");
    let error = kicked.next().await.unwrap().unwrap_err();
    // It does not reconnect.
    assert!(matches!(error, Error::Disconnected(_)), "{error}");
    drop(kicked);
    let none = run(&server, &["kick", "nobody", "--output", "json"]);
    assert_eq!(none.status.code(), Some(1));
    assert_eq!(none.stdout, b"{\"disconnected\":0}\n");
    let message = String::from_utf8(none.stderr).unwrap();
    assert!(message.contains("client nobody has no stream"), "{message}");
    let invalid = run(&server, &["kick", "a.b"]);
    assert_eq!(invalid.status.code(), Some(5), "{invalid:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_prints_the_numbers_as_table_and_json() {
    let server = Serve::start(&[]);
    let client = Client::connect_lazy(server.url()).unwrap();
    let _subscription = subscribed(&client, "one").await;
    publish(&client, b"x", 3).await;
    let told = json_lines(&run(&server, &["stats", "--output", "json"]));
    assert_eq!(told[0]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(told[0]["published_events"], 3);
    assert_eq!(told[0]["subscriptions"], 1);
    assert_eq!(told[0]["ready"], true);
    let output = run(&server, &["stats"]);
    let rows: Vec<Vec<_>> = said(&output)
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["NUMBER", "VALUE"]);
    assert!(rows.contains(&vec!["published_events", "3"]), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_commands_fail_where_the_service_is_off() {
    let server = Serve::start(&["--admin=false"]);
    let refused = run(&server, &["stats"]);
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("Unimplemented"), "{message}");
}
