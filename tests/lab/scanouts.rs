//! Dma-bufs on scanouts: a display that takes them gets the buffer itself, all others its bytes, and not before the writes that
//! are pending to it are done.

use virtio_gpu_uring::testing::{Request, Screen, Shown, Viewer};
use virtio_gpu_uring::{Builder, Format, Monitor};

use crate::desk::{Desk, Way, assert_same, scenario};
use crate::exporters::{Exporter, Mapping, say};
use crate::vgem::Vgem;

const WIDTH: u32 = 100;
const HEIGHT: u32 = 80;
const STRIDE: u32 = 1024;
const OFFSET: u32 = 8192;
const LEN: u64 = 1 << 20;

/// A desk with two screens: the first is handed bytes, the second takes dma-bufs.
fn with_screens() -> (Desk, Viewer, Viewer) {
    let ((screen, viewer), (taker, taken)) = (Screen::new(), Screen::taking_buffers());
    let monitor = || Monitor::new(WIDTH, HEIGHT);
    (Desk::with(Builder::new().display(0, monitor(), screen).display(1, monitor(), taker)), viewer, taken)
}

fn show(desk: &mut Desk, scanout: u32, resource: u32) {
    let format = Format::B8G8R8X8.wire();
    desk.ok(&Request::set_scanout_blob(scanout, resource, [WIDTH, HEIGHT], format, STRIDE, OFFSET));
}

/// The rows of the picture in a buffer's bytes.
fn picture(bytes: &[u8]) -> Vec<u8> {
    let row = |y: u32| &bytes[(OFFSET + y * STRIDE) as usize..][..WIDTH as usize * 4];
    (0..HEIGHT).flat_map(row).copied().collect()
}

#[test]
fn a_scanout_never_shows_anything_but_the_dma_buf_as_it_is_at_the_flush() {
    let whole = [0, 0, WIDTH, HEIGHT];
    for exporter in [Exporter::Udmabuf, Exporter::DmaHeap, Exporter::Vgem] {
        scenario(&format!("scanout {}", exporter.name()), || {
            let (mut desk, viewer, taken) = with_screens();
            let buffer = exporter.writable(LEN);
            buffer.paint(1);
            let resource = desk.blob(&buffer, Way::Sent, LEN);
            show(&mut desk, 0, resource);
            show(&mut desk, 1, resource);
            let fd = taken.take_buffer().expect("the dma-buf itself");
            for turn in 2..5 {
                buffer.paint(turn);
                desk.ok(&Request::flush(resource, whole).fenced(turn.into()));
                assert_same(&viewer.picture().2, &picture(&buffer.bytes()), exporter.name());
                let theirs =
                    Mapping::new(std::os::fd::AsFd::as_fd(&fd), 0, LEN).expect("a mapping").read(0, LEN as usize);
                assert_same(&theirs, &buffer.bytes(), "what the other display reads by itself");
            }
            let drawn = taken.take().iter().filter(|shown| matches!(shown, Shown::Drawn(..))).count();
            assert_eq!(drawn, 0, "bytes for a display that has the buffer");
            desk.ok(&Request::unref(resource));
            drop(fd);
            format!("frames=3 pixels={} wrong=0", 3 * WIDTH * HEIGHT)
        });
    }
}

#[test]
fn a_picture_is_never_drawn_before_its_pending_writes_are_done_and_nobody_else_waits() {
    let (mut desk, viewer, _taken) = with_screens();
    let buffer = Vgem::open().buffer(LEN as usize);
    buffer.fill(0x11);
    let offer = desk.offer(crate::desk::host_buffer(&buffer.fd));
    let resource = desk.make(offer, LEN);
    show(&mut desk, 0, resource);
    let fence = buffer.attach_fence().expect("a buffer without a fence");
    let _ = viewer.take();
    let flush = desk.guest.submit(&Request::flush(resource, [0, 0, WIDTH, HEIGHT]).fenced(1));
    let mut others = 0;
    for round in 0..50 {
        desk.ok(&Request::create_2d(9, Format::B8G8R8X8.wire(), 64, 64 + round));
        desk.ok(&Request::unref(9));
        others += 2;
    }
    assert!(!desk.guest.has_answer(&flush), "flushed while a write was pending");
    assert_eq!(viewer.take(), [], "drawn while a write was pending");
    buffer.fill(0x22);
    buffer.signal(fence).expect("signalled");
    desk.guest.wait(flush).ok();
    let (_, _, pixels) = viewer.picture();
    assert_eq!(pixels.iter().filter(|byte| **byte != 0x22).count(), 0, "bytes from before the write");
    say(&format!("fences flush waited=1 others={others} pixels={} wrong=0", pixels.len() / 4));
}
