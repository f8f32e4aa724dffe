//! The queues: a full pipeline never sleeps over work, chains of very many pieces are served, oversize queues are not.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_gpu_uring::testing::{
    DriverQueue, Guest, GuestOptions, GuestRam, Lane, Layout, Pieces, Request, RingFeatures,
};
use virtio_gpu_uring::{
    ActivateError, Activation, BufferKind, Builder, Limits, PlaceError, Protection, QUEUE_SIZES, SharedMemory, Work,
};
use vm_memory::GuestMemoryMmap;

use crate::echo::echo;
use crate::{PAGE, make_blobs};

/// A region whose owner answers later, and at once: every future is ready when it is looked at.
struct ReadyMemory;

impl SharedMemory for ReadyMemory {
    fn len(&self) -> u64 {
        1 << 20
    }

    fn place(&self, _: u64, _: u64, _: BorrowedFd<'_>, _: BufferKind, _: Protection) -> Work<Result<(), PlaceError>> {
        Work::later(async { Ok(()) })
    }

    fn clear(&self, _: u64, _: u64, _: BufferKind) -> Work<Result<(), PlaceError>> {
        Work::later(async { Ok(()) })
    }

    fn clear_now(&self, _: u64, _: u64) -> Result<(), PlaceError> {
        Ok(())
    }
}

/// Many MAPs in one publish on a pipeline of `most` commands.
fn maps_in_one_publish(most: usize) {
    const BLOBS: u32 = 64;
    let limits = Limits { commands_in_flight: most, ..Limits::default() };
    let mut guest = Guest::start(Builder::new().limits(limits).window(ReadyMemory));
    make_blobs(&mut guest, 1..=BLOBS);
    for round in 0..4 {
        let request = |blob| match round % 2 {
            0 => Request::map(blob, u64::from(blob) * PAGE),
            _ => Request::unmap(blob),
        };
        let tokens: Vec<_> = (1..=BLOBS).map(|blob| guest.add(Lane::Control, &request(blob))).collect();
        guest.publish(Lane::Control);
        for token in tokens {
            guest.wait(token).ok();
        }
    }
    guest.assert_all_answered();
}

#[test]
fn a_pipeline_that_fills_and_empties_in_one_turn_never_forgets_its_queue() {
    [1, 2, 3, 7].into_iter().for_each(maps_in_one_publish);
}

#[test]
fn a_pipeline_of_no_commands_never_stands_still() {
    maps_in_one_publish(0);
}

#[track_caller]
fn assert_refused(guest: &Guest, activation: Activation<Arc<GuestMemoryMmap>>, queue: u16) {
    let refused = guest.device().activate(activation).wait().expect("a device").expect_err("a queue that is too large");
    assert!(matches!(refused, ActivateError::Queue { index, .. } if index == queue), "{refused:?}");
}

#[test]
fn a_queue_larger_than_was_stated_is_never_served() {
    let ram = GuestRam::new(4 << 20);
    let oversize = |index: usize| {
        let features = RingFeatures { event_idx: true, indirect: true };
        DriverQueue::new(ram.clone(), QUEUE_SIZES[index] * 2, features).device_queue()
    };
    let options = |queue_size| GuestOptions { queue_size, ..GuestOptions::default() };
    let mut guest = Guest::powered_off(Builder::new().spawn().expect("a device"), options(QUEUE_SIZES[0]));
    guest.device().acknowledge(GuestOptions::default().features).expect("features");
    let mut activation = guest.activation();
    (activation.memory, activation.control.queue) = (ram.space(), oversize(0));
    assert_refused(&guest, activation, 0);
    let mut activation = guest.activation();
    (activation.memory, activation.cursor.queue) = (ram.space(), oversize(1));
    assert_refused(&guest, activation, 1);
    // The largest that was stated is served, and a refusal leaves nothing behind.
    guest.activate();
    guest.settle();
}

#[test]
fn an_answer_into_two_thousand_single_bytes_is_never_lost() {
    let layout = Layout::indirect().writable(Pieces::Each(1));
    let mut guest = Guest::with_options(Builder::new(), GuestOptions { layout, ..GuestOptions::default() });
    for _ in 0..3 {
        let answer = guest.command(&Request::display_info().response_len(2000));
        assert_eq!(answer.written, 408);
        assert_eq!(answer.ok().len(), 408 - 24);
    }
    guest.assert_all_answered();
}

#[test]
fn a_request_of_thousands_of_single_bytes_is_never_misread() {
    let layout = Layout::indirect().readable(Pieces::Each(1));
    let (factory, mut remote) = echo("regressions-pieces");
    let options = GuestOptions { layout, ..GuestOptions::default() };
    let mut guest = Guest::with_options(Builder::new().renderer(factory), options);
    guest.command(&Request::ctx_create(1, 2)).ok();
    remote.expect(&["create 1 of 2 named test"]);
    let stream: String = (0..1000).map(|number| format!("{number:04},")).collect();
    guest.command(&Request::submit(1, stream.as_bytes())).ok();
    remote.expect(&[&format!("submit {stream} to 1")]);
    guest.assert_all_answered();
}
