//! The public interfaces are as listed in `docs/api`: a change has to be meant, and shows in the diff.

use std::{env, fs, path::Path, process::Command};

use public_api::{Builder, PublicApi};

/// The crates whose interface is listed, each with the other crates that the interface may name: ours, and of others
/// those whose traits and types are what it is about.
const LISTED: &[(&str, &[&str])] = &[
    ("tidegate-core", &["bytes"]),
    (
        "tidegate",
        &[
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
        ],
    ),
    (
        "tidegate-client",
        &["tidegate_proto", "futures_core", "tonic"],
    ),
    ("tidegate-http2", &["bytes", "http"]),
    (
        "tidegate-transport",
        &[
            "bytes",
            "http",
            "http_body",
            "hyper",
            "tokio",
            "tower_service",
        ],
    ),
];

/// Writes the documentation of the listed crates as JSON. Their dependencies come from where cargo has those of this
/// test, if it can keep the two apart (since Rust 1.91).
fn document() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let status = Command::new(env!("CARGO"))
        .args(["doc", "--quiet", "--lib", "--no-deps", "--target-dir"])
        .arg(target.join("api"))
        .args(
            LISTED
                .iter()
                .flat_map(|(package, _)| ["--package", package]),
        )
        .current_dir(root())
        .env("CARGO_BUILD_BUILD_DIR", target)
        .env("RUSTDOC", root().join("tests/embedding/tests/rustdoc"))
        .env("RUSTDOCFLAGS", "-Z unstable-options --output-format json")
        .status()
        .unwrap();
    assert!(status.success(), "cargo doc failed");
}

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The public items of a crate, or `None` where this toolchain writes its documentation in a form that is not
/// known here.
#[expect(clippy::print_stderr, reason = "for the one who reads the tests")]
fn public_api(package: &str) -> Option<PublicApi> {
    let json = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .with_file_name("api/doc")
        .join(package.replace('-', "_"))
        .with_extension("json");
    let api = Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build();
    match api {
        Ok(api) => Some(api),
        Err(error) => {
            let told = format!("this toolchain writes another form than public-api reads: {error}");
            assert!(
                env::var("CI").as_deref() != Ok("true"),
                "not compared: {told}"
            );
            eprintln!("not compared: {told}");
            None
        }
    }
}

/// Compares with `docs/api`; with `UPDATE_EXPECT` set, writes it.
fn compare(package: &str, may_be_named: &[&str]) {
    let Some(api) = public_api(package) else {
        return;
    };
    let found = api.to_string();
    for line in found.lines() {
        for named in crates_in(line) {
            assert!(
                ["core", "alloc", "std", &package.replace('-', "_")].contains(&named)
                    || may_be_named.contains(&named),
                "`{named}` is named by: {line}"
            );
        }
    }
    let path = root().join("docs/api").join(package).with_extension("txt");
    if env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(path, found).unwrap();
        return;
    }
    let listed = fs::read_to_string(path).unwrap();
    for (found, listed) in found.lines().zip(listed.lines()) {
        assert_eq!(found, listed, "set UPDATE_EXPECT=1 if that is meant");
    }
    assert_eq!(found.lines().count(), listed.lines().count());
}

/// The names at the beginning of the paths.
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
    document();
    for (package, may_be_named) in LISTED {
        compare(package, may_be_named);
    }
}
