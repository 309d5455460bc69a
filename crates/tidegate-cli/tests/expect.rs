//! The words of the program, compared with the files in `tests/expect`, so that a change of words shows in review.
//!
//! Set `UPDATE_EXPECT=1` to write the files anew.
#![cfg(target_os = "linux")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expect")
}

/// The standard output and the standard error of the program, run in the folder of the files, without spaces at the ends
/// of lines.
fn words_of(arguments: &[&str], variables: &[(&str, &str)]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(arguments)
        .current_dir(folder())
        // Help has values of variables in it, and lines as long as the terminal allows.
        .env_clear()
        .env("COLUMNS", "100")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| -> String {
        let lines = str::from_utf8(bytes).unwrap().lines();
        lines.map(|line| format!("{}\n", line.trim_end())).collect()
    };
    (text(&output.stdout), text(&output.stderr))
}

/// Compares a text with a file, and names the first line that differs.
fn assert_expected(file: &str, found: &str) {
    let path = folder().join(file);
    if env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let same = expected.lines().zip(found.lines());
    let same = same.take_while(|(expected, found)| expected == found);
    let line = same.count();
    assert!(
        expected == found,
        "{file}:{}: expected {:?}, found {:?}; set UPDATE_EXPECT=1 if that is meant",
        line + 1,
        expected.lines().nth(line),
        found.lines().nth(line)
    );
}

#[test]
fn help_of_every_command_is_as_expected() {
    let (help, _) = words_of(&["--help"], &[]);
    assert_expected("help.txt", &help);
    let commands = help.split("Commands:").nth(1).unwrap();
    let commands = commands.split("\n\n").next().unwrap().lines();
    let names = commands.filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    let names: Vec<_> = names.filter(|name| *name != "help").collect();
    assert!(names.contains(&"serve"), "{names:?}");
    for name in names {
        let (help, _) = words_of(&[name, "--help"], &[]);
        assert_expected(&format!("help-{name}.txt"), &help);
    }
}

#[test]
fn report_of_check_config_is_as_expected() {
    let variables = [
        ("TIDEGATE_MAX_CONNECTIONS", "100"),
        ("TIDEGATE_HISTORY_AGE", "5"),
    ];
    let (stdout, report) = words_of(&["check-config", "check-config.toml"], &variables);
    assert_eq!(stdout, "");
    assert_expected("check-config.txt", &report);
}
