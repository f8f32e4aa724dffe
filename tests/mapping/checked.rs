//! A window whose VMM has a word in what counts as mapped: dma-bufs are asked about before their MAP is answered, by
//! somebody who may take his time, refuse or panic.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_UNSPEC};
use virtio_gpu_uring::testing::{DEADLINE, Request};
use virtio_gpu_uring::{Access, BufferKind, Builder, HostBuffer, HostWindow, Limits};

use crate::setup::{PAGE, PAGES, Setup, memfd};

/// A guest whose window asks `check`, and has all the time of the device.
fn checked(builder: Builder, check: impl Fn(u64, u64) -> io::Result<()> + Send + 'static) -> Setup {
    patient(Duration::MAX, builder, check)
}

fn patient(patience: Duration, builder: Builder, check: impl Fn(u64, u64) -> io::Result<()> + Send + 'static) -> Setup {
    let len = (PAGES * PAGE) as usize;
    let window = HostWindow::with_scratch(len, len).expect("a window").checked_by(patience, check).expect("a thread");
    let setup = Setup::on(window, builder);
    setup.paint();
    setup
}

/// A memfd that the device takes for a dma-buf.
fn dma_buf(file: &OwnedFd, len: u64) -> HostBuffer {
    let file = file.try_clone().expect("a duplicate");
    HostBuffer::stand_in(file, BufferKind::DmaBuf, len, Access::ReadWrite)
}

/// A check that tells what it was asked, and answers what the test says.
#[expect(clippy::type_complexity, reason = "two ends of two channels")]
fn asked() -> (impl Fn(u64, u64) -> io::Result<()> + Send + 'static, Receiver<(u64, u64)>, Sender<io::Result<()>>) {
    let (told, questions) = channel();
    let (answers, answer) = channel();
    let check = move |offset, len| {
        let _ = told.send((offset, len));
        answer.recv().unwrap_or(Ok(()))
    };
    (check, questions, answers)
}

fn refusal() -> io::Error {
    rustix::io::Errno::FAULT.into()
}

#[test]
fn a_refused_buffer_never_stays_in_the_window_nor_costs_its_range() {
    let mut setup = checked(Builder::new(), |_, _| Err(refusal()));
    let file = memfd("checked-refused", 2 * PAGE);
    setup.blob_of(7, dma_buf(&file, 2 * PAGE), 2 * PAGE);
    for first in [0, 3, PAGES - 2] {
        setup.refused(&Request::map(7, first * PAGE), ERR_UNSPEC);
        setup.assert_gap(0..PAGES);
    }
    setup.blob(8, &file, PAGE);
    setup.guest.map(8, 0);
    assert_eq!(setup.byte(0), 1);
    let counters = setup.guest.device().counters();
    assert_eq!((counters.map_failures, counters.quarantined, counters.maps), (3, 0, 1));
}

#[test]
fn shared_memory_is_never_asked_about() {
    let mut setup = checked(Builder::new(), |_, _| Err(refusal()));
    setup.blob(7, &memfd("checked-memfd", 4 * PAGE), 4 * PAGE);
    setup.guest.map(7, 0);
    assert_eq!(setup.pages(0..4), [1, 2, 3, 4]);
}

#[test]
fn a_map_is_never_answered_before_the_check_and_holds_up_nobody_else() {
    let (check, questions, answers) = asked();
    let mut setup = checked(Builder::new(), check);
    let file = memfd("checked-slow", 3 * PAGE);
    setup.blob_of(7, dma_buf(&file, 2 * PAGE), 2 * PAGE);
    setup.blob(8, &file, PAGE);
    let map = setup.guest.submit(&Request::map(7, 5 * PAGE));
    assert_eq!(questions.recv().expect("a question"), (5 * PAGE, 2 * PAGE));
    for _ in 0..20 {
        setup.guest.map(8, 0);
        setup.ok(&Request::unmap(8));
    }
    setup.guest.settle();
    assert!(!setup.guest.has_answer(&map), "answered before the check");
    answers.send(Ok(())).expect("a check that waits");
    setup.guest.wait(map).ok();
    assert_eq!(setup.pages(5..7), [1, 2]);
}

#[test]
fn a_check_that_panics_never_ends_more_than_the_mapping() {
    let mut setup = checked(Builder::new(), |_, _| panic!("as a test wants it"));
    let file = memfd("checked-panic", PAGE);
    setup.blob_of(7, dma_buf(&file, PAGE), PAGE);
    for _ in 0..2 {
        setup.refused(&Request::map(7, 0), ERR_UNSPEC);
        setup.assert_gap(0..PAGES);
    }
    setup.blob(8, &file, PAGE);
    setup.guest.map(8, 0);
    assert_eq!(setup.byte(0), 1);
}

#[test]
fn a_check_that_comes_too_late_never_leaves_the_buffer_or_blocks_the_range_for_good() {
    let (check, questions, answers) = asked();
    let limits = Limits { deadline: Duration::from_millis(30), ..Limits::default() };
    let mut setup = checked(Builder::new().limits(limits), check);
    let file = memfd("checked-late", PAGE);
    setup.blob_of(7, dma_buf(&file, PAGE), PAGE);
    setup.refused(&Request::map(7, 0), ERR_UNSPEC);
    assert_eq!(questions.recv().expect("a question"), (0, PAGE));
    assert_eq!(setup.guest.device().counters().quarantined, 1);
    answers.send(Ok(())).expect("a check that waits");
    // The late placement is taken back, and its range is free again some turns later.
    setup.blob(8, &file, PAGE);
    let began = Instant::now();
    while setup.guest.command(&Request::map(8, 0)).kind() == ERR_INVALID_PARAMETER {
        assert!(began.elapsed() < DEADLINE, "the range is never free again");
    }
    assert_eq!(setup.byte(0), 1);
    setup.ok(&Request::unmap(8));
    setup.assert_gap(0..PAGES);
}

#[test]
fn a_check_that_takes_too_long_never_leaves_the_buffer_in_the_window() {
    let (check, questions, answers) = asked();
    let mut setup = patient(Duration::from_millis(300), Builder::new(), check);
    let file = memfd("checked-long", PAGE);
    setup.blob_of(7, dma_buf(&file, PAGE), PAGE);
    setup.refused(&Request::map(7, 0), ERR_UNSPEC);
    setup.assert_gap(0..PAGES);
    setup.blob(8, &file, PAGE);
    setup.guest.map(8, 0);
    assert_eq!(setup.guest.device().counters().quarantined, 0);
    assert_eq!(questions.recv().expect("a question"), (0, PAGE));
    answers.send(Ok(())).expect("a check that waits");
    // Its late word changes nothing.
    setup.guest.settle();
    assert_eq!(setup.byte(0), 1);
}

#[test]
fn the_device_never_waits_for_a_check_when_it_ends() {
    let (check, questions, answers) = asked();
    let limits = Limits { deadline: Duration::from_millis(30), ..Limits::default() };
    let mut setup = checked(Builder::new().limits(limits), check);
    let file = memfd("checked-end", PAGE);
    setup.blob_of(7, dma_buf(&file, PAGE), PAGE);
    let _never_answered = setup.guest.submit(&Request::map(7, 0));
    assert_eq!(questions.recv().expect("a question"), (0, PAGE));
    setup.guest.reset();
    drop(answers);
    setup.guest.activate();
    setup.ok(&Request::display_info());
}
