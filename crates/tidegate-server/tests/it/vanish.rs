//! Clean-up: a stream that ends for any cause frees everything it held, though no event comes.

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tidegate::proto::SubscribeRequest;
use tidegate_server::ServerConfig;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::common::*;

/// Tells this test binary that it is to be the process that will be killed.
const VICTIM_OF: &str = "TIDEGATE_TEST_VICTIM_OF";

/// 1,000 clients in all, each with a connection of its own.
const CANCELLED: usize = 400;
const RESET: usize = 300;
const KILLED: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_that_vanish_leave_nothing() {
    if let Ok(endpoint) = env::var(VICTIM_OF) {
        return be_the_victim(&endpoint).await;
    }
    let server = Running::start(ServerConfig::default()).await;
    let before = server.hub.stats();

    let cancelled = subscribe_many(&server.endpoint(), CANCELLED, connect).await;
    let reset = subscribe_many(&server.endpoint(), RESET, connect_to_reset).await;
    let mut killed = start_victim(&server);
    let all = (CANCELLED + RESET + KILLED) as u64;
    server
        .until("all are here", |stats| {
            stats.subscriptions == all && stats.clients as u64 == all
        })
        .await;

    let (clients, streams): (Vec<_>, Vec<_>) = cancelled.into_iter().unzip();
    drop(streams);
    server
        .until("cancelled streams are gone", |stats| {
            stats.subscriptions == (RESET + KILLED) as u64
        })
        .await;
    drop(reset);
    server
        .until("streams of reset connections are gone", |stats| {
            stats.subscriptions == KILLED as u64
        })
        .await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    server
        .until("streams of a killed process are gone", |stats| {
            stats.subscriptions == 0
        })
        .await;

    let after = server.hub.stats();
    assert_eq!((after.clients, after.feeds), (before.clients, before.feeds));
    assert_eq!(after.published, 0, "no event was needed for that");
    drop(clients);
    assert_eq!(server.stop().await.connections_cut, 0);
}

#[tokio::test]
async fn a_late_cancel_of_the_old_stream_leaves_the_new_one() {
    let server = Running::start(ServerConfig::default()).await;
    let request = || SubscribeRequest {
        client_id: "c".into(),
        ..filters(&["a"])
    };
    let mut old = subscribe(&mut server.client().await, request()).await;
    let mut client = server.client().await;
    let mut new = subscribe(&mut client, request()).await;
    let (_, status) = old.end().await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (tonic::Code::Aborted, "TAKEN_OVER")
    );
    drop(old);
    server
        .until("the old is gone", |stats| stats.subscriptions == 1)
        .await;
    publish(&mut client, vec![event("a", "1")]).await.unwrap();
    assert_eq!(new.events(1).await[0].payload, "1");
}

async fn subscribe_many<F: Future<Output = Channel>>(
    endpoint: &Endpoint,
    count: usize,
    connect: impl Fn(Endpoint) -> F,
) -> Vec<(Client, Checked)> {
    join_all((0..count).map(|_| async {
        let channel = connect(endpoint.clone()).await;
        let mut client = Client::new(channel, Journal::default());
        let stream = subscribe(&mut client, filters(&["quiet.>"])).await;
        (client, stream)
    }))
    .await
}

async fn connect(endpoint: Endpoint) -> Channel {
    endpoint.connect().await.unwrap()
}

/// A connection that ends with a TCP reset when it is dropped.
async fn connect_to_reset(endpoint: Endpoint) -> Channel {
    let connector = tower::service_fn(|uri: Uri| async move {
        let stream = TcpStream::connect(uri.authority().unwrap().as_str()).await?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        std::io::Result::Ok(TokioIo::new(stream))
    });
    endpoint.connect_with_connector(connector).await.unwrap()
}

fn start_victim(server: &Running) -> Child {
    let mut child = Command::new(env::current_exe().unwrap())
        .args([
            "vanish::a_thousand_clients_that_vanish_leave_nothing",
            "--exact",
            "--nocapture",
        ])
        .env(VICTIM_OF, format!("http://{}", server.address))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines
        .map(Result::unwrap)
        .find(|line| line.contains("ready to be killed"))
        .expect("the victim is ready");
    child
}

async fn be_the_victim(endpoint: &str) {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).unwrap();
    let _held = subscribe_many(&endpoint, KILLED, connect).await;
    #[expect(clippy::print_stdout, reason = "how the parent hears of it")]
    {
        println!("ready to be killed");
    }
    std::future::pending().await
}
