//! The ring of a device's own thread: what is asked of a ring passes seccomp by, so the ring itself refuses it.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use virtio_gpu_uring::testing::{Guest, Request};
use virtio_gpu_uring::{Area, Builder, Cursor, Display, Format, Monitor, Picture, Pixels, Work};

use super::{Needs, alone, refused, start};

/// A display that asks the ring of the thread that it is called on for what it may not.
struct Curious(Sender<[io::Result<()>; 3]>);

impl Display for Curious {
    fn attach(&mut self, _: &Picture<'_>) {}

    fn draw(&mut self, _: Area, _: Pixels<'_>) {}

    fn frame(&mut self, _: Area) -> Work<()> {
        let tell = self.0.clone();
        Work::later(async move {
            let opened = tokio_uring::fs::File::open("/etc/passwd").await.map(drop);
            let removed = tokio_uring::fs::remove_file("/nonexistent").await;
            let nothing = tokio_uring::no_op().await;
            let _ = tell.send([opened, removed, nothing]);
        })
    }

    fn cursor(&mut self, _: Option<&Cursor<'_>>, _: (i32, i32)) {}

    fn move_cursor(&mut self, _: (i32, i32)) {}

    fn detach(&mut self) {}
}

fn curious() -> (Builder, Receiver<[io::Result<()>; 3]>) {
    let (tell, told) = channel();
    (Builder::new().scanouts(1).display(0, Monitor::new(64, 64), Curious(tell)), told)
}

fn ask(guest: &mut Guest, told: &Receiver<[io::Result<()>; 3]>) -> [io::Result<()>; 3] {
    let (address, len) = guest.page_range(64 * 64 * 4);
    guest.command(&Request::create_2d(7, Format::B8G8R8X8.wire(), 64, 64)).ok();
    guest.command(&Request::attach_backing(7, &[(address, len)])).ok();
    guest.command(&Request::set_scanout(0, 7, [0, 0, 64, 64])).ok();
    guest.command(&Request::flush(7, [0, 0, 64, 64])).ok();
    told.try_recv().expect("the flush was answered when the ring had answered")
}

#[test]
fn a_device_s_ring_never_does_what_the_device_does_not() {
    let (builder, told) = curious();
    for (what, answer) in ["an open", "a removal", "nothing"].into_iter().zip(ask(&mut Guest::start(builder), &told)) {
        assert_eq!(answer.expect_err(what).raw_os_error(), Some(libc::EACCES), "{what}");
    }
}

#[test]
fn the_ring_is_never_a_way_out_of_the_sandbox() {
    alone("ring::the_ring_is_never_a_way_out_of_the_sandbox", || {
        let (builder, told) = curious();
        let (mut guest, entered) = start(Needs::default(), || builder);
        assert!(entered.to_string().ends_with("io_uring for 4 operations"), "{entered}");
        for answer in ask(&mut guest, &told) {
            refused("an operation of the ring", answer);
        }
    });
}

#[test]
fn a_ring_that_takes_every_operation_never_goes_unsaid() {
    alone("ring::a_ring_that_takes_every_operation_never_goes_unsaid", || {
        let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).expect("a runtime of the VMM's");
        let (_guest, entered) = start(Needs::default(), Builder::new);
        assert!(!entered.is_whole());
        assert!(entered.to_string().ends_with("but 1 of 2 rings for every operation"), "{entered}");
        drop(runtime);
    });
}
