//! What is public is what is listed: a change of it has to be meant, and shows in the diff.

use std::{fs, path::Path, process::Command};

use public_api::{Builder, PublicApi};

/// The crates that the public interface may name: ours, and of others those whose traits and types are what
/// the library is about.
const MAY_BE_NAMED: &[&str] = &[
    "core",
    "alloc",
    "std",
    "tidegate",
    "tidegate_core",
    "tidegate_macros",
    "tidegate_proto",
    "bytes",
    "futures_core",
    "http",
    "prost",
    "tonic",
    // `EventService` and its body are what hyper and tonic take.
    "http_body",
    "tower_service",
];

/// The public items of a crate, or `None` where this toolchain writes its documentation in a form that is not
/// known here.
fn public_api(package: &str) -> Option<PublicApi> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = root.join("target/api");
    let status = Command::new(env!("CARGO"))
        .args([
            "rustdoc",
            "--quiet",
            "--lib",
            "--package",
            package,
            "--target-dir",
        ])
        .arg(&target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        .current_dir(&root)
        // The form is not stable, and only this test reads it.
        .env("RUSTC_BOOTSTRAP", "1")
        .status()
        .unwrap();
    assert!(status.success(), "rustdoc failed");
    let json = target.join(format!("doc/{}.json", package.replace('-', "_")));
    let api = Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build();
    match api {
        Ok(api) => Some(api),
        Err(error) => {
            eprintln!("not compared, because of another toolchain: {error}");
            None
        }
    }
}

/// Compares with `docs/api`; with `UPDATE_API` set, writes it.
fn compare(package: &str) {
    let Some(api) = public_api(package) else {
        return;
    };
    let found = api.to_string();
    for line in found.lines() {
        for named in crates_in(line) {
            assert!(
                MAY_BE_NAMED.contains(&named),
                "`{named}` is named by: {line}"
            );
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/api")
        .join(format!("{package}.txt"));
    if std::env::var_os("UPDATE_API").is_some() {
        fs::write(path, found).unwrap();
        return;
    }
    let listed = fs::read_to_string(path).unwrap();
    for (found, listed) in found.lines().zip(listed.lines()) {
        assert_eq!(found, listed, "set UPDATE_API=1 if that is meant");
    }
    assert_eq!(found.lines().count(), listed.lines().count());
}

/// What stands at the beginning of each path.
fn crates_in(line: &str) -> impl Iterator<Item = &str> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    line.split(move |c| !is_path(c))
        .filter_map(|path| path.split_once("::"))
        .map(|(first, _)| first)
        // `T::Item`, and the ends of `<T as Trait>::Item`.
        .filter(|first| first.chars().next().is_some_and(char::is_lowercase))
}

#[test]
fn the_public_interface_is_as_listed_and_names_no_other_crate() {
    compare("tidegate");
    compare("tidegate-core");
}
