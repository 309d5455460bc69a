//! A short chaos run: one round with each scenario of the server.

use std::{sync::Arc, time::Duration};

use tidegate_checker::chaos::{Counts, Options, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_chaos_run_has_no_violation() {
    let counts = Arc::new(Counts::default());
    let options = Options {
        seed: 0,
        duration: Duration::ZERO,
        rounds: 5,
        round: Duration::from_secs(1),
        scale: 1,
        batch: 4,
        ..Options::default()
    };
    let report = run(options, counts)
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let slots = report.tally.slots();
    assert!(slots > 10_000, "hardly anything was checked:\n{report}");
}
