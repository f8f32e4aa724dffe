//! A whole life: what is negotiated, first kicks, calls, and the configuration space.

use std::os::fd::AsFd;

use rustix::event::{EventfdFlags, eventfd};
use virtio_gpu_uring::protocol::wire::response_type::OK_NODATA;
use virtio_gpu_uring::testing::Request;
use virtio_gpu_uring::{Builder, Monitor, NullDisplay, VhostUserServer, VhostUserSettings};

use crate::front_end::{ALL_PROTOCOL, Asked, NO_FD, SHMEM, long, request, words};
use crate::machine::{CONTROL, CURSOR, Host, Machine, WINDOW, event};

#[test]
fn no_driver_is_left_without_an_answer() {
    let mut machine = Machine::boot(Host::new());
    let info = machine.command(&Request::display_info());
    assert_eq!(info.written, 408);
    info.ok();
    let cursor = machine.add(CURSOR, &Request::move_cursor(0, (3, 4)));
    machine.kick(CURSOR);
    assert_eq!(machine.wait_on(CURSOR, cursor).kind(), OK_NODATA);
    let host = machine.leave();
    let counters = host.server.device().counters();
    assert_eq!((counters.commands, counters.answers_ok, counters.requests_lost), (2, 2, 0));
}

#[test]
fn nothing_that_the_issue_names_is_withheld_from_a_front_end() {
    let machine = Machine::powered(Host::new(), ALL_PROTOCOL);
    let offered = machine.front.ask_long(request::GET_PROTOCOL_FEATURES);
    assert_eq!(offered & ALL_PROTOCOL, ALL_PROTOCOL, "{offered:#x}");
    assert!(machine.front.ask_long(request::GET_QUEUE_NUM) >= 2);
    assert!(machine.front.ask_long(request::GET_MAX_MEM_SLOTS) >= 32, "QEMU gives a guest 32 regions at least");
    let shmem = machine.front.ask(request::GET_SHMEM_CONFIG, &[]);
    assert_eq!((shmem.len(), long(&shmem, 0), long(&shmem, 8), long(&shmem, 16)), (8 + 8 * 256, 1, 0, WINDOW));
    assert!(shmem[24..].iter().all(|byte| *byte == 0), "a region that is not there");
    machine.leave();
}

#[test]
fn a_back_end_without_a_window_never_offers_one() {
    let server = VhostUserServer::new(Builder::new(), VhostUserSettings::new()).expect("a server");
    let Host { service, .. } = Host::new();
    let machine = Machine::powered(Host { server, service }, ALL_PROTOCOL & !SHMEM);
    assert_eq!(machine.front.ask_long(request::GET_PROTOCOL_FEATURES) & SHMEM, 0);
    machine.leave();
}

#[test]
fn a_kick_before_the_ring_is_enabled_is_never_lost() {
    for _ in 0..20 {
        let mut machine = Machine::powered(Host::new(), ALL_PROTOCOL);
        machine.set_up_ring(CONTROL, 0);
        let token = machine.submit(&Request::display_info());
        machine.config(0, 16);
        assert!(!machine.has_answer(&token), "a ring that is not enabled was served");
        machine.enable(CONTROL, true);
        machine.wait(token).ok();
        machine.leave();
    }
}

#[test]
fn requests_that_were_there_before_the_kick_descriptor_are_never_left_lying() {
    for kicked in [true, false] {
        let mut machine = Machine::powered(Host::new(), ALL_PROTOCOL);
        let tokens: Vec<_> = (0..5).map(|_| machine.add(CONTROL, &Request::display_info())).collect();
        if kicked {
            machine.kick(CONTROL);
        }
        machine.start_ring(CONTROL, 0);
        tokens.into_iter().for_each(|token| drop(machine.wait(token).ok()));
        machine.leave();
    }
}

#[test]
fn rings_of_a_front_end_without_protocol_features_are_never_left_disabled() {
    let mut machine = Machine::powered(Host::new(), ALL_PROTOCOL);
    let features = machine.front.ask_long(request::GET_FEATURES) & !(1 << 30);
    machine.front.tell(request::SET_FEATURES, &words(&[], &[features]), &[]);
    machine.set_up_ring(CONTROL, 0);
    machine.settle();
    machine.leave();
}

#[test]
fn answers_never_go_to_a_call_descriptor_that_was_replaced() {
    let mut machine = Machine::boot(Host::new());
    machine.settle();
    let old = std::mem::replace(&mut machine.ports[CONTROL].call, event());
    let _ = rustix::io::read(&old, &mut [0; 8]);
    machine.front.tell(request::SET_VRING_CALL, &words(&[], &[0]), &[machine.ports[CONTROL].call.as_fd()]);
    machine.settle();
    assert!(rustix::io::read(&old, &mut [0; 8]).is_err(), "the old descriptor was called");
    machine.leave();
}

#[test]
fn a_call_taken_away_never_stalls_the_device() {
    let mut machine = Machine::boot(Host::new());
    machine.front.tell(request::SET_VRING_CALL, &words(&[], &[NO_FD]), &[]);
    let token = machine.submit(&Request::display_info());
    while !machine.has_answer(&token) {
        machine.config(0, 16);
    }
    machine.front.tell(request::SET_VRING_CALL, &words(&[], &[0]), &[machine.ports[CONTROL].call.as_fd()]);
    machine.settle();
    machine.leave();
}

#[test]
fn a_call_eventfd_at_its_maximum_never_stalls_the_device() {
    let mut machine = Machine::boot(Host::new());
    // A description that waits where there is no room.
    let full = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("its maximum");
    machine.front.tell(request::SET_VRING_CALL, &words(&[], &[0]), &[full.as_fd()]);
    for _ in 0..3 {
        let token = machine.submit(&Request::display_info());
        while !machine.has_answer(&token) {
            machine.config(0, 16);
        }
    }
    machine.front.tell(request::SET_VRING_CALL, &words(&[], &[0]), &[machine.ports[CONTROL].call.as_fd()]);
    machine.settle();
    machine.leave();
}

#[test]
fn a_configuration_read_beyond_its_end_is_never_refused() {
    let machine = Machine::boot(Host::new());
    let whole = machine.config(0, 256);
    assert_eq!(whole[8..12], 1u32.to_le_bytes(), "num_scanouts");
    let mut known = [0; 64];
    machine.config(0, 16);
    known[..16].copy_from_slice(&whole[..16]);
    for size in [1, 4, 16, 20, 24, 28, 256] {
        assert_eq!(machine.config(0, size), whole[..size as usize], "{size} bytes");
    }
    for (offset, size) in [(8, 4), (12, 8), (16, 4), (24, 8), (200, 56), (255, 1)] {
        let range = offset as usize..(offset + size) as usize;
        assert_eq!(machine.config(offset, size), whole[range], "{size} bytes at {offset}");
    }
    assert!(whole[24..].iter().all(|byte| *byte == 0), "what lies behind the configuration is not zero");
    machine.leave();
}

#[test]
fn events_are_never_left_standing_that_the_driver_has_cleared() {
    let host = Host::new();
    let displays = host.server.device().displays();
    let mut machine = Machine::boot(host);
    machine.settle();
    displays.connect(0, Monitor::new(640, 480), NullDisplay).wait().expect("a device").expect("a display");
    let asked = machine.asks.next();
    assert_eq!((asked.request, asked.needs_reply, asked.body.len()), (Asked::CONFIG_CHANGED, false, 0));
    assert_eq!(machine.config(0, 4), 1u32.to_le_bytes(), "VIRTIO_GPU_EVENT_DISPLAY");
    let clear = [words(&[4, 4, 0], &[]), 1u32.to_le_bytes().to_vec()].concat();
    machine.front.tell(request::SET_CONFIG, &clear, &[]);
    assert_eq!(machine.config(0, 4), [0; 4]);
    let info = machine.command(&Request::display_info()).ok();
    assert_eq!(info[8..16], [640u32.to_le_bytes(), 480u32.to_le_bytes()].concat());
    machine.leave();
}
