//! Random scripts for both engines of HTTP/2. The random numbers have fixed seeds, so that a failure repeats.

use std::env;

/// Number of scripts, unless `SCRIPTS` says another.
const SCRIPTS: u64 = 3_000;

#[expect(
    clippy::print_stdout,
    reason = "the output of a test that fails has the seed"
)]
#[test]
fn engines_are_alike() {
    let scripts = env::var("SCRIPTS").map_or(SCRIPTS, |count| count.parse().unwrap());
    let first = env::var("FIRST").map_or(0, |first| first.parse().unwrap());
    for seed in first..first + scripts {
        let mut chance = fastrand::Rng::with_seed(seed);
        let length = 1 + (seed as usize / 100) % 120;
        let bytes: Vec<u8> = (0..length).map(|_| chance.u8(..)).collect();
        println!("seed {seed}");
        tidegate_fuzz_harness::http2(&bytes);
    }
}
