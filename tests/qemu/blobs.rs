//! The host's buffers in a guest's window: read and written by turns on both sides, many at once and many in turn, while the
//! machine stands still in the middle, and after guests that started anew with their window full.

use std::time::Instant;

use serde_json::json;
use virtio_gpu_uring::testing::HostService;

use crate::daemon::{Daemon, say};
use crate::host::{Buffer, Turns};
use crate::machine::{Device, Machine};

/// In MiB.
const WINDOW: &str = "64";
const LIVE: usize = 16;
/// So many of these fill the window.
const LARGE: usize = 4 << 20;
const SMALL: usize = 128 << 10;
const TURNS: usize = 1000;
const REBOOTS: usize = 3;
const STOPS: usize = 20;

/// A daemon with a window, and a host's service behind it.
pub(crate) fn daemon(service: &HostService) -> Daemon {
    let socket = format!("pipewire={}", service.path().display());
    Daemon::start(&["--window", WINDOW, "--host-socket", &socket])
}

/// Starts the guest's program.
#[track_caller]
pub(crate) fn turns(machine: &mut Machine, service: &HostService) -> Turns {
    machine.tell("lab-guest turns --channel pipewire &");
    assert_eq!(machine.says("guest: status "), "guest: status 0");
    machine.says("guest: cross-domain ");
    Turns::accept(service)
}

pub(crate) fn buffers(count: usize, len: usize) -> Vec<Buffer> {
    (0..count).map(|_| Buffer::new(len)).collect()
}

/// Ends the guest's program; no word may have been wrong.
#[track_caller]
fn expect_right(machine: &mut Machine, turns: Turns, what: &str, from: Instant) {
    let (guest, host) = turns.quit();
    say(&format!("blobs {what} bad_guest={guest} bad_host={host} seconds={}", from.elapsed().as_secs()));
    machine.says("guest: turns mapped=");
    assert_eq!((guest, host), (0, 0), "{what}");
}

/// Of all sizes up to 64 KiB, one after the other.
fn take_turns(turns: &mut Turns, count: usize) {
    for turn in 0..count {
        turns.take(buffers(1, (1 + turn % 16) << 12));
        turns.release();
    }
}

#[test]
fn no_word_of_a_blob_is_ever_another_one_on_either_side() {
    let service = HostService::listen();
    let mut daemon = daemon(&service);
    let mut machine = Machine::start(Device::Window11, &daemon);
    let from = Instant::now();
    let mut guest = turns(&mut machine, &service);
    guest.take(buffers(LIVE, SMALL));
    guest.check();
    guest.release();
    take_turns(&mut guest, TURNS);
    expect_right(&mut machine, guest, &format!("live={LIVE} turns={TURNS}"), from);
    machine.expect_no_complaints();
    machine.quit();
    daemon.says("the front-end left");
    daemon.expect_no_guest();
    daemon.end();
}

#[test]
fn a_machine_that_stands_still_loses_nothing_of_a_blob() {
    let service = HostService::listen();
    let mut daemon = daemon(&service);
    let mut machine = Machine::start(Device::Window11, &daemon);
    let from = Instant::now();
    let mut guest = turns(&mut machine, &service);
    // Not while anything is being mapped: QEMU 11.1 dies of a request that it reads after it has stopped.
    for _ in 0..STOPS {
        guest.take(buffers(LIVE, SMALL));
        // In the middle of the guest's work.
        guest.order("check", LIVE);
        machine.qmp().run("stop", json!({}));
        machine.qmp().run("cont", json!({}));
        guest.compare();
        guest.check();
        guest.release();
    }
    expect_right(&mut machine, guest, &format!("stops={STOPS} live={LIVE}"), from);
    machine.expect_no_complaints();
    machine.quit();
    daemon.says("the front-end left");
    daemon.end();
}

#[test]
fn a_guest_that_starts_anew_never_finds_a_smaller_window() {
    let service = HostService::listen();
    let mut daemon = daemon(&service);
    let mut machine = Machine::start(Device::Window11, &daemon);
    let from = Instant::now();
    let mut bad = (0, 0);
    for boot in 0..=REBOOTS {
        let mut guest = turns(&mut machine, &service);
        guest.take(buffers(LIVE, LARGE));
        bad = (bad.0 + guest.bad.0, bad.1 + guest.bad.1);
        match boot {
            REBOOTS => expect_right(&mut machine, guest, &format!("reboots={REBOOTS} live={LIVE} MiB={WINDOW}"), from),
            1 => machine.reset(),
            _ => machine.reboot(),
        }
    }
    assert_eq!(bad, (0, 0), "words before a reboot");
    machine.expect_no_complaints();
    machine.quit();
    daemon.says("the front-end left");
    daemon.expect_no_guest();
    daemon.end();
}
