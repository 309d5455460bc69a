//! The end of the process: nothing that libraries register for it runs, since other threads still use what that takes away.
//!
//! AWS-LC aborted one of a hundred benchmarks that failed: their other threads were in the middle of a TLS handshake.
#![cfg(target_os = "linux")]

mod child;

use std::process::Command;

use child::{Folder, Serve, program};
use rustix::process::{Signal, kill_process};

/// Text that a library prints when the C library ends the process.
const TOLD: &str = "the handlers run";

/// Makes that library, and returns its path.
fn make_teller(folder: &Folder) -> String {
    let source = format!(
        "#include <unistd.h>\n__attribute__((destructor)) static void tell(void) {{ write(2, \"{TOLD}\\n\", {}); }}\n",
        TOLD.len() + 1
    );
    let (source, library) = (folder.write("teller.c", source), folder.at("teller.so"));
    // What builds the program's own libraries, too.
    let mut compiler = Command::new("cc");
    compiler.args([
        "-shared",
        "-fPIC",
        "-Wno-unused-result",
        "-o",
        &library,
        &source,
    ]);
    assert!(compiler.status().unwrap().success());
    library
}

#[test]
fn no_handler_of_a_library_runs_at_the_end() {
    let folder = Folder::new("leave");
    let teller = make_teller(&folder);
    let told = Command::new("true").env("LD_PRELOAD", &teller).output();
    let told = String::from_utf8(told.unwrap().stderr).unwrap();
    assert!(told.contains(TOLD), "it would be seen: {told}");

    let nobody = "http://127.0.0.1:1";
    for (arguments, code) in [
        (&["--version"][..], 0),
        (&["--help"], 0),
        (&["completions", "bash"], 0),
        (&["unknown"], 2),
        (&["sub", "--server", nobody, "--no-reconnect", "t"], 3),
        (&["bench", "fanout", "--server", nobody], 3),
    ] {
        let output = program(arguments).env("LD_PRELOAD", &teller).output();
        let output = output.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(!errors.contains(TOLD), "{arguments:?}: {errors}");
        assert_eq!(output.stdout.is_empty(), code != 0, "{arguments:?}");
        assert_eq!(errors.is_empty(), code == 0, "{arguments:?}: {errors}");
    }
    let mut serve = program(["serve", "--listen", "127.0.0.1:0"]);
    serve.env("LD_PRELOAD", &teller);
    let (mut server, mut log) = Serve::logging(serve);
    kill_process(server.pid(), Signal::TERM).unwrap();
    let rest = log.rest();
    assert_eq!(server.child.wait().unwrap().code(), Some(0), "{rest}");
    assert!(!rest.contains(TOLD), "{rest}");
}
