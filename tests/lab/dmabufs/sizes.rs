//! Blobs that are larger or smaller than their dma-buf: an exact error and no hole, or just the part that was asked for.

use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID};
use virtio_gpu_uring::testing::Request;
use virtio_gpu_uring::{Access, BufferKind, HostBuffer};

use crate::desk::{CONTEXT, Desk, PAGE, PLACE, WINDOW, Way, dma_bufs, scenario};
use crate::exporters::Exporter;

/// Less than a heap's chunks of 64 KiB: a processor cannot reach into these (see `large`).
const LEN: u64 = 14 * PAGE;

#[test]
fn a_blob_that_is_larger_than_its_dma_buf_is_never_made_and_never_costs_the_window_a_page() {
    for exporter in Exporter::ALL {
        for way in Way::BOTH {
            scenario(&format!("oversize exporter={} way={way:?}", exporter.name()), || {
                let mut desk = Desk::new();
                let buffer = exporter.writable(LEN);
                let len = buffer.len;
                buffer.paint(1);
                let (lines, id) = (desk.lines(), desk.announce(&buffer, way));
                let open = dma_bufs();
                let whole = u64::MAX - PAGE + 1;
                let sizes = [len + PAGE, 2 * len, WINDOW, 1 << 32, (1 << 32) + len, 1 << 63, whole, u64::MAX, len + 1];
                for size in sizes {
                    let create = desk.guest.command(&Request::host_blob(CONTEXT, 7, id, size));
                    create.expect_error(ERR_INVALID_PARAMETER);
                    let map = desk.guest.command(&Request::map(7, PLACE));
                    map.expect_error(ERR_INVALID_RESOURCE_ID);
                }
                assert_eq!((desk.lines(), dma_bufs()), (lines, open));
                desk.expect_filler(0, WINDOW);
                // The buffer is still there for a blob that fits.
                let resource = desk.make(id, len);
                desk.guest.map(resource, PLACE);
                desk.expect(PLACE, &buffer.bytes());
                desk.expect_filler_but(PLACE, len);
                format!("size={len:#x} refused={} holes=0", sizes.len())
            });
        }
    }
}

#[test]
fn a_dma_buf_that_is_smaller_than_it_was_taken_for_is_never_mapped() {
    for exporter in Exporter::ALL {
        scenario(&format!("overstated exporter={}", exporter.name()), || {
            let mut desk = Desk::new();
            let buffer = exporter.writable(LEN);
            let lines = desk.lines();
            for access in [Access::ReadWrite, Access::ReadOnly] {
                let size = buffer.len + PAGE;
                let file = buffer.file.try_clone().expect("a duplicate");
                let id = desk.offer(HostBuffer::stand_in(file, BufferKind::DmaBuf, size, access));
                let resource = desk.make(id, size);
                for offset in [0, PLACE, WINDOW - size.next_multiple_of(PAGE)] {
                    let answer = desk.guest.command(&Request::map(resource, offset));
                    answer.expect_error(ERR_INVALID_PARAMETER);
                    assert_eq!(desk.lines(), lines);
                }
                desk.ok(&Request::unref(resource));
            }
            desk.expect_filler(0, WINDOW);
            "refused=6 holes=0".into()
        });
    }
}

#[test]
fn a_blob_that_is_smaller_than_its_dma_buf_never_shows_more_than_its_part() {
    for exporter in Exporter::ALL {
        for way in Way::BOTH {
            scenario(&format!("part exporter={} way={way:?}", exporter.name()), || {
                let mut desk = Desk::new();
                let buffer = exporter.writable(LEN);
                buffer.paint(3);
                let sizes = [PAGE, 9 * PAGE, buffer.len - PAGE];
                for size in sizes {
                    let resource = desk.blob(&buffer, way, size);
                    desk.guest.map(resource, PLACE);
                    desk.expect(PLACE, &buffer.bytes()[..size as usize]);
                    desk.expect_filler(PLACE - PAGE, PAGE);
                    desk.expect_filler(PLACE + size, buffer.len - size);
                    desk.ok(&Request::unmap(resource));
                    desk.expect_filler(PLACE, buffer.len);
                    desk.ok(&Request::unref(resource));
                }
                format!("size={:#x} parts={}", buffer.len, sizes.len())
            });
        }
    }
}

#[test]
fn a_dma_buf_is_never_mapped_beyond_the_window_or_over_another() {
    for exporter in Exporter::ALL {
        scenario(&format!("places exporter={}", exporter.name()), || {
            let mut desk = Desk::new();
            let buffer = exporter.writable(LEN);
            buffer.paint(4);
            let (first, second) =
                (desk.blob(&buffer, Way::Offered, buffer.len), desk.blob(&buffer, Way::Sent, buffer.len));
            desk.guest.map(first, PLACE);
            let lines = desk.lines();
            let end = PLACE + buffer.len;
            let last = WINDOW - buffer.len + PAGE;
            let refused = [last, WINDOW, u64::MAX - PAGE + 1, PLACE, end - PAGE, PLACE - PAGE, end + 1, 1 << 63];
            for offset in refused {
                desk.guest.command(&Request::map(second, offset)).expect_error(ERR_INVALID_PARAMETER);
                assert_eq!(desk.lines(), lines, "at {offset:#x}");
            }
            desk.expect(PLACE, &buffer.bytes());
            desk.expect_filler_but(PLACE, buffer.len);
            desk.guest.map(second, end);
            desk.expect(end, &buffer.bytes());
            format!("refused={}", refused.len())
        });
    }
}
