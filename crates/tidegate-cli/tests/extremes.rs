//! The largest and the smallest values that settings take, in servers that have to work with them.
#![cfg(target_os = "linux")]

mod child;

use std::{fs, net::TcpStream, process::Command};

use child::{Folder, Serve, program};
use tidegate_client::{Client, NewEvent, SubscribeOptions, Update};
use tidegate_server::settings::{SETTINGS, Setting};

/// The greatest number that a setting takes as `number` followed by `unit`.
fn greatest(setting: &Setting, unit: &str) -> Option<u64> {
    let takes = |number: u64| setting.check(&format!("{number}{unit}")).is_ok();
    // One that every range has.
    let mut low = [1, 65_536].into_iter().find(|number| takes(*number))?;
    let mut high = u64::MAX;
    if takes(high) {
        return Some(high);
    }
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        *if takes(middle) { &mut low } else { &mut high } = middle;
    }
    Some(low)
}

/// The flag that gives a setting its greatest value. `None` if it is no number.
fn flag_of_greatest(setting: &Setting) -> Option<String> {
    let unit = match setting.value_name {
        "N" | "SIZE" => "",
        "DURATION" => "ms",
        _ => return None,
    };
    // A heartbeat is at least a second.
    let greatest = match setting.key {
        "heartbeat" => 3_600_000,
        _ => greatest(setting, unit).unwrap_or_else(|| panic!("{} takes no number", setting.key)),
    };
    Some(format!("--{}={greatest}{unit}", setting.flag()))
}

/// Publishes an event through a server with these flags, and receives it.
async fn passes_an_event(flags: &[String]) {
    let arguments: Vec<_> = flags.iter().map(String::as_str).collect();
    let server = Serve::start(&arguments);
    let client = Client::builder(server.url()).connect_lazy().unwrap();
    let mut subscription = client.subscribe(SubscribeOptions::new(["a"]));
    while !matches!(
        subscription
            .next()
            .await
            .unwrap()
            .unwrap_or_else(|error| panic!("{flags:?}: {error}")),
        Update::Subscribed(_)
    ) {}
    client
        .publish(vec![NewEvent {
            topic: "a".into(),
            ..NewEvent::default()
        }])
        .await
        .unwrap_or_else(|error| panic!("{flags:?}: {error}"));
    loop {
        let update = subscription.next().await.unwrap();
        if let Update::Event(_) = update.unwrap_or_else(|error| panic!("{flags:?}: {error}")) {
            return;
        }
    }
}

#[tokio::test]
async fn a_server_works_with_the_greatest_value_of_each_setting() {
    let mut all = Vec::new();
    for setting in SETTINGS {
        let Some(flag) = flag_of_greatest(setting) else {
            continue;
        };
        match setting.key {
            // It depends on what the process may open, and is refused before anything else.
            "connections.max" => continue,
            // It has to be within the other, and those of key sets need one.
            "limits.max_event_bytes" => all.push(flag),
            key if key.starts_with("auth.jwt.") => all.push(flag),
            _ => {
                passes_an_event(std::slice::from_ref(&flag)).await;
                all.push(flag);
            }
        }
    }
    assert!(all.len() > 40, "{all:?}");
    passes_an_event(&all).await;
}

#[test]
fn values_with_which_nothing_could_work_are_refused() {
    let folder = Folder::new("useless");
    for (key, value) in [
        ("http2.tcp_user_timeout", "597h"),
        ("http2.tcp_user_timeout", "1us"),
        ("http2.keep_alive_interval", "2562047788015215h"),
        ("connections.max_age", "2562047788015215h"),
        ("http2.max_header_list_size", "1"),
        ("http2.stream_window", "2GiB"),
        ("limits.max_filters", "0"),
        ("limits.max_publish_bytes", "8GiB"),
        ("limits.max_event_bytes", "2GiB"),
        ("limits.max_publish_events", "0"),
        ("limits.max_filter_work", "0"),
        ("http2.max_concurrent_streams", "0"),
        ("filter_budget", "0"),
        ("memory_budget", "0"),
    ] {
        let config = folder.write("config.toml", format!("{key} = \"{value}\"\n"));
        for command in [["check-config", "--config"], ["serve", "--config"]] {
            let output = program(command).arg(&config).output().unwrap();
            let told = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{key} = {value}: {told}");
            assert!(told.contains(&format!("{config}:1: {key}")), "{told}");
        }
    }
}

#[test]
fn a_budget_that_holds_few_filters_is_warned_of() {
    let folder = Folder::new("few-filters");
    for text in ["filter_budget = 1\n", "memory_budget = 4096\n"] {
        let config = folder.write("config.toml", text);
        let output = program(["check-config", &*config]).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{told}");
        assert!(told.contains("further subscriptions are refused"), "{told}");
    }
}

#[test]
fn options_of_sockets_that_the_system_refuses_are_an_error_in_the_log_once_in_a_while() {
    let folder = Folder::new("options");
    let source = folder.write(
        "refuse.c",
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <errno.h>\n#include <sys/socket.h>\n\
         int setsockopt(int fd, int level, int name, const void *value, socklen_t size) {\n\
         int (*real)(int, int, int, const void *, socklen_t) = dlsym(RTLD_NEXT, \"setsockopt\");\n\
         if (level == 6 && name == 18) { errno = EINVAL; return -1; }\n\
         return real(fd, level, name, value, size);\n}\n",
    );
    let library = folder.at("refuse.so");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-o", &library, &source, "-ldl"])
        .status();
    if !made.is_ok_and(|made| made.success()) {
        child::skipped("there is no C compiler");
        return;
    }
    let mut command = program(["serve", "--listen", "127.0.0.1:0"]);
    command.env("LD_PRELOAD", &library);
    let (server, mut log) = Serve::logging(command);
    for _ in 0..10 {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        // It is closed, in one way or another.
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    }
    rustix::process::kill_process(server.pid(), rustix::process::Signal::TERM).unwrap();
    let told = log.rest();
    assert_eq!(
        told.matches("refuses the options of a socket").count(),
        1,
        "{told}"
    );
    assert!(
        told.contains("ERROR") && told.contains("Invalid argument"),
        "{told}"
    );
    fs::remove_file(library).unwrap();
}
