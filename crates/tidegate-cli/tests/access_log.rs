//! The access log of `tidegate serve`: a line for each call, whatever it ends by.
#![cfg(target_os = "linux")]

mod child;

use std::{
    io::{BufRead as _, BufReader},
    net::TcpStream,
    process::Stdio,
};

use child::{Folder, Log, Serve, program};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidegate_client::{Client, NewEvent, SubscribeOptions, Subscription, Update};

const FILTER: &str = "off,tidegate::access=info";

/// A server, and its log.
struct Logged {
    server: Serve,
    log: Log,
}

impl Logged {
    fn start(arguments: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", arguments)
    }

    fn start_at(listen: &str, arguments: &[&str]) -> Self {
        let mut command = program(["serve", "--listen", listen, "--drain-timeout", "1s"]);
        command.args(arguments);
        let (server, log) = Serve::logging(command);
        Self { server, log }
    }

    fn client(&self) -> Client {
        Client::connect_lazy(self.server.url()).unwrap()
    }

    /// The fields of the next line, which is JSON.
    fn fields(&mut self) -> Value {
        let line = self.log.line();
        let record: Value = serde_json::from_str(&line).expect(&line);
        assert_eq!(record["target"], "tidegate::access", "{line}");
        assert_eq!(record["level"], "INFO", "{line}");
        record["fields"].clone()
    }

    /// The reason in the next line, which is about this client.
    fn reason(&mut self, id: &str) -> String {
        let fields = self.fields();
        assert_eq!(fields["client_id"], id, "{fields}");
        fields["reason"].as_str().unwrap().to_owned()
    }
}

fn json() -> Logged {
    Logged::start(&["--log", FILTER, "--log-format", "json"])
}

async fn subscribed(client: &Client, id: &str) -> Subscription {
    let options = SubscribeOptions::new(["orders.*", "news"]).client_id(id);
    let mut subscription = client.subscribe(options.no_reconnect());
    let first = subscription.next().await.unwrap().unwrap();
    assert!(matches!(first, Update::Subscribed(_)), "{first:?}");
    subscription
}

fn event(topic: &str) -> NewEvent {
    NewEvent {
        topic: topic.into(),
        payload: "hello".into(),
        ..NewEvent::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_is_logged_with_what_became_of_it() {
    let mut logged = json();
    let client = logged.client();
    let mut subscription = subscribed(&client, "one").await;
    client.publish(vec![event("news"); 3]).await.unwrap();
    for _ in 0..3 {
        subscription.next().await.unwrap().unwrap();
    }
    let published = logged.fields();
    assert_eq!(published["method"], "/tidegate.v1.EventService/Publish");
    assert_eq!(
        (&published["code"], &published["events"]),
        (&"Ok".into(), &3.into())
    );
    assert!(published["received"].as_u64().unwrap() > 15, "{published}");
    client.admin().disconnect("one").await.unwrap();
    while let Some(Ok(_)) = subscription.next().await {}
    // The stream and the call that ended it.
    let ended = [logged.fields(), logged.fields()];
    let stream = ended
        .iter()
        .find(|fields| fields["message"] == "stream ended");
    let stream = stream.expect("there is one");
    assert_eq!(stream["method"], "/tidegate.v1.EventService/Subscribe");
    assert_eq!(stream["client_id"], "one");
    assert_eq!(
        (&stream["code"], &stream["reason"]),
        (&"Aborted".into(), &"DISCONNECTED".into())
    );
    assert_eq!(
        (&stream["filters"], &stream["first_filters"]),
        (&2.into(), &"orders.* news".into())
    );
    assert_eq!(
        (&stream["delivered"], &stream["lost"]),
        (&3.into(), &0.into())
    );
    assert_eq!(stream["protocol"], "h2");
    let address = stream["address"].as_str().unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert!(
        stream["position"].as_str().unwrap().ends_with(":3"),
        "{stream}"
    );
    assert!(stream["seconds"].as_f64().unwrap() > 0.0);
    assert!(stream["sent"].as_u64().unwrap() > 15, "{stream}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_ending_of_a_stream_is_logged_with_its_reason() {
    let mut logged = json();
    let client = logged.client();
    // Cancelled.
    drop(subscribed(&client, "leaves").await);
    assert_eq!(logged.reason("leaves"), "CLIENT_LEFT");
    // Taken over.
    let first = subscribed(&client, "twice").await;
    let second = subscribed(&client, "twice").await;
    assert_eq!(logged.reason("twice"), "TAKEN_OVER");
    drop((first, second));
    assert_eq!(logged.reason("twice"), "CLIENT_LEFT");
    // Lost with its connection.
    let url = logged.server.url();
    let mut killed = program([
        "sub",
        "news",
        "--client-id",
        "killed",
        "--output",
        "json",
        "--server",
        &url,
    ])
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    BufReader::new(killed.stdout.take().unwrap())
        .lines()
        .next()
        .unwrap()
        .unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(logged.reason("killed"), "CLIENT_LEFT");
    // Drained.
    let mut drained = subscribed(&client, "drained").await;
    kill_process(Pid::from_child(&logged.server.child), Signal::TERM).unwrap();
    while let Some(Ok(_)) = drained.next().await {}
    let fields = logged.fields();
    assert_eq!(
        (&fields["client_id"], &fields["reason"]),
        (&"drained".into(), &"SHUTTING_DOWN".into())
    );
    logged.server.child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_calls_are_logged_with_their_principal_and_their_reason() {
    let folder = Folder::new("tidegate-access");
    let line = tidegate_server::token_line("alice", "good").unwrap();
    let tokens = folder.write("tokens", line);
    let rule = "[[rule]]\nprincipals = [\"alice\"]\nsubscribe = { allow = [\"news\"] }\n";
    let rules = folder.write("rules", rule);
    let mut logged = Logged::start(&[
        "--log",
        FILTER,
        "--log-format",
        "json",
        "--auth-tokens",
        &tokens,
        "--auth-rules",
        &rules,
    ]);
    let with = |token: &str| {
        Client::builder(logged.server.url())
            .token(token)
            .connect_lazy()
            .unwrap()
    };
    let (good, bad) = (with("good"), with("bad"));
    let refused = async |client: &Client, filter: &str| {
        let options = SubscribeOptions::new([filter]).no_reconnect();
        client.subscribe(options).next().await.unwrap().unwrap_err();
    };
    refused(&bad, "news").await;
    let fields = logged.fields();
    assert_eq!(
        (&fields["principal"], &fields["reason"]),
        (&Value::Null, &"CREDENTIALS_INVALID".into())
    );
    assert_eq!(fields["code"], "Unauthenticated");
    refused(&good, "orders").await;
    let fields = logged.fields();
    assert_eq!(
        (&fields["principal"], &fields["reason"]),
        (&"alice".into(), &"NOT_ALLOWED".into())
    );
    // A method for administrators.
    good.admin().server().await.unwrap_err();
    let fields = logged.fields();
    assert_eq!(fields["method"], "/tidegate.v1.AdminService/GetServer");
    assert_eq!(
        (&fields["principal"], &fields["reason"]),
        (&"alice".into(), &"NOT_ALLOWED".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn access_log_is_off_unless_the_filter_names_it() {
    let mut logged = Logged::start(&["--log", "info"]);
    let client = logged.client();
    client.publish(vec![event("news")]).await.unwrap();
    drop(subscribed(&client, "one").await);
    kill_process(Pid::from_child(&logged.server.child), Signal::TERM).unwrap();
    loop {
        let line = logged.log.line();
        assert!(!line.contains("tidegate::access"), "{line}");
        if line.contains(" ended") {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_a_caller_chooses_write_no_line_and_no_field_of_their_own() {
    for format in ["text", "json"] {
        let mut logged = Logged::start(&["--log", FILTER, "--log-format", format]);
        let client = logged.client();
        // As they are allowed: without white space and control characters.
        let filter = "a\"reason=\"FORGED\u{202e}";
        let mut subscription =
            client.subscribe(SubscribeOptions::new([filter]).client_id("b\"c=d"));
        subscription.next().await.unwrap().unwrap();
        drop(subscription);
        let line = logged.log.line();
        if format == "json" {
            let record: Value = serde_json::from_str(&line).expect(&line);
            assert_eq!(record["fields"]["reason"], "CLIENT_LEFT", "{line}");
            assert_eq!(record["fields"]["first_filters"], filter);
            assert_eq!(record["fields"]["client_id"], "b\"c=d");
        } else {
            // Quoted, and the quotes in it escaped.
            let quoted = r#"first_filters="a\"reason=\"FORGED\u{202e}""#;
            assert!(line.contains(quoted), "{line}");
            assert!(line.contains(r#"client_id="b\"c=d""#), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_told_with_their_end_where_debug_is_asked_for() {
    let mut logged = Logged::start(&["--log", "tidegate_server=debug"]);
    let peer = TcpStream::connect(logged.server.address()).unwrap();
    let address = format!("peer={}", peer.local_addr().unwrap());
    let mut until = |part: &str| loop {
        let line = logged.log.line();
        if line.contains(part) && line.contains(&address) {
            return line;
        }
    };
    until("connection accepted");
    drop(peer);
    let ended = until("connection ended");
    assert!(ended.contains("before it began"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_a_sockets_file_are_called_unix() {
    let folder = Folder::new("tidegate-peers");
    let listen = format!("unix:{}", folder.at("socket"));
    let line = tidegate_server::token_line("alice", "good").unwrap();
    let tokens = folder.write("tokens", line);
    let filter = "warn,tidegate_server=debug,tidegate::access=debug";
    let arguments = ["--log", filter, "--auth-tokens", &tokens];
    let connections = ["--connections-max", "1"];
    let mut logged = Logged::start_at(&listen, &[&arguments[..], &connections].concat());
    let client = Client::builder(&*listen)
        .token("bad")
        .connect_lazy()
        .unwrap();
    client.publish(vec![event("news")]).await.unwrap_err();
    // Its connection ends with it.
    drop(client);
    let mut until = |part: &str| loop {
        let line = logged.log.line();
        assert!(!line.contains("[::]") && !line.contains("=::"), "{line}");
        if line.contains(part) {
            return line;
        }
    };
    assert!(until("connection accepted").contains("peer=unix"));
    assert!(until("call begins").contains("address=unix"));
    assert!(until("credentials refused").contains("address=unix"));
    assert!(until("call ended").contains("address=unix"));
    assert!(until("connection ended").contains("peer=unix"));
    // One may be open, so that another is one too many.
    let connect = || std::os::unix::net::UnixStream::connect(folder.at("socket")).unwrap();
    let _open = [connect(), connect()];
    assert!(until("connection refused").contains("peer=unix"));
}
