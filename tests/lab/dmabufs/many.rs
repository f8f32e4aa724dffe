//! Many dma-bufs at a time, up to the limits and no further, and none after a reset.

use virtio_gpu_uring::protocol::cross_domain::id_type;
use virtio_gpu_uring::protocol::wire::response_type::ERR_OUT_OF_MEMORY;
use virtio_gpu_uring::testing::Request;
use virtio_gpu_uring::{Builder, HostWindow, Limits};

use crate::desk::{Desk, PAGE, Way, assert_same, dma_bufs, filler, host_buffer, scenario};
use crate::exporters::{DmaBuf, Export, Exporter, camera};

const COUNT: usize = 64;

/// 64 of all exporters in turn, no two alike.
fn buffers() -> Vec<DmaBuf> {
    let mut cameras = camera(16, Export::ReadWrite).expect("a camera with many buffers");
    assert_eq!(cameras.len(), 16);
    let others = [Exporter::Udmabuf, Exporter::DmaHeap, Exporter::Vgem];
    let mut made = Vec::new();
    for (turn, exporter) in (1..=16).flat_map(|turn| others.map(|exporter| (turn, exporter))) {
        made.push(exporter.writable((1 + turn % 15) * PAGE));
    }
    made.append(&mut cameras);
    made.iter().zip(1..).for_each(|(buffer, turn)| buffer.paint(turn));
    made
}

/// Maps them all, one page of filler between every two; their places.
fn show_all(desk: &mut Desk, buffers: &[DmaBuf]) -> Vec<u64> {
    let mut at = PAGE;
    let mut places = Vec::new();
    for (turn, buffer) in buffers.iter().enumerate() {
        desk.show(buffer, Way::BOTH[turn % 2], at);
        places.push(at);
        at += buffer.len + PAGE;
    }
    places
}

fn expect_all(desk: &mut Desk, buffers: &[DmaBuf], places: &[u64]) {
    for (buffer, at) in buffers.iter().zip(places) {
        let bytes = buffer.bytes();
        let mut window = vec![0; bytes.len()];
        desk.window.read(*at, &mut window).expect("in the window");
        assert_same(&window, &bytes, "the window and the owner differ");
        let ends = [desk.vcpu.read(*at, 64), desk.vcpu.read(at + buffer.len - 64, 64)];
        assert_eq!(ends, [Ok(bytes[..64].to_vec()), Ok(bytes[bytes.len() - 64..].to_vec())]);
        desk.expect_filler(at + buffer.len, PAGE);
    }
}

#[test]
fn none_of_64_mapped_dma_bufs_is_ever_mixed_up_with_another_or_left_by_a_reset() {
    scenario("many exporters=4", || {
        const WINDOW: usize = 16 << 20;
        // One more descriptor for the channel.
        let limits = Limits { fds: COUNT as u64 + 1, ..Limits::default() };
        let window = HostWindow::with_scratch(WINDOW, WINDOW).expect("a window");
        window.write(0, &filler(0, WINDOW)).expect("in the window");
        let mut desk = Desk::on(window, Builder::new().limits(limits));
        let buffers = buffers();
        let held = dma_bufs();
        let mut refused = 0;
        for round in 0..2 {
            let places = show_all(&mut desk, &buffers);
            assert_eq!(dma_bufs(), (held.0 + COUNT, held.1 + COUNT));
            // Not one more, by either way.
            for _ in 0..2 {
                let more = desk.guest.device().offer(host_buffer(&buffers[0].file));
                more.wait().expect("a device").expect_err("one more than the limit");
                assert_eq!(desk.send(&buffers[0].file).1, id_type::UNSUPPORTED);
                refused += 2;
            }
            assert_eq!(dma_bufs(), (held.0 + COUNT, held.1 + COUNT));
            buffers.iter().zip(100 + round..).for_each(|(buffer, turn)| buffer.paint(turn));
            expect_all(&mut desk, &buffers, &places);
            desk.reset();
            assert_eq!(dma_bufs(), held);
            let mut all = vec![0; WINDOW];
            desk.window.read(0, &mut all).expect("in the window");
            assert_same(&all, &filler(0, WINDOW), "the filler is not what it was");
        }
        format!("buffers={COUNT} refused={refused} left=0")
    });
}

#[test]
fn a_descriptor_that_is_given_back_never_stays_booked() {
    scenario("descriptors exporters=4", || {
        let mut desk = Desk::with(Builder::new().limits(Limits { fds: 3, ..Limits::default() }));
        for exporter in Exporter::ALL {
            let buffer = exporter.writable(PAGE);
            let first = desk.blob(&buffer, Way::Sent, PAGE);
            desk.guest.map(first, 0);
            for _ in 0..5 {
                let second = desk.blob(&buffer, Way::Offered, PAGE);
                let more = desk.guest.device().offer(host_buffer(&buffer.file));
                more.wait().expect("a device").expect_err("one more than the limit");
                desk.guest.map(second, 2 * PAGE);
                desk.ok(&Request::unref(second));
            }
            desk.ok(&Request::unref(first));
        }
        "limit=3 rounds=20".into()
    });
}

#[test]
fn bytes_beyond_a_limit_are_never_mapped() {
    scenario("bytes exporters=4", || {
        let limit = 20 * PAGE;
        let limits = Limits { mapped_bytes: limit, host_bytes: limit, ..Limits::default() };
        let mut desk = Desk::with(Builder::new().limits(limits));
        let mut refused = 0;
        for exporter in Exporter::ALL {
            for export in [Export::ReadWrite, Export::ReadOnly] {
                let Ok(buffer) = exporter.export(15 * PAGE, export) else { continue };
                let first = desk.blob(&buffer, Way::Offered, 15 * PAGE);
                let second = desk.blob(&buffer, Way::Sent, 6 * PAGE);
                desk.guest.map(first, 0);
                let lines = desk.lines();
                desk.guest.command(&Request::map(second, 16 * PAGE)).expect_error(ERR_OUT_OF_MEMORY);
                assert_eq!(desk.lines(), lines);
                refused += 1;
                desk.ok(&Request::unmap(first));
                desk.guest.map(second, 16 * PAGE);
                desk.ok(&Request::unref(first));
                desk.ok(&Request::unref(second));
            }
        }
        format!("limit={limit:#x} refused={refused}")
    });
}
