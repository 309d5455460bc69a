//! The memory budget of a process under the limits of real control groups, and where `/proc` hides the machine.
//!
//! These need a user who may make control groups and mount file systems, and say so where that is not the case.
#![cfg(target_os = "linux")]

mod child;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const LIMIT: u64 = 1 << 30;

/// A control group with a limit on memory, and one within it without one. They go with the test.
struct Groups {
    outer: PathBuf,
    inner: PathBuf,
}

impl Groups {
    /// `None` where this user may not make them.
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let groups = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let place = Path::new(before.split(' ').nth(4)?);
            let file = match after.split(' ').next()? {
                "cgroup2" => "memory.max",
                "cgroup" if after.ends_with("memory") => "memory.limit_in_bytes",
                _ => return None,
            };
            let outer = place.join(format!("tidegate-{name}-{}", std::process::id()));
            let inner = outer.join("inner");
            fs::create_dir(&outer).ok()?;
            fs::create_dir(&inner).ok();
            let groups = Self { outer, inner };
            // Without the controller there is no such file, and the groups go.
            fs::write(groups.outer.join(file), LIMIT.to_string()).ok()?;
            Some(groups)
        });
        if groups.is_none() {
            child::skipped("this user may not make control groups");
        }
        groups
    }

    /// The command by which a shell joins the inner group.
    fn join(&self) -> String {
        let procs = self.inner.join("cgroup.procs");
        format!("echo $$ > {}", procs.display())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // The processes in them have ended.
        let _ = fs::remove_dir(&self.inner);
        let _ = fs::remove_dir(&self.outer);
    }
}

/// The exit code of a preparation that fails. The program has no such code.
const NOT_PREPARED: i32 = 77;

/// The output of a script that runs the program as `$0`, of both streams. It must succeed once `prepare` has, and is
/// `None` where this user may not do what `prepare` does.
fn output(mut shell: Command, prepare: &str, script: &str) -> Option<String> {
    let script = format!("{{ {prepare}; }} || exit {NOT_PREPARED}\n{script}");
    let output = shell
        .args(["-c", &script, env!("CARGO_BIN_EXE_tidegate")])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    if output.status.code() == Some(NOT_PREPARED) {
        child::skipped("this user may not");
        return None;
    }
    assert!(output.status.success(), "{}: {text}", output.status);
    Some(text)
}

fn shell() -> Command {
    Command::new("sh")
}

/// A shell in a mount namespace of its own. `None` where this user may not make one.
fn namespace() -> Option<Command> {
    let made = Command::new("unshare").args(["-m", "true"]).status();
    if !made.is_ok_and(|status| status.success()) {
        child::skipped("this user may not make mount namespaces");
        return None;
    }
    let mut shell = Command::new("unshare");
    shell.args(["-m", "sh"]);
    Some(shell)
}

const PRINT: &str = "\"$0\" serve --print-config";

#[test]
fn the_limit_of_a_group_above_counts() {
    let Some(groups) = Groups::new("above") else {
        return;
    };
    let Some(text) = output(shell(), &groups.join(), PRINT) else {
        return;
    };
    let expected = format!(": {} bytes, a quarter of {LIMIT} bytes, ", LIMIT / 4);
    let line = text.lines().find(|line| line.starts_with("memory_budget"));
    assert!(line.unwrap().contains(&expected), "{line:?}");
    assert!(line.unwrap().contains("of the control group /"), "{line:?}");
    // What is set by hand and is above it is warned of.
    let script = "TIDEGATE_MEMORY_BUDGET=2GiB \"$0\" check-config";
    let text = output(shell(), &groups.join(), script).unwrap();
    let expected = format!(
        "the memory budget, {} bytes, is above {LIMIT} bytes",
        2 * LIMIT
    );
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn the_machine_and_the_group_are_known_where_proc_has_processes_only() {
    let hidden =
        "mount -t proc -o subset=pid,hidepid=invisible proc /proc && ! test -e /proc/meminfo";
    let Some(shell) = namespace() else {
        return;
    };
    let script = format!("{PRINT} && \"$0\" check-config");
    let Some(text) = output(shell, hidden, &script) else {
        return;
    };
    let line = text.lines().find(|line| line.starts_with("memory_budget"));
    assert!(line.unwrap().contains("a quarter of "), "{line:?}");
    assert!(!text.contains("warning"), "{text}");
    let (Some(groups), Some(shell)) = (Groups::new("hidden"), namespace()) else {
        return;
    };
    let prepare = format!("{} && {hidden}", groups.join());
    if let Some(text) = output(shell, &prepare, PRINT) {
        let expected = format!(": {} bytes, a quarter of {LIMIT} bytes, ", LIMIT / 4);
        assert!(text.contains(&expected), "{text}");
    }
}

#[test]
fn a_group_that_cannot_be_looked_up_is_warned_of() {
    let check = "\"$0\" check-config";
    if let (Some(groups), Some(shell)) = (Groups::new("unseen"), namespace()) {
        let prepare = format!("{} && mount -t tmpfs none /sys/fs/cgroup", groups.join());
        if let Some(text) = output(shell, &prepare, check) {
            assert!(text.contains("cannot be looked up"), "{text}");
        }
    }
    let Some(shell) = namespace() else {
        return;
    };
    if let Some(text) = output(shell, "mount -t tmpfs none /proc", check) {
        assert!(text.contains("/proc/self/cgroup cannot be read"), "{text}");
    }
}

#[test]
fn a_limit_on_address_space_counts() {
    let text = output(shell(), "ulimit -v 4000000", PRINT).unwrap();
    assert!(
        text.contains(": 1024000000 bytes, a quarter of 4096000000 bytes"),
        "{text}"
    );
}
