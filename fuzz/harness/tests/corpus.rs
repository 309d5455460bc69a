//! Runs every target over its corpus, and over mutations of it.

use std::{fs, path::PathBuf};

use tidegate_fuzz_harness::TARGETS;

/// Mutations of each input. The random numbers have a fixed seed, so that a failure repeats.
const MUTATIONS: usize = 200;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn mutate(input: &[u8], other: &[u8], chance: &mut fastrand::Rng) -> Vec<u8> {
    let mut mutated = input.to_vec();
    for _ in 0..chance.usize(1..4) {
        let at = chance.usize(0..=mutated.len());
        match chance.u8(0..5) {
            0 => mutated.insert(at, chance.u8(..)),
            1 => mutated.truncate(at),
            2 if !other.is_empty() => {
                let from = chance.usize(0..other.len());
                mutated.splice(at..at, other[from..].iter().copied());
            }
            _ => {
                if let Some(byte) = mutated.get_mut(at) {
                    *byte = match chance.bool() {
                        true => chance.u8(..),
                        false => *byte ^ 1 << chance.u8(0..8),
                    };
                }
            }
        }
    }
    mutated
}

/// Runs one target over its corpus and mutations of it.
fn run(name: &str) {
    let (_, target) = TARGETS
        .iter()
        .find(|(other, _)| *other == name)
        .expect("it is listed");
    let corpus = corpus(name);
    assert!(corpus.len() > 3, "{} inputs", corpus.len());
    let mut chance = fastrand::Rng::with_seed(1);
    for input in &corpus {
        target(input);
        for _ in 0..MUTATIONS {
            let other = &corpus[chance.usize(0..corpus.len())];
            target(&mutate(input, other, &mut chance));
        }
    }
}

#[test]
fn names_take_any_bytes() {
    run("names");
}

#[test]
fn publish_takes_any_bytes() {
    run("publish");
}

#[test]
fn subscribe_takes_any_bytes() {
    run("subscribe");
}

#[test]
fn resume_takes_any_bytes() {
    run("resume");
}

#[test]
fn a_connection_takes_any_bytes() {
    run("connection");
}

#[test]
fn the_engine_takes_any_bytes() {
    run("engine");
}

#[test]
fn decoders_agree_on_any_block() {
    run("hpack");
}

#[test]
fn engines_agree_on_any_script() {
    run("http2");
}

#[test]
fn a_configuration_takes_any_text() {
    run("config");
}

#[test]
fn every_target_has_its_fuzzer() {
    let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        let source =
            fs::read_to_string(fuzz.join("fuzz_targets").join(format!("{name}.rs"))).unwrap();
        assert!(
            source.contains(&format!("tidegate_fuzz_harness::{name}(bytes)")),
            "{name}"
        );
    }
}
