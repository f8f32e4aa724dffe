//! Front-ends that read slowly, or not at all: nobody waits for them, and nothing piles up.

use rustix::net::recv;

use super::super::wire::{Scanout, Update};
use super::*;

/// A picture that no socket holds.
const SIZE: [u32; 2] = [1280, 1024];
const ALL: [u32; 4] = [0, 0, SIZE[0], SIZE[1]];
const BYTES: usize = (SIZE[0] * SIZE[1] * 4) as usize;

/// A guest that has flushed a picture to a front-end that has begun to read it; the image's address.
fn stuck() -> (Desk, u64, crate::testing::Token) {
    let mut desk = Desk::new(&[display(SIZE[0], SIZE[1])]);
    let address = desk.image(1, Format::B8G8R8X8, SIZE, &noise(1, BYTES));
    desk.show(0, 1, SIZE);
    let flush = desk.guest.submit(&Request::flush(1, ALL));
    let _: Scanout = desk.front_end.message().is(Asked::Scanout);
    // The thread is in the middle of a message as soon as some of it is there.
    let seen = recv(&desk.front_end.0, &mut [0], RecvFlags::PEEK).expect("the beginning of an update");
    assert_eq!(seen.1, 1);
    (desk, address, flush)
}

#[test]
fn a_front_end_that_never_reads_keeps_no_command_waiting_and_no_thread_alive() {
    let (mut desk, address, flush) = stuck();
    for round in 0..50 {
        desk.paint(1, address, SIZE, &[round; 4096]);
        desk.show(0, 1, SIZE);
        desk.guest.submit(&Request::flush(1, ALL));
        let token = desk.guest.submit_on(crate::testing::Lane::Cursor, &Request::update_cursor(0, 0, (1, 1), (0, 0)));
        desk.guest.wait_on(crate::testing::Lane::Cursor, token).ok();
        desk.displays.refresh();
        desk.guest.settle();
    }
    assert!(!desk.guest.has_answer(&flush), "the guest is paced by its front-end");
    drop(desk.displays);
    desk.guest.wait(flush).ok();
    let started = Instant::now();
    while desk.guest.command(&Request::display_info()).ok()[16] == 1 {
        assert!(started.elapsed() < DEADLINE, "the display is disconnected");
    }
    assert_eq!(desk.guest.device().counters().displays_lost, 0);
}

#[test]
fn a_front_end_that_reads_late_gets_the_newest_frame_and_not_all_of_them() {
    let (mut desk, address, first) = stuck();
    let mut flushes = vec![first];
    let mut pixels = noise(1, BYTES);
    for frame in 2..20 {
        pixels.fill(frame);
        desk.paint(1, address, SIZE, &pixels);
        flushes.push(desk.guest.submit(&Request::flush(1, ALL)));
        desk.guest.settle();
    }
    assert!(flushes.iter().all(|flush| !desk.guest.has_answer(flush)));
    let (mut canvas, mut messages) = (vec![0; BYTES], 0);
    while canvas != pixels {
        let message = desk.front_end.message();
        let (update, bytes) = message.carries::<Update>(Asked::Update);
        assert_eq!((update.x, update.width), (0, SIZE[0]));
        canvas[(update.y * SIZE[0] * 4) as usize..][..bytes.len()].copy_from_slice(bytes);
        messages += 1;
    }
    for flush in flushes {
        desk.guest.wait(flush).ok();
    }
    desk.front_end.assert_silent();
    let per_frame = BYTES.div_ceil(1 << 20) + 1;
    assert!(messages <= 2 * per_frame, "{messages} messages");
}

#[test]
fn what_is_shown_no_more_is_not_waited_for() {
    let (mut desk, ..) = stuck();
    let second = desk.guest.submit(&Request::flush(1, ALL));
    desk.guest.settle();
    desk.image(2, Format::B8G8R8X8, [8, 8], &noise(7, 256));
    desk.show(0, 2, [8, 8]);
    let last = desk.guest.submit(&Request::flush(2, [0, 0, 8, 8]));
    // What it was in the middle of, and then nothing of the old picture.
    let mut rows = 0;
    let next = loop {
        let message = desk.front_end.message();
        if message.request != Asked::Update as u32 {
            break message;
        }
        rows += message.carries::<Update>(Asked::Update).0.height;
    };
    assert_eq!(rows, SIZE[1]);
    assert_eq!(next.is::<Scanout>(Asked::Scanout).width, 8);
    let message = desk.front_end.message();
    assert!(message.carries::<Update>(Asked::Update).1 == noise(7, 256));
    desk.guest.wait(second).ok();
    desk.guest.wait(last).ok();
}
