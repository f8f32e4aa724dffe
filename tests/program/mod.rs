//! The program as its users meet it: started with arguments, with this machine's logging settings out of the way.

use std::process::{Command, Output, Stdio};

pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virtio-gpu-uring"));
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    program(arguments).output().expect("the program runs")
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Status 2, one line on stderr that says `why`, nothing on stdout.
#[track_caller]
pub(crate) fn assert_refused(arguments: &[&str], why: &str) {
    let output = run(arguments);
    let reason = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {reason}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    assert!(reason.ends_with('\n') && reason.lines().count() == 1, "{arguments:?}: {reason:?}");
    assert!(reason.starts_with("virtio-gpu-uring: ") && reason.contains(why), "{arguments:?}: {reason:?}");
}
