//! Long copies in parts: whoever waits for the next turn must keep neither the ring's operations from the kernel nor anything
//! else that has ended from being booked.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{Guest, GuestOptions, Request, Token};
use virtio_gpu_uring::{Builder, HostBuffer, HostWindow};

/// More than all other work that is booked in a turn.
const IMAGES: u32 = 200;
const ROUNDS: u32 = 6;
const SIDE: u32 = 720;

/// Copies that are still to be made.
fn left(guest: &mut Guest, copies: &[Token]) -> usize {
    guest.settle();
    copies.iter().filter(|copy| !guest.has_answer(copy)).count()
}

#[test]
fn copies_that_wait_for_their_turn_never_keep_anything_else_from_ending() {
    let builder = Builder::new().window(HostWindow::new(4 << 20).expect("a window"));
    let options = GuestOptions { queue_size: 1024, ..GuestOptions::default() };
    let mut guest = Guest::with_options(builder, options);
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    let file = memfd_create("copies", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, 2 << 20).expect("a size");
    let kept = file.try_clone().expect("a duplicate");
    let offer = |file| guest.device().offer(HostBuffer::from_fd(file).expect("a buffer")).wait();
    let [read, closed] = [kept, file].map(|file| offer(file).expect("a device").expect("an offer").0);
    guest.command(&Request::host_blob(1, 1, read, 2 << 20)).ok();
    guest.command(&Request::host_blob(1, 2, closed, 2 << 20)).ok();
    let backing = guest.page_range((SIDE * SIDE * 4) as usize);
    for image in 100..100 + IMAGES {
        guest.command(&Request::create_2d(image, 1, SIDE, SIDE)).ok();
        guest.command(&Request::attach_backing(image, &[backing])).ok();
    }
    let transfer = |image| Request::transfer_2d(image, [0, 0, SIDE, SIDE], 0);
    let images = (0..ROUNDS * IMAGES).map(|number| 100 + number % IMAGES);
    let copies: Vec<Token> = images.take(900).map(|image| guest.submit(&transfer(image))).collect();
    // A close of two MiB, which the ring's workers do, and a read, which a thread of its own does.
    let unref = guest.submit(&Request::unref(2));
    let bytes = guest.device().read_blob(1, ..).wait().expect("a device").expect("read");
    assert_eq!(bytes.len(), 2 << 20);
    let after_read = left(&mut guest, &copies);
    guest.wait(unref).ok();
    let after_close = left(&mut guest, &copies);
    // Most copies still wait: neither was delayed until these were few.
    assert!(after_read.min(after_close) > copies.len() / 2, "left: {after_read}, then {after_close}");
    copies.into_iter().for_each(|copy| drop(guest.wait(copy).ok()));
}
