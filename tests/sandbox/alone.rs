//! A process for each test.

use std::process::Command;

/// Set in the process that is alone.
const ALONE: &str = "VIRTIO_GPU_URING_TEST_ALONE";

/// Whether this is the process that is alone.
pub(crate) fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Runs the body of the test `name` in a process of its own: this program once more, told to run nothing else. True is
/// the answer outside, when it has ended.
///
/// # Panics
/// Where the test fails there; what it printed is shown.
#[track_caller]
pub(crate) fn alone(name: &str, body: impl FnOnce()) -> bool {
    if is_alone() {
        body();
        return false;
    }
    let program = std::env::current_exe().expect("this program's path");
    let arguments = [name, "--exact", "--nocapture", "--test-threads=1"];
    let output = Command::new(program).args(arguments).env(ALONE, "1").output().expect("this program once more");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}\n{complained}", output.status);
    true
}
