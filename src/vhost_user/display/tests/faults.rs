//! Front-ends that answer nonsense, or leave in the middle of something: their displays go, and nothing else.

use std::io::IoSlice;
use std::os::fd::AsFd as _;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::super::PATIENCE;
use super::*;

fn info(displays: &[DisplayOne]) -> Vec<u8> {
    let mut info = DisplayInfo::new_zeroed();
    info.displays[..displays.len()].copy_from_slice(displays);
    info.as_bytes().to_vec()
}

fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    Header { request, flags, size }.as_bytes().to_vec()
}

/// The display is gone, the socket closed, and the guest lives.
#[track_caller]
fn assert_cut_off(mut desk: Desk, what: &str) {
    // What was under way, and then the end.
    let _ = std::io::copy(&mut desk.front_end.0, &mut std::io::sink());
    desk.until(what, |desk| desk.info(0) == [0; 6]);
    desk.until("the guest hears of it", |desk| desk.events() == 1);
    desk.guest.assert_all_answered();
    // Another one may come.
    let (mut front_end, displays) = connect(&desk.guest, 1, PATIENCE);
    front_end.greet(0, &[display(5, 5)]);
    desk.until("another comes", |desk| desk.info(0)[2] == 5);
    drop(displays);
}

#[test]
fn an_answer_that_is_none_costs_the_front_end_its_displays_and_nobody_else_anything() {
    let asked = Asked::GetDisplayInfo as u32;
    let good = info(&[display(64, 64)]);
    let len = good.len() as u32;
    let answers: [(&str, Vec<u8>); 12] = [
        ("too short", [header(asked, REPLY, len - 1), good[1..].to_vec()].concat()),
        ("too long", [header(asked, REPLY, len + 1), good.clone(), vec![0]].concat()),
        ("endless", header(asked, REPLY, u32::MAX)),
        ("empty", header(asked, REPLY, 0)),
        ("to another question", [header(Asked::GetEdid as u32, REPLY, len), good.clone()].concat()),
        ("to no question", [header(77, REPLY, len), good.clone()].concat()),
        ("no answer", [header(asked, 0, len), good.clone()].concat()),
        ("without width", [header(asked, REPLY, len), info(&[display(0, 64)])].concat()),
        ("without height", [header(asked, REPLY, len), info(&[display(64, 0)])].concat()),
        ("too wide", [header(asked, REPLY, len), info(&[display(16385, 64)])].concat()),
        ("too high", [header(asked, REPLY, len), info(&[display(64, u32::MAX)])].concat()),
        ("twice", [header(asked, REPLY, len), good.clone(), header(asked, REPLY, len)].concat()),
    ];
    for (what, answer) in answers {
        let mut desk = Desk::new(&[display(64, 64)]);
        desk.clear_events();
        desk.displays.refresh();
        assert_eq!(desk.front_end.message().request, asked);
        desk.front_end.0.write_all(&answer).expect("the back-end is there");
        assert_cut_off(desk, what);
    }
}

#[test]
fn a_front_end_that_leaves_in_the_middle_of_anything_leaves_no_display_behind() {
    let asked = Asked::GetDisplayInfo as u32;
    let good = info(&[display(64, 64)]);
    let part = |len: usize| [header(asked, REPLY, good.len() as u32), good.clone()].concat()[..len].to_vec();
    for answer in [part(0), part(5), part(12), part(100)] {
        let mut desk = Desk::new(&[display(64, 64)]);
        desk.clear_events();
        desk.displays.refresh();
        assert_eq!(desk.front_end.message().request, asked);
        desk.front_end.0.write_all(&answer).expect("the back-end is there");
        desk.front_end.0.shutdown(std::net::Shutdown::Both).expect("a socket");
        assert_cut_off(desk, "part of an answer");
    }
    // While nothing is under way.
    let mut desk = Desk::new(&[display(64, 64)]);
    desk.clear_events();
    desk.front_end.0.shutdown(std::net::Shutdown::Both).expect("a socket");
    assert_cut_off(desk, "nothing");
}

#[test]
fn a_front_end_that_closes_in_the_middle_of_an_update_keeps_no_flush_waiting() {
    let mut desk = Desk::new(&[display(1280, 1024)]);
    desk.clear_events();
    desk.image(1, Format::B8G8R8X8, [1280, 1024], &noise(1, 1280 * 1024 * 4));
    desk.show(0, 1, [1280, 1024]);
    assert_eq!(desk.front_end.message().request, Asked::Scanout as u32);
    let flush = desk.guest.submit(&Request::flush(1, [0, 0, 1280, 1024]));
    let mut part = vec![0; 100_000];
    desk.front_end.0.read_exact(&mut part).expect("part of an update");
    desk.front_end.0.shutdown(std::net::Shutdown::Both).expect("a socket");
    desk.guest.wait(flush).ok();
    // What is flushed from now on waits for nobody.
    desk.guest.command(&Request::flush(1, [0, 0, 1280, 1024])).ok();
    assert_cut_off(desk, "closed in an update");
}

#[test]
fn no_descriptor_is_taken_from_a_front_end() {
    let mut desk = Desk::new(&[display(64, 64)]);
    desk.clear_events();
    desk.displays.refresh();
    assert_eq!(desk.front_end.message().request, Asked::GetDisplayInfo as u32);
    let answer = [header(Asked::GetDisplayInfo as u32, REPLY, 408), info(&[display(64, 64)])].concat();
    let file = rustix::fs::memfd_create("vhost-display-unwanted", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    sendmsg(&desk.front_end.0, &[IoSlice::new(&answer)], &mut control, SendFlags::empty()).expect("sent");
    drop(file);
    assert_cut_off(desk, "descriptors");
    assert_eq!(crate::testing::census::fds_named("vhost-display-unwanted"), 0);
}

#[test]
fn a_front_end_that_speaks_first_is_cut_off() {
    let mut desk = Desk::new(&[display(64, 64)]);
    desk.clear_events();
    desk.front_end.0.write_all(&[1]).expect("the back-end is there");
    assert_cut_off(desk, "unasked");
}

#[test]
fn displays_beyond_the_devices_are_no_fault() {
    let mut desk = Desk::silent(1);
    let all = [display(64, 64); 16];
    desk.front_end.greet(0, &all);
    desk.until("the first is connected", |desk| desk.info(0)[4] == 1);
    assert_eq!(desk.info(1), [0; 6]);
    // And a device with fewer scanouts than it was said to have.
    let (mut front_end, displays) = connect(&desk.guest, 3, PATIENCE);
    front_end.greet(0, &all);
    displays.refresh();
    front_end.tell(&all);
    desk.guest.settle();
    drop(displays);
    front_end.assert_end();
}
