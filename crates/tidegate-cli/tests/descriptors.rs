//! `tidegate serve` with few file descriptors: a child process with lowered limits.
#![cfg(target_os = "linux")]

mod child;

use std::{
    fs,
    net::TcpStream,
    time::{Duration, Instant},
};

use child::{Serve, limited};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use tidegate_client::{Client, NewEvent, SubscribeOptions, Subscription, Update};
use tokio::time;

const PATIENCE: Duration = Duration::from_secs(30);

/// Returns a subscription that the server has accepted.
async fn subscribed(client: &Client) -> Subscription {
    let mut subscription = client.subscribe(SubscribeOptions::new(["t"]));
    let first = next(&mut subscription).await;
    assert!(matches!(first, Update::Subscribed(_)), "{first:?}");
    subscription
}

async fn next(subscription: &mut Subscription) -> Update {
    let update = time::timeout(PATIENCE, subscription.next()).await;
    update.expect("nothing came").expect("it ended").unwrap()
}

async fn publish_and_receive(client: &Client, subscription: &mut Subscription) {
    let event = NewEvent {
        topic: "t".into(),
        ..NewEvent::default()
    };
    client.publish(vec![event]).await.unwrap();
    let update = next(subscription).await;
    assert!(matches!(update, Update::Event(_)), "{update:?}");
}

/// Returns the processor time that the process has used, in ticks of 10 ms.
fn ticks(server: &Serve) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let times = fields.split(' ').skip(11).take(2);
    times.map(|time| time.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn server_out_of_descriptors_serves_on_and_recovers_in_a_second() {
    let server = Serve::start(&[]);
    let client = Client::connect_lazy(server.url()).unwrap();
    let mut subscription = subscribed(&client).await;
    publish_and_receive(&client, &mut subscription).await;

    // From here on the server cannot open another descriptor.
    let none = Rlimit {
        current: Some(3),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(Some(server.pid()), Resource::Nofile, none).unwrap();
    // Fewer than fit into the listener's queue: beyond that, connecting blocks.
    let waiting: Vec<_> = (0..100)
        .map(|_| TcpStream::connect(server.address()).unwrap())
        .collect();
    let (busy, began) = (ticks(&server), Instant::now());
    while began.elapsed() < Duration::from_secs(3) {
        publish_and_receive(&client, &mut subscription).await;
        time::sleep(Duration::from_millis(100)).await;
    }
    // A loop that spins would take 300.
    let used = ticks(&server) - busy;
    assert!(used < 30, "{used} ticks of 10 ms in 3 s");

    drop(waiting);
    prlimit(Some(server.pid()), Resource::Nofile, before).unwrap();
    let freed = Instant::now();
    drop(subscribed(&client).await);
    // The server retries every second; the rest is for a loaded machine.
    assert!(
        freed.elapsed() < Duration::from_secs(3),
        "{:?}",
        freed.elapsed()
    );
}

#[tokio::test]
async fn connection_flood_at_64_descriptors_spares_open_streams() {
    let server = Serve::start_with_descriptors(64, &[]);
    let client = Client::connect_lazy(server.url()).unwrap();
    let mut subscription = subscribed(&client).await;
    publish_and_receive(&client, &mut subscription).await;
    let _flood: Vec<_> = (0..500)
        .map(|_| TcpStream::connect(server.address()))
        .collect();
    for _ in 0..20 {
        publish_and_receive(&client, &mut subscription).await;
    }
}

#[test]
fn server_refuses_a_cap_beyond_its_descriptors() {
    let ended = Serve::command_with_descriptors(64, &["--connections-max", "100"])
        .output()
        .unwrap();
    let message = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(2), "{message}");
    assert!(
        message.contains("needs 132 open files, and the process may open 64"),
        "{message}"
    );
    assert!(ended.stdout.is_empty());
}

#[test]
fn too_few_descriptors_for_a_server_are_refused_or_warned_of() {
    for arguments in [&["serve", "--listen", "127.0.0.1:0"][..], &["check-config"]] {
        let ended = limited(20, arguments).output().unwrap();
        let message = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{message}");
        let problem = "needs 33 open files, and the process may open 20";
        assert!(message.contains(problem), "{message}");
    }
    let room = "room for no more than 8 connections";
    let checked = limited(40, &["check-config"]).output().unwrap();
    let message = String::from_utf8(checked.stderr).unwrap();
    assert_eq!(checked.status.code(), Some(0), "{message}");
    assert!(message.contains(room), "{message}");
    let (_server, mut log) = Serve::logging(Serve::command_with_descriptors(40, &[]));
    log.until(room);
    // A number that somebody chose is no surprise.
    let arguments = ["check-config", "--config", "/dev/stdin"];
    let mut chosen = limited(40, &arguments);
    let (reader, mut writer) = std::io::pipe().unwrap();
    chosen.stdin(reader).env_remove("TIDEGATE_CONNECTIONS_MAX");
    std::io::Write::write_all(&mut writer, b"[connections]\nmax = 8\n").unwrap();
    drop(writer);
    let checked = chosen.output().unwrap();
    let message = String::from_utf8(checked.stderr).unwrap();
    assert_eq!(checked.status.code(), Some(0), "{message}");
    assert!(!message.contains("connections"), "{message}");
}
