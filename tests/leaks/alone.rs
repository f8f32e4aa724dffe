//! A process for each test: descriptors, mappings and their limits belong to a whole process, and the harness itself
//! starts and joins threads between tests.

use std::process::Command;

use virtio_gpu_uring::testing::census::Census;

/// Set in the process that is alone.
const ALONE: &str = "VIRTIO_GPU_URING_TEST_ALONE";

/// Runs the body of the test `name` in a process of its own: this program once more, told to run nothing else.
///
/// # Panics
/// Where the test fails there; what it printed is shown.
#[track_caller]
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let program = std::env::current_exe().expect("this program's path");
    let arguments = [name, "--exact", "--nocapture", "--test-threads=1"];
    let output = Command::new(program).args(arguments).env(ALONE, "1").output().expect("this program once more");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}\n{complained}", output.status);
}

/// Cycles before anything is counted.
///
/// What is made once a process stays: the allocator's arena of the first thread of each kind, stacks that libc keeps for
/// the next thread, statics that are made on first use, tables that grow to their working size. All of that is there
/// after a few cycles, and a leak grows on.
const WARM_UP: usize = 12;

/// The allocator may take this much more of the address space at any time. Mappings beside each other are one line of
/// `/proc/self/maps`, so that only the sum tells that they grow.
const ALLOCATOR: u64 = 1 << 20;

/// Runs `cycle` `count` times and asserts that not one descriptor and not one mapping more, or less, is there after it.
///
/// # Panics
/// Where something was left.
#[track_caller]
pub(crate) fn leaves_nothing(count: usize, mut cycle: impl FnMut(usize)) {
    (0..WARM_UP).for_each(&mut cycle);
    let (before, open, size) = (Census::take(), open(), address_space());
    (0..count).for_each(cycle);
    let after = Census::take();
    assert_eq!(after, before, "after {count} cycles; open before:\n{open}\nafter:\n{}", self::open());
    let grown = address_space().saturating_sub(size);
    assert!(grown < ALLOCATOR + count as u64 * 2048, "{grown} bytes more of address space after {count} cycles");
}

/// How much of the address space is mapped, in bytes.
fn address_space() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("/proc/self/statm");
    let pages: u64 = pages.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number of pages");
    pages * rustix::param::page_size() as u64
}

/// What the counts are of, for whoever has to find a leak.
fn open() -> String {
    let links = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten();
    let links = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    links.map(|link| link.display().to_string() + "\n").collect::<String>() + &maps
}
