//! The HTTP listener: metrics that move when their cause happens, health, and readiness.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use tidegate::{StallPolicy, SweepRules, proto::*};
use tidegate_server::{Quota, QuotaConfig, ServerConfig, TlsConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tonic::Code;

use crate::{
    common::*,
    pki::{Authority, Folder},
};

/// The status and the body that a GET is answered with.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    say(address, "GET", path).await
}

async fn say(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Every value of a scrape, by its name with labels.
async fn scrape(server: &Running) -> BTreeMap<String, f64> {
    let (status, text) = get(server.http.unwrap(), "/metrics").await;
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"));
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let values = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    });
    values.collect()
}

/// Waits until a metric has the value.
async fn until_metric(server: &Running, name: &str, value: f64) {
    let pause = Duration::from_millis(10);
    if !comes_true(pause, async || scrape(server).await[name] == value).await {
        panic!("{name} is {}, not {value}", scrape(server).await[name]);
    }
}

fn watched() -> ServerConfig {
    ServerConfig {
        http: Some("127.0.0.1:0".parse().unwrap()),
        ..ServerConfig::default()
    }
}

fn limited(client_id: &str, max_events: u32, overflow: Overflow) -> SubscribeRequest {
    SubscribeRequest {
        client_id: client_id.into(),
        limits: Some(Limits {
            max_events,
            max_bytes: 1 << 30,
            overflow: overflow.into(),
        }),
        ..filters(&["t"])
    }
}

#[tokio::test]
async fn the_http_listener_is_off_by_default() {
    assert_eq!(Running::start(ServerConfig::default()).await.http, None);
}

#[tokio::test]
async fn metrics_follow_events_and_subscriptions() {
    let server = Running::start(watched()).await;
    let before = scrape(&server).await;
    assert_eq!(before["tidegate_events_published_total"], 0.0);
    assert_eq!(before["tidegate_ready"], 1.0);

    let mut client = server.client().await;
    let mut stream = subscribe(&mut client, filters(&["t"])).await;
    publish(&mut client, vec![event("t", "1"), event("other", "2")])
        .await
        .unwrap();
    stream.events(1).await;
    let now = scrape(&server).await;
    for (name, value) in [
        ("tidegate_events_published_total", 2.0),
        ("tidegate_deliveries_matched_total", 1.0),
        ("tidegate_deliveries_total", 1.0),
        ("tidegate_connections", 1.0),
        ("tidegate_subscriptions", 1.0),
        ("tidegate_clients", 1.0),
        // The filter, and the client's own topic.
        ("tidegate_feeds", 2.0),
        ("tidegate_streams_begun_total", 1.0),
        ("tidegate_history_events", 2.0),
    ] {
        assert_eq!(now[name], value, "{name}");
    }
    for name in [
        "tidegate_bytes_received_total",
        "tidegate_bytes_sent_total",
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
        "process_virtual_memory_bytes",
        "tidegate_history_bytes",
        "tidegate_retained_bytes",
        "tidegate_memory_budget_bytes",
    ] {
        assert!(now[name] > 0.0, "{name}");
    }

    let replayed = SubscribeRequest {
        replay_last: 1,
        ..filters(&["t"])
    };
    let mut replaying = subscribe(&mut client, replayed).await;
    replaying.next().await.unwrap();
    let now = scrape(&server).await;
    assert_eq!(now["tidegate_deliveries_replayed_total"], 1.0);

    drop((stream, replaying));
    let left = "tidegate_streams_ended_total{reason=\"CLIENT_LEFT\"}";
    until_metric(&server, left, 2.0).await;
    assert_eq!(scrape(&server).await["tidegate_subscriptions"], 0.0);
}

#[tokio::test]
async fn bytes_are_counted_as_they_cross_the_sockets() {
    let server = Running::start(watched()).await;
    let mut client = server.client().await;
    let mut stream = subscribe(&mut client, filters(&["t"])).await;
    let counts = async || {
        let now = scrape(&server).await;
        ["sent", "received"].map(|way| now[&format!("tidegate_bytes_{way}_total")])
    };
    let [sent, received] = counts().await;
    publish(&mut client, vec![event("t", vec![b'x'; 100_000])])
        .await
        .unwrap();
    stream.events(1).await;
    // It came in once and went out once, with little around it.
    let now = counts().await;
    for bytes in [now[0] - sent, now[1] - received] {
        assert!((100_000.0..102_000.0).contains(&bytes), "{bytes}");
    }
}

#[tokio::test]
async fn chunks_are_counted_as_made_or_shared() {
    let server = Running::start(watched()).await;
    let mut client = server.client().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(subscribe(&mut client, filters(&["t"])).await);
    }
    // One batch is one chunk for each stream.
    let events = (0..20).map(|_| event("t", "1")).collect();
    publish(&mut client, events).await.unwrap();
    for stream in &mut streams {
        stream.events(20).await;
    }
    let now = scrape(&server).await;
    assert_eq!(now["tidegate_chunks_made_total"], 1.0);
    assert_eq!(now["tidegate_chunks_shared_total"], 3.0);
}

#[tokio::test]
async fn metrics_count_losses_by_reason_and_observe_lag() {
    let config = ServerConfig {
        sweep: SweepRules {
            stall_timeout: Some(Duration::from_millis(100)),
            ..SweepRules::default()
        },
        ..watched()
    };
    let server = Running::start(config).await;
    let mut publisher = server.client().await;
    let mut slow = server.client_with_small_windows().await;
    let mut stream = subscribe(&mut slow, limited("slow", 10, Overflow::DropOldest)).await;
    let mut newest = server.client_with_small_windows().await;
    let mut conflating = subscribe(&mut newest, limited("newest", 10, Overflow::Conflate)).await;
    for _ in 0..10 {
        let events = (0..100).map(|_| event("t", vec![b'x'; 10_000])).collect();
        publish(&mut publisher, events).await.unwrap();
    }
    until_metric(&server, "tidegate_subscriptions_stalled", 2.0).await;
    let has_looked = async || scrape(&server).await["tidegate_subscription_lag_seconds_sum"] > 0.0;
    assert!(comes_true(Duration::from_millis(10), has_looked).await);
    let behind = scrape(&server).await;
    let samples = behind["tidegate_subscription_backlog_events_count"];
    assert!(samples > 0.0);
    assert!(behind["tidegate_subscription_backlog_events_sum"] > 0.0);
    assert!(behind["tidegate_subscription_lag_seconds_sum"] > 0.0);
    assert!(behind["tidegate_subscription_backlog_events_bucket{le=\"1.0\"}"] < samples);
    // What the limits cost is certain, though nobody was told.
    let lost = "tidegate_events_lost_total{reason=\"overflow\"}";
    let pending = behind["tidegate_events_pending_loss"];
    assert!(pending > 0.0);
    assert_eq!(
        behind["tidegate_events_dropped_total"],
        pending + behind[lost]
    );

    while stream.counted == 0 {
        stream.next().await.unwrap();
    }
    while conflating.counted == 0 {
        conflating.next().await.unwrap();
    }
    let now = scrape(&server).await;
    assert!(now["tidegate_events_lost_total{reason=\"overflow\"}"] >= stream.counted as f64);
    assert!(now["tidegate_events_lost_total{reason=\"conflated\"}"] >= conflating.counted as f64);
    assert!(now["tidegate_gaps_total{reason=\"overflow\"}"] >= 1.0);
    assert!(now["tidegate_gaps_total{reason=\"conflated\"}"] >= 1.0);
    assert_eq!(now["tidegate_gaps_total{reason=\"evicted\"}"], 0.0);

    let elsewhere = SubscribeRequest {
        resume_after: Some(Position {
            epoch: 1,
            sequence: 5,
        }),
        ..filters(&["t"])
    };
    let mut resuming = subscribe(&mut publisher, elsewhere).await;
    while !matches!(resuming.next().await.unwrap(), Response::Gap(_)) {}
    let other_epoch = "tidegate_gaps_total{reason=\"epoch_changed\"}";
    assert_eq!(scrape(&server).await[other_epoch], 1.0);
}

#[tokio::test]
async fn metrics_count_evictions() {
    let config = ServerConfig {
        memory_budget: Some(1 << 20),
        ..watched()
    };
    let server = Running::start(config).await;
    let mut publisher = server.client().await;
    let mut slow = server.client_with_small_windows().await;
    let mut stream = subscribe(&mut slow, limited("slow", 60_000, Overflow::DropOldest)).await;
    for _ in 0..30 {
        let events = (0..100).map(|_| event("t", vec![b'x'; 10_000])).collect();
        publish(&mut publisher, events).await.unwrap();
    }
    while stream.counted == 0 {
        stream.next().await.unwrap();
    }
    let now = scrape(&server).await;
    assert!(now["tidegate_events_lost_total{reason=\"evicted\"}"] >= stream.counted as f64);
    assert!(now["tidegate_gaps_total{reason=\"evicted\"}"] >= 1.0);
}

#[tokio::test]
async fn metrics_count_streams_by_their_ending() {
    let server = Running::start(ServerConfig {
        sweep: SweepRules {
            stall_timeout: Some(Duration::from_millis(50)),
            on_stall: StallPolicy::Close,
            reset_grace: Duration::from_millis(50),
        },
        ..watched()
    })
    .await;
    let mut client = server.client().await;
    let named = |id: &str| SubscribeRequest {
        client_id: id.into(),
        ..filters(&["t"])
    };
    let mut old = subscribe(&mut client, named("a")).await;
    let new = subscribe(&mut client, named("a")).await;
    assert_eq!(old.next().await.unwrap_err().code(), Code::Aborted);
    drop((old, new));
    let ended = |reason: &str| format!("tidegate_streams_ended_total{{reason=\"{reason}\"}}");
    until_metric(&server, &ended("TAKEN_OVER"), 1.0).await;

    // It does not read, is ended, takes no notice, and is reset.
    let mut slow = server.client_with_small_windows().await;
    let _stuck = subscribe(&mut slow, limited("stuck", 10, Overflow::DropOldest)).await;
    for _ in 0..5 {
        let events = (0..100).map(|_| event("t", vec![b'x'; 10_000])).collect();
        publish(&mut client, events).await.unwrap();
    }
    until_metric(&server, "tidegate_streams_reset_total", 1.0).await;
    until_metric(&server, &ended("STALLED"), 1.0).await;
    let abandoned = scrape(&server).await["tidegate_deliveries_abandoned_total"];
    assert!(abandoned > 0.0);
}

#[tokio::test]
async fn metrics_count_refusals_by_reason() {
    let server = Running::start(ServerConfig {
        max_connections_per_address: Some(1),
        quotas: QuotaConfig {
            address: Quota {
                subscriptions: Some(1),
                ..Quota::default()
            },
            ..QuotaConfig::default()
        },
        ..watched()
    })
    .await;
    let mut client = server.client().await;
    let _one = subscribe(&mut client, filters(&["t"])).await;
    client.subscribe(filters(&["t"])).await.unwrap_err();
    let mut second = TcpStream::connect(server.address).await.unwrap();
    second.read_u8().await.unwrap_err();
    let now = scrape(&server).await;
    assert_eq!(
        now["tidegate_quota_refusals_total{quota=\"subscriptions\"}"],
        1.0
    );
    assert_eq!(
        now["tidegate_connections_refused_total{reason=\"address\"}"],
        1.0
    );
    assert_eq!(
        now["tidegate_connections_refused_total{reason=\"full\"}"],
        0.0
    );
    assert_eq!(now["tidegate_auth_failures_total"], 0.0);
}

#[tokio::test]
async fn no_label_names_a_client_a_filter_or_an_address() {
    let server = Running::start(watched()).await;
    let mut client = server.client().await;
    let request = SubscribeRequest {
        client_id: "canary-client".into(),
        ..filters(&["canary.filter"])
    };
    let _stream = subscribe(&mut client, request).await;
    let (_, text) = get(server.http.unwrap(), "/metrics").await;
    assert!(
        !text.contains("canary") && !text.contains("127.0.0.1"),
        "{text}"
    );
    let before = text.lines().count();
    for i in 0..100 {
        let request = SubscribeRequest {
            client_id: format!("client-{i}"),
            ..filters(&[&format!("filter.{i}")])
        };
        drop(subscribe(&mut client, request).await);
    }
    let (_, text) = get(server.http.unwrap(), "/metrics").await;
    assert_eq!(text.lines().count(), before, "series grow with clients");
}

#[tokio::test]
async fn readiness_follows_the_drain_and_health_does_not() {
    let server = Running::start(ServerConfig {
        drain_timeout: PATIENCE,
        ..watched()
    })
    .await;
    let http = server.http.unwrap();
    assert_eq!(get(http, "/healthz").await.0, 200);
    assert_eq!(get(http, "/readyz").await, (200, "ready\n".into()));
    // It takes no notice of GOAWAY, and so holds up the drain.
    let mut deaf = TcpStream::connect(server.address).await.unwrap();
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    deaf.read_exact(&mut [0; 9]).await.unwrap();
    assert!(server.controls.drain());
    assert!(!server.controls.drain(), "it is under way");
    assert_eq!(get(http, "/readyz").await, (503, "draining\n".into()));
    assert_eq!(get(http, "/healthz").await.0, 200);
    assert_eq!(scrape(&server).await["tidegate_ready"], 0.0);
    drop(deaf);
    server.drained().await;
    TcpStream::connect(http).await.unwrap_err();
}

/// The longest time that a probe takes. Each comes on a connection of its own.
async fn longest_probe(http: SocketAddr, probes: usize) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..probes {
        for path in ["/healthz", "/readyz"] {
            let began = Instant::now();
            let answered = time::timeout(PATIENCE, get(http, path)).await;
            let (status, _) = answered.unwrap_or_else(|_| panic!("{path} is not answered"));
            assert_eq!(status, 200);
            longest = longest.max(began.elapsed());
        }
    }
    longest
}

#[tokio::test]
async fn probes_are_answered_within_a_second_whoever_holds_connections() {
    const HELD: usize = 100;
    let server = Running::start(watched()).await;
    let http = server.http.unwrap();
    let second = Duration::from_secs(1);
    let connect = async || TcpStream::connect(http).await.unwrap();

    // Silent ones, and ones that have asked for something and keep the connection.
    for said in ["", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut held = Vec::new();
        for _ in 0..HELD {
            let mut stream = connect().await;
            stream.write_all(said.as_bytes()).await.unwrap();
            if !said.is_empty() {
                stream.read_u8().await.unwrap();
            }
            held.push(stream);
        }
        assert!(longest_probe(http, 5).await < second, "{said:?}");
    }

    // Headers that come byte by byte, and answers that are not read.
    let slow = tokio::spawn(async move {
        let mut held = Vec::new();
        for i in 0..HELD {
            let mut stream = TcpStream::connect(http).await.unwrap();
            let said = if i % 2 == 0 {
                "GET /healthz HTTP/1.1\r\nX: ".into()
            } else {
                "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000)
            };
            // It may be closed meanwhile, for the ones after it.
            let _ =
                time::timeout(Duration::from_millis(10), stream.write_all(said.as_bytes())).await;
            held.push(stream);
        }
        loop {
            for stream in &mut held {
                let _ = stream.write_all(b"x").await;
                time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    assert!(longest_probe(http, 20).await < second, "slow");
    slow.abort();

    // A flood of connections that goes on.
    let flood = tokio::spawn(async move {
        let mut held = std::collections::VecDeque::new();
        loop {
            held.push_back(TcpStream::connect(http).await);
            if held.len() > HELD {
                held.pop_front();
            }
        }
    });
    assert!(longest_probe(http, 50).await < second, "flood");
    flood.abort();
}

#[tokio::test]
async fn a_scraper_keeps_its_connection_beside_silent_ones() {
    let server = Running::start(watched()).await;
    let http = server.http.unwrap();
    let mut scraper = TcpStream::connect(http).await.unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut silent = Vec::new();
    for _ in 0..5 {
        // Fewer than the listener has places for: those that ask for nothing are closed before it.
        for _ in 0..10 {
            silent.push(TcpStream::connect(http).await.unwrap());
        }
        let request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        scraper.write_all(request.as_bytes()).await.unwrap();
        assert!(
            scraper.read(&mut buffer).await.unwrap() > 0,
            "it was closed"
        );
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let server = Running::start(watched()).await;
    let http = server.http.unwrap();
    let (status, said) = get(http, "/").await;
    assert!(status == 404 && said.contains("/metrics"));
    assert_eq!(say(http, "POST", "/readyz").await.0, 405);
}

fn document(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(root.join(path)).unwrap()
}

/// Every word of a text that begins like the name of a metric.
fn named_in(text: &str) -> Vec<&str> {
    text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'))
        .filter(|word| word.starts_with("tidegate_") || word.starts_with("process_"))
        .collect()
}

/// The names of all metrics as they are scraped, those of a histogram by its three.
async fn names() -> Vec<String> {
    // Some are there with TLS only.
    let folder = Folder::new();
    let (certificate, key) = folder.write_pair(&Authority::new("authority").server());
    let server = Running::start(ServerConfig {
        tls: Some(TlsConfig::new(certificate, key)),
        ..watched()
    })
    .await;
    // As the program does.
    server.controls.count_lost_log_lines(|| 0);
    let mut names: Vec<_> = scrape(&server)
        .await
        .into_keys()
        .map(|name| name.split('{').next().unwrap().to_owned())
        .collect();
    names.dedup();
    names
}

#[tokio::test]
async fn the_document_lists_exactly_the_metrics() {
    let text = document("docs/metrics.md");
    let names = names().await;
    for name in &names {
        let is_part = |suffix| name.strip_suffix(suffix).unwrap_or(name);
        let histogram = is_part("_bucket")
            .min(is_part("_sum"))
            .min(is_part("_count"));
        let row = [format!("| `{name}` |"), format!("| `{histogram}` |")];
        assert!(row.iter().any(|row| text.contains(row)), "{name}");
    }
    for named in named_in(&text) {
        let is_name = |name: &String| name == named || *name == format!("{named}_count");
        assert!(names.iter().any(is_name), "there is no {named}");
    }
}

#[tokio::test]
async fn the_dashboard_queries_existing_metrics() {
    let text = document("packaging/grafana/tidegate.json");
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let names = names().await;
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            let asked = named_in(query);
            assert!(!asked.is_empty(), "{query} asks for nothing");
            for named in asked {
                assert!(
                    names.iter().any(|name| name == named),
                    "there is no {named}"
                );
            }
        }
    }
    assert!(panels.len() > 10);
}
