//! One side dies in the middle: the other says so and goes on, or ends with a clear message, and nothing hangs.

use std::time::Instant;

use serde_json::json;
use virtio_gpu_uring::testing::HostService;

use crate::blobs::{buffers, daemon, turns};
use crate::daemon::{Daemon, say};
use crate::displays::Painter;
use crate::machine::{Device, Machine};
use crate::pattern::pixel;

const SIZE: (u32, u32) = (800, 600);
const LIVE: usize = 4;
const LEN: usize = 1 << 20;

#[test]
fn a_daemon_never_keeps_anything_of_a_qemu_that_was_killed() {
    let service = HostService::listen();
    let mut daemon = daemon(&service);
    for round in 0..2 {
        let mut machine = Machine::start(Device::Window11, &daemon);
        daemon.says("a front-end connected");
        let mut guest = turns(&mut machine, &service);
        guest.take(buffers(LIVE, LEN));
        assert_eq!(guest.bad, (0, 0), "round {round}");
        assert!(daemon.guest_memory() > 0, "a guest's memory is known by another name");
        guest.order("check", LIVE);
        machine.kill();
        daemon.says("the front-end ");
        daemon.expect_no_guest();
    }
    // Another QEMU with another device, at the same daemon.
    let mut machine = Machine::start(Device::Screen10(SIZE.0, SIZE.1), &daemon);
    daemon.says("a front-end connected");
    let (mut painter, _) = Painter::start(&mut machine);
    let wrong = painter.expect("draw 0 5", SIZE, |x, y| pixel(5, x, y));
    painter.order("flip 0 6");
    machine.kill();
    daemon.says("the front-end ");
    daemon.expect_no_guest();
    say(&format!("killed=qemu,qemu,qemu guest_memory_left=0 wrong={wrong}"));
    daemon.end();
}

/// QEMU either answers its monitor, and ends when it is told, or has ended by itself with a word of why.
#[track_caller]
fn expect_no_hang(mut machine: Machine, device: Device, from: Instant) {
    let lives = machine.qmp().try_run("query-status", json!({})).is_ok_and(|answer| answer["status"] == "running");
    let told = machine.qmp().try_run("quit", json!({}));
    let status = machine.ended();
    machine.listen();
    let words = machine.words.last().map_or("", String::as_str);
    let (code, seconds) = (status.code(), from.elapsed().as_secs());
    say(&format!("killed=daemon {device} lives={lives} status={code:?} seconds={seconds} says={words:?}"));
    assert!(lives && told.is_ok() || !words.is_empty(), "QEMU ended without a word: {status}");
}

#[test]
fn a_qemu_whose_daemon_was_killed_never_hangs_with_blobs() {
    let service = HostService::listen();
    let mut daemon = daemon(&service);
    let mut machine = Machine::start(Device::Window11, &daemon);
    let mut guest = turns(&mut machine, &service);
    guest.take(buffers(LIVE, LEN));
    guest.order("check", LIVE);
    let from = Instant::now();
    daemon.kill();
    // The guest lives as well, all of it that wants nothing of the device.
    machine.run("true");
    expect_no_hang(machine, Device::Window11, from);
}

#[test]
fn a_qemu_whose_daemon_was_ended_never_hangs_with_a_screen() {
    for device in [Device::Screen10(SIZE.0, SIZE.1), Device::Screen11(SIZE.0, SIZE.1)] {
        let mut daemon = Daemon::start(&[]);
        let mut machine = Machine::start(device, &daemon);
        let (mut painter, _) = Painter::start(&mut machine);
        painter.order("draw 0 5");
        painter.machine.tell("flip 0 6");
        let from = Instant::now();
        // One as it stands, the other in order.
        match device {
            Device::Screen11(..) => daemon.end(),
            _ => daemon.kill(),
        }
        expect_no_hang(machine, device, from);
    }
}

#[test]
fn a_second_qemu_never_disturbs_the_first() {
    let service = HostService::listen();
    let mut daemon = daemon(&service);
    let mut first = Machine::start(Device::Window11, &daemon);
    daemon.says("a front-end connected");
    let socket = daemon.socket();
    let second = std::thread::spawn(move || Machine::start_at(Device::Screen10(SIZE.0, SIZE.1), &socket));
    let mut guest = turns(&mut first, &service);
    for _ in 0..8 {
        guest.take(buffers(LIVE, LEN));
        guest.release();
    }
    assert_eq!(guest.quit(), (0, 0), "beside one that waits");
    first.says("guest: turns mapped=");
    assert!(!second.is_finished(), "two front-ends have one device");
    first.quit();
    daemon.says("the front-end left");
    daemon.says("a front-end connected");
    let mut second = second.join().expect("a machine");
    let (mut painter, _) = Painter::start(&mut second);
    let wrong = painter.expect("draw 0 7", SIZE, |x, y| pixel(7, x, y));
    painter.quit();
    second.quit();
    say(&format!("front_ends=2 at_once=1 bad=0 wrong={wrong}"));
    daemon.end();
}
