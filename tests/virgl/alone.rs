//! A process for each test that counts what a process holds, may bring it down, or makes a device after the first: this
//! program once more, told to run nothing else.

use std::process::Command;

/// Set in the process that is alone.
const ALONE: &str = "VIRTIO_GPU_URING_TEST_ALONE";

/// Runs the body of the test `name` in a process of its own.
///
/// # Panics
/// Where the test fails there, or the process dies; what it printed last is shown.
#[track_caller]
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let program = std::env::current_exe().expect("this program's path");
    let arguments = [name, "--exact", "--nocapture", "--test-threads=1"];
    let output = Command::new(program).args(arguments).env(ALONE, "1").output().expect("this program once more");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = complained.lines().collect();
    let last = lines[lines.len().saturating_sub(40)..].join("\n");
    assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}\n{last}", output.status);
}
