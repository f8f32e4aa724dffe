//! What is left when a front-end has gone: nothing of it, however it went.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use virtio_gpu_uring::testing::census::{Census, fds_named, maps_named};
use virtio_gpu_uring::testing::{DEADLINE, Request};

use crate::alone::alone;
use crate::front_end::{Asked, request};
use crate::machine::{CONTROL, Host, Machine, PAGE, Running, memfd, region};

/// Threads of this process that ask a front-end.
fn askers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc").flatten();
    tasks.filter(|task| is_asker(&task.path())).count()
}

fn is_asker(task: &std::path::Path) -> bool {
    // One that has ended meanwhile has no name.
    std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("virtio-gpu-ask"))
}

/// Waits until a count is what it should be.
#[track_caller]
fn becomes<T: PartialEq + std::fmt::Debug>(what: &str, want: &T, count: impl Fn() -> T) {
    let started = Instant::now();
    while count() != *want {
        assert!(started.elapsed() < DEADLINE, "{what}: {:?} instead of {want:?}", count());
        std::thread::yield_now();
    }
}

/// A machine that leaves in the middle of everything: a channel that waits, a blob that is mapped, a map that is not answered.
#[track_caller]
fn a_life(host: Host) -> (Host, [String; 3]) {
    let mut machine = Machine::boot(host);
    let (channel, peer) = machine.open_channel(1, 1);
    let [(first, first_name), (second, second_name)] = [memfd(2 * PAGE), memfd(2 * PAGE)];
    machine.blob(7, &channel, &peer, &first, 2 * PAGE);
    machine.blob(8, &channel, &peer, &second, 2 * PAGE);
    machine.map(7, 0);
    machine.submit(&channel.poll());
    machine.submit(&Request::map(8, 4 * PAGE));
    assert_eq!(machine.asks.next().request, Asked::MAP);
    machine.settle();
    let names = [machine.name.clone(), first_name, second_name];
    let counters = |host: &Host| host.server.device().counters();
    let host = machine.leave();
    assert_eq!(counters(&host).requests_lost, 0);
    (host, names)
}

#[test]
fn nothing_of_a_machine_outlives_its_front_end() {
    let (host, names) = a_life(Host::new());
    for name in &names {
        assert_eq!((fds_named(name), maps_named(name)), (0, 0), "descriptors and mappings of {name}");
    }
    let mut next = Machine::boot(host);
    next.settle();
    assert!(!next.asks.is_ready(), "the next front-end is asked for what was the last one's");
    next.leave();
}

#[test]
fn nothing_of_a_machine_outlives_a_front_end_that_was_cut_off() {
    let mut machine = Machine::boot(Host::new());
    let (channel, peer) = machine.open_channel(1, 1);
    let (file, file_name) = memfd(2 * PAGE);
    machine.blob(7, &channel, &peer, &file, 2 * PAGE);
    machine.map(7, 0);
    let name = machine.name.clone();
    let bad = region(0, PAGE, 0, 0);
    machine.front.say(request::ADD_MEM_REG, &bad, &[file.as_fd()]);
    machine.front.expect_end();
    let (_host, result) = machine.hang_up();
    result.expect_err("a region over another");
    drop(file);
    for name in [name, file_name] {
        assert_eq!((fds_named(&name), maps_named(&name)), (0, 0), "descriptors and mappings of {name}");
    }
}

#[test]
fn a_front_end_that_was_stopped_leaves_nothing_either() {
    let mut machine = Machine::boot(Host::new());
    machine.settle();
    let name = machine.name.clone();
    machine.running.stopper.stop();
    machine.front.expect_end();
    machine.hang_up().1.expect("no fault of the front-end's");
    assert_eq!((fds_named(&name), maps_named(&name)), (0, 0));
}

#[test]
fn fifty_front_ends_in_a_row_never_leave_a_descriptor_a_mapping_or_a_thread() {
    alone("endings::fifty_front_ends_in_a_row_never_leave_a_descriptor_a_mapping_or_a_thread", || {
        // The first ones find a process that has not grown to its size yet.
        let mut host = (0..3).fold(Host::new(), |host, _| a_life(host).0);
        becomes("threads", &0, askers);
        let count = || Census::take().fds;
        let (before, maps) = (count(), Census::take().maps);
        for _ in 0..50 {
            host = a_life(host).0;
        }
        becomes("threads", &0, askers);
        becomes("descriptors", &before, count);
        // A thread's stack and an allocator's arena are there or not, whoever had them first.
        let more = Census::take().maps.saturating_sub(maps);
        assert!(more < 25, "{more} mappings more after 50 front-ends");
        drop(host);
    });
}

#[test]
fn another_channel_to_ask_by_never_leaves_the_first_ones_thread() {
    alone("endings::another_channel_to_ask_by_never_leaves_the_first_ones_thread", || {
        let machine = Machine::boot(Host::new());
        becomes("threads", &1, askers);
        let (_ours, theirs) = UnixStream::pair().expect("sockets");
        machine.front.say(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
        machine.front.expect_end();
        machine.hang_up().1.expect_err("a second channel");
        becomes("threads", &0, askers);
    });
}

#[test]
fn a_front_end_that_was_never_up_leaves_nothing() {
    let (running, front) = Running::start(Host::new());
    drop(front);
    let (host, result) = running.end();
    result.expect("no fault");
    let mut machine = Machine::boot(host);
    machine.settle();
    machine.stop_ring(CONTROL);
    machine.leave();
}
