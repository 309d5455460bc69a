//! Runs the programs of the example over real sockets.

use std::collections::BTreeMap;

use tidegate_embedding_tests::{Program, next};
use tidegate_example_ticker::proto::{SetRequest, Tick, WatchRequest, ticker_client::TickerClient};
use tonic::transport::{Channel, Endpoint};

const TICKER: &str = env!("CARGO_BIN_EXE_ticker");

async fn set(server: &Program, symbol: &str, cents: &str) {
    let mut set = Program::start(TICKER, &["set", symbol, cents, "--server", &server.url]);
    assert!(set.ends().await.success());
}

#[tokio::test]
async fn watcher_gets_a_snapshot_and_then_changes() {
    let server = Program::serve(TICKER).await;
    set(&server, "ACME", "1250").await;
    set(&server, "OTHER", "7").await;
    set(&server, "ACME", "1260").await;
    let mut all = Program::start(TICKER, &["watch", "--server", &server.url]);
    all.prints("ACME 1260").await;
    all.prints("OTHER 7").await;
    let mut one = Program::start(TICKER, &["watch", "OTHER", "--server", &server.url]);
    one.prints("OTHER 7").await;
    set(&server, "ACME", "1270").await;
    set(&server, "OTHER", "8").await;
    all.prints("ACME 1270").await;
    all.prints("OTHER 8").await;
    one.prints("OTHER 8").await;
}

async fn connect(server: &Program) -> TickerClient<Channel> {
    // A stream's window takes 64 KiB without being read.
    let endpoint = Endpoint::from_shared(server.url.clone())
        .unwrap()
        .initial_stream_window_size(65_535);
    TickerClient::new(endpoint.connect().await.unwrap())
}

#[tokio::test]
async fn slow_watcher_gets_the_newest_price_of_each_symbol() {
    const ROUNDS: u64 = 1_000;
    const SYMBOLS: u64 = 100;
    let server = Program::serve(TICKER).await;
    let (mut slow, mut publisher) = (connect(&server).await, connect(&server).await);
    let mut ticks = slow
        .watch(WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    for round in 1..=ROUNDS {
        let ticks = (0..SYMBOLS).map(|symbol| Tick {
            symbol: format!("SYMBOL-{symbol}"),
            cents: round,
        });
        let ticks = ticks.collect();
        publisher.set(SetRequest { ticks }).await.unwrap();
    }
    let mut prices = BTreeMap::new();
    let mut received = 0;
    while prices.len() < SYMBOLS as usize || prices.values().any(|cents| *cents < ROUNDS) {
        let Tick { symbol, cents } = next(&mut ticks).await.unwrap();
        let before = prices.insert(symbol, cents);
        assert!(before < Some(cents), "never back to an older price");
        received += 1;
    }
    assert!(
        received < ROUNDS * SYMBOLS,
        "{received}: nothing was left out"
    );
}

/// Lines without their indentation.
fn lines(text: &str) -> String {
    text.lines()
        .map(|line| line.trim().to_owned() + "\n")
        .collect()
}

#[test]
fn readme_shows_code_of_this_example() {
    let sources = [
        lines(include_str!("../build.rs")),
        lines(include_str!("../src/server.rs")),
    ];
    let blocks = include_str!("../../../README.md")
        .split("```rust\n")
        .skip(1);
    let blocks: Vec<_> = blocks
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let stands_in = |source: &String| source.contains(&lines(block));
        assert!(
            sources.iter().any(stands_in),
            "not in the example:\n{block}"
        );
    }
}
