//! Read-only dma-bufs: what a guest stores reaches neither the owner's bytes nor, where that can be helped, its
//! processor's life.

use virtio_gpu_uring::testing::Request;
use virtio_gpu_uring::{Builder, ReadOnlyPolicy};

use crate::desk::{Desk, PAGE, PLACE, WINDOW, Way, scenario};
use crate::exporters::{DmaBuf, Export, Exporter};
use crate::vcpu::Touch;

/// Exporters that let a read-only dma-buf be mapped privately, with sizes for which they do: a heap allows it for one
/// chunk of its pages.
const PRIVATE: [(Exporter, u64); 2] = [(Exporter::Camera, 0), (Exporter::DmaHeap, PAGE)];
/// Exporters that do not.
const SHARED: [(Exporter, u64); 2] = [(Exporter::DmaHeap, 14 * PAGE), (Exporter::Vgem, 14 * PAGE)];

fn read_only(exporter: Exporter, len: u64) -> DmaBuf {
    exporter.export(len, Export::ReadOnly).expect("exported for reading")
}

/// The guest writes on every second page of a buffer; what is expected of it afterwards.
fn scribble(desk: &mut Desk, buffer: &DmaBuf) -> Vec<u8> {
    let mut want = buffer.bytes();
    for page in (0..buffer.len / PAGE).step_by(2) {
        for at in [page * PAGE, page * PAGE + 1234, (page + 1) * PAGE - 1] {
            desk.store(PLACE + at, 0xee);
            want[at as usize] = 0xee;
        }
    }
    want
}

#[test]
fn a_store_never_reaches_a_read_only_dma_buf_nor_ends_the_run_nor_stops_other_pages() {
    for (exporter, len) in PRIVATE {
        for policy in [ReadOnlyPolicy::Allow, ReadOnlyPolicy::Refuse] {
            for way in Way::BOTH {
                scenario(
                    &format!("read-only store exporter={} policy={policy:?} way={way:?}", exporter.name()),
                    || {
                        let mut desk = Desk::with(Builder::new().read_only(policy));
                        let buffer = read_only(exporter, len);
                        buffer.paint(1);
                        let resource = desk.show(&buffer, way, PLACE);
                        let host = buffer.bytes();
                        desk.expect(PLACE, &host);
                        let mut want = scribble(&mut desk, &buffer);
                        assert!(buffer.bytes() == host, "a store reached the owner's bytes");
                        desk.expect(PLACE, &want);
                        for turn in 2..5 {
                            buffer.paint(turn);
                            for (page, bytes) in buffer.bytes().chunks(PAGE as usize).enumerate().skip(1).step_by(2) {
                                want[page * PAGE as usize..][..PAGE as usize].copy_from_slice(bytes);
                            }
                            desk.expect(PLACE, &want);
                        }
                        desk.expect_filler_but(PLACE, buffer.len);
                        desk.ok(&Request::unmap(resource));
                        desk.expect_filler(0, WINDOW);
                        desk.guest.map(resource, PLACE);
                        desk.expect(PLACE, &buffer.bytes());
                        format!("size={:#x} host=unchanged others=live", buffer.len)
                    },
                );
            }
        }
    }
}

#[test]
fn a_store_into_a_dma_buf_that_refuses_private_maps_never_ends_more_than_the_run() {
    for (exporter, len) in SHARED {
        scenario(&format!("read-only store exporter={} policy=Allow-shared", exporter.name()), || {
            let mut desk = Desk::new();
            let buffer = read_only(exporter, len);
            buffer.paint(1);
            let beside = Exporter::Udmabuf.writable(len);
            let resource = desk.show(&buffer, Way::Sent, PLACE);
            let other = PLACE + buffer.len;
            desk.show(&beside, Way::Offered, other);
            let mapped: Vec<String> = desk.lines().into_iter().filter(|line| line.contains(" r--")).collect();
            assert_eq!(mapped.len(), 1, "{mapped:?}");
            for turn in 2..4 {
                buffer.paint(turn);
                desk.expect(PLACE, &buffer.bytes());
            }
            let host = buffer.bytes();
            let at = PLACE + 3 * PAGE + 5;
            assert_eq!(desk.vcpu.store(at, 0xee), Touch::Ended(at));
            desk.vcpu = desk.machine.vcpu();
            assert!(buffer.bytes() == host, "a store reached the owner's bytes");
            desk.expect(PLACE, &host);
            beside.paint(7);
            desk.expect(other, &beside.bytes());
            desk.store(other, 0x77);
            assert_eq!(beside.bytes()[0], 0x77);
            desk.ok(&Request::unmap(resource));
            desk.expect_filler(PLACE, buffer.len);
            desk.store(at, 0x88);
            format!("size={:#x} host=unchanged run=ended window=whole", buffer.len)
        });
    }
}
