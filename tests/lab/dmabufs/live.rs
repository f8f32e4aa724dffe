//! A mapped dma-buf is its own live pages, in both directions, and nothing but the filler once it is taken back.

use virtio_gpu_uring::testing::Request;
use virtio_gpu_uring::{Builder, HostWindow};

use crate::desk::{CONTEXT, Desk, PAGE, PLACE, WINDOW, Way, dma_bufs, scenario};
use crate::exporters::{DmaBuf, Exporter};
use crate::vcpu::Touch;

/// Less than a heap's chunks of 64 KiB: a processor cannot reach into these (see `large`).
const LEN: u64 = 15 * PAGE;

/// The guest sees what the owner writes, again and again.
fn owner_to_guest(desk: &mut Desk, buffer: &DmaBuf, offset: u64) {
    for turn in 1..=4 {
        buffer.paint(turn);
        desk.expect(offset, &buffer.bytes());
    }
}

/// The owner sees what the guest stores, and the bytes beside it stay.
fn guest_to_owner(desk: &mut Desk, buffer: &DmaBuf, offset: u64) {
    let mut want = buffer.bytes();
    for (page, byte) in (0..buffer.len / PAGE).zip((1..=250).cycle()) {
        let at = page * PAGE + page % PAGE;
        desk.store(offset + at, byte);
        want[at as usize] = byte;
    }
    desk.window.write(offset + buffer.len - 3, b"end").expect("in the window");
    want.splice(buffer.len as usize - 3.., *b"end");
    assert!(buffer.bytes() == want, "a store of the guest missed the buffer");
    desk.expect(offset, &want);
}

#[test]
fn a_mapped_dma_buf_never_shows_anything_but_its_own_live_pages() {
    for exporter in Exporter::ALL {
        for way in Way::BOTH {
            let name = format!("live exporter={} way={way:?}", exporter.name());
            scenario(&name, || {
                let mut desk = Desk::new();
                let buffer = exporter.writable(LEN);
                let before = dma_bufs();
                let resource = desk.blob(&buffer, way, buffer.len);
                assert_eq!(dma_bufs(), (before.0 + 1, before.1), "a blob owns one descriptor");
                desk.guest.map(resource, PLACE);
                assert_eq!(dma_bufs(), (before.0 + 1, before.1 + 1));
                owner_to_guest(&mut desk, &buffer, PLACE);
                guest_to_owner(&mut desk, &buffer, PLACE);
                desk.expect_filler_but(PLACE, buffer.len);
                desk.ok(&Request::unmap(resource));
                desk.expect_filler(0, desk.window.len());
                assert_eq!(dma_bufs(), (before.0 + 1, before.1));
                let kept = buffer.bytes();
                desk.store(PLACE, 0x99);
                assert!(buffer.bytes() == kept, "a store into a gap reached the buffer");
                desk.ok(&Request::unref(resource));
                assert_eq!(dma_bufs(), before);
                format!("size={:#x} live=ok", buffer.len)
            });
        }
    }
}

#[test]
fn a_dma_buf_that_is_mapped_again_elsewhere_never_shows_old_pages() {
    const ROUNDS: u64 = 20;
    for exporter in Exporter::ALL {
        scenario(&format!("remap exporter={}", exporter.name()), || {
            let mut desk = Desk::new();
            let buffer = exporter.writable(LEN);
            let resource = desk.blob(&buffer, Way::Sent, buffer.len);
            let room = desk.window.len() - buffer.len;
            for round in 0..ROUNDS {
                let offset = (round * 37 * PAGE) % room / PAGE * PAGE;
                buffer.paint(round as u8);
                desk.guest.map(resource, offset);
                desk.expect(offset, &buffer.bytes());
                desk.ok(&Request::unmap(resource));
                desk.expect_filler(offset, buffer.len);
            }
            desk.expect_filler(0, desk.window.len());
            format!("rounds={ROUNDS}")
        });
    }
}

#[test]
fn an_unref_of_a_mapped_dma_buf_never_leaves_it_in_the_window_or_open() {
    for exporter in Exporter::ALL {
        for way in Way::BOTH {
            scenario(&format!("unref exporter={} way={way:?}", exporter.name()), || {
                let mut desk = Desk::new();
                let buffer = exporter.writable(LEN);
                buffer.paint(1);
                let before = dma_bufs();
                for _ in 0..5 {
                    let resource = desk.show(&buffer, way, PLACE);
                    desk.expect(PLACE, &buffer.bytes());
                    desk.ok(&Request::unref(resource));
                    assert_eq!(dma_bufs(), before);
                    desk.expect_filler(PLACE, buffer.len);
                }
                "rounds=5".into()
            });
        }
    }
}

#[test]
fn a_reset_never_leaves_a_mapped_dma_buf_in_the_window_or_open() {
    for exporter in Exporter::ALL {
        scenario(&format!("reset exporter={}", exporter.name()), || {
            let mut desk = Desk::new();
            let buffer = exporter.writable(LEN);
            buffer.paint(1);
            let before = dma_bufs();
            for way in [Way::Offered, Way::Sent, Way::Offered] {
                desk.show(&buffer, way, PLACE);
                let unmapping = desk.show(&buffer, way, PLACE + WINDOW / 2);
                // Announced and never used; used and never mapped; and one on its way out.
                desk.announce(&buffer, way);
                desk.blob(&buffer, way, PAGE);
                desk.guest.submit(&Request::unmap(unmapping));
                desk.reset();
                assert_eq!(dma_bufs(), before);
                desk.expect_filler(0, desk.window.len());
            }
            "resets=3".into()
        });
    }
}

#[test]
fn the_end_of_a_context_never_takes_its_mapped_dma_bufs_with_it() {
    for exporter in Exporter::ALL {
        scenario(&format!("context-destroy exporter={}", exporter.name()), || {
            let mut desk = Desk::new();
            let buffer = exporter.writable(LEN);
            let resource = desk.show(&buffer, Way::Sent, PLACE);
            desk.ok(&Request::ctx_attach(CONTEXT, resource));
            desk.ok(&Request::ctx_destroy(CONTEXT));
            owner_to_guest(&mut desk, &buffer, PLACE);
            desk.ok(&Request::unmap(resource));
            desk.expect_filler(0, desk.window.len());
            desk.ok(&Request::unref(resource));
            "live=ok".into()
        });
    }
}

#[test]
fn a_denied_gap_never_answers_before_or_after_a_dma_buf() {
    for exporter in Exporter::ALL {
        scenario(&format!("denied-gaps exporter={}", exporter.name()), || {
            let window = HostWindow::deny_gaps(WINDOW as usize + 4096).expect("a window");
            let mut desk = Desk::on(window, Builder::new());
            let buffer = exporter.writable(LEN);
            let (inside, end) = (PLACE + PAGE, PLACE + buffer.len);
            let mut ended = 0;
            let mut denied = |desk: &mut Desk, at| {
                assert_eq!(desk.vcpu.load(at), Touch::Ended(at));
                desk.vcpu = desk.machine.vcpu();
                ended += 1;
            };
            denied(&mut desk, inside);
            let resource = desk.show(&buffer, Way::Sent, PLACE);
            owner_to_guest(&mut desk, &buffer, PLACE);
            guest_to_owner(&mut desk, &buffer, PLACE);
            denied(&mut desk, PLACE - 1);
            denied(&mut desk, end);
            desk.ok(&Request::unmap(resource));
            denied(&mut desk, inside);
            assert_eq!(desk.lines().len(), 1, "one gap and nothing else");
            desk.guest.map(resource, PLACE + PAGE);
            desk.expect(PLACE + PAGE, &buffer.bytes());
            desk.ok(&Request::unref(resource));
            denied(&mut desk, inside);
            format!("size={:#x} live=ok runs-ended={ended}", buffer.len)
        });
    }
}
