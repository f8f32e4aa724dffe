//! Guest memory that comes and goes while the device runs.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use virtio_gpu_uring::testing::{Answer, Request, Segment, Table, census};
use vm_memory::GuestAddress;

use crate::front_end::{request, words};
use crate::machine::{CONTROL, Host, Machine, PAGE, RAM, USER, memfd, region};

/// Where memory is added.
const ADDED: u64 = 1 << 32;

/// GET_DISPLAY_INFO with its request at `readable` and room for the answer at `writable`.
fn display_info_at(machine: &mut Machine, readable: u64, writable: u64) -> Answer {
    let segments = [Segment::readable(GuestAddress(readable), 24), Segment::writable(GuestAddress(writable), 408)];
    let queue = &mut machine.ports[CONTROL].queue;
    let token = queue.add_scattered(&segments, Table::Direct).expect("room in the ring");
    let _ = queue.publish();
    machine.kick(CONTROL);
    machine.wait(token)
}

fn is_error(answer: &Answer) -> bool {
    (0x1200..0x1300).contains(&answer.kind())
}

#[test]
fn memory_that_is_added_is_never_unknown_and_once_removed_never_touched() {
    let mut machine = Machine::boot(Host::new());
    let (file, name) = memfd(2 * PAGE);
    let room = machine.ram.alloc(408, 16).0;
    file.write_all_at(&Request::display_info().bytes(), PAGE + 64).expect("written");
    // Its second page alone is memory.
    let added = region(ADDED, PAGE, USER + ADDED, PAGE);
    machine.front.tell(request::ADD_MEM_REG, &added, &[file.as_fd()]);
    display_info_at(&mut machine, ADDED + 64, room).ok();
    machine.command(&Request::create_2d(5, 1, 16, 16)).ok();
    machine.command(&Request::attach_backing(5, &[(ADDED, 1024)])).ok();
    machine.command(&Request::transfer_2d(5, [0, 0, 16, 16], 0)).ok();

    machine.front.tell(request::REM_MEM_REG, &added, &[]);
    let lost = display_info_at(&mut machine, ADDED + 64, room);
    assert!(lost.written == 0 || is_error(&lost), "a request in removed memory: {:#x}", lost.kind());
    let nowhere = display_info_at(&mut machine, room, ADDED);
    assert_eq!(nowhere.written, 0, "an answer in removed memory");
    let answer = machine.command(&Request::transfer_2d(5, [0, 0, 16, 16], 0));
    assert!(is_error(&answer), "pixels in removed memory: {:#x}", answer.kind());
    machine.command(&Request::unref(5)).ok();
    machine.settle();
    drop(file);
    assert_eq!((census::fds_named(&name), census::maps_named(&name)), (0, 0), "removed memory is kept");
    machine.leave();
}

#[test]
fn a_table_of_memory_sent_anew_never_stops_the_rings() {
    let mut machine = Machine::boot(Host::new());
    let (more, name) = memfd(PAGE);
    more.write_all_at(&Request::display_info().bytes(), 0).expect("written");
    let room = machine.ram.alloc(408, 16).0;
    for _ in 0..50 {
        let pending = machine.submit(&Request::display_info());
        let two = words(&[2, 0], &[0, RAM, USER, 0, ADDED, PAGE, USER + ADDED, 0]);
        machine.front.tell(request::SET_MEM_TABLE, &two, &[machine.file.as_fd(), more.as_fd()]);
        display_info_at(&mut machine, ADDED, room).ok();
        let one = words(&[1, 0], &[0, RAM, USER, 0]);
        machine.front.tell(request::SET_MEM_TABLE, &one, &[machine.file.as_fd()]);
        machine.wait(pending).ok();
    }
    drop(more);
    assert_eq!((census::fds_named(&name), census::maps_named(&name)), (0, 0), "replaced memory is kept");
    machine.leave();
}

#[test]
fn the_memory_under_the_rings_taken_away_never_ends_the_server() {
    let mut machine = Machine::boot(Host::new());
    machine.settle();
    let ram = region(0, RAM, USER, 0);
    machine.front.tell(request::REM_MEM_REG, &ram, &[]);
    machine.submit(&Request::display_info());
    machine.config(0, 20);
    let host = match machine.hang_up() {
        (host, Ok(())) => host,
        (host, Err(cut_off)) => {
            assert_eq!(cut_off.to_string().lines().count(), 1);
            host
        }
    };
    let mut next = Machine::boot(host);
    next.settle();
    next.leave();
}
