//! A processor that never stops looking must not notice when a dma-buf comes and goes, but by what it sees.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtio_gpu_uring::testing::Request;

use crate::desk::{Desk, PAGE, PLACE, Way, scenario};
use crate::exporters::{Export, Exporter};
use crate::vcpu::{Touch, Vcpu};

/// A processor that looks at one byte without rest.
#[derive(Default)]
struct Watch {
    looks: AtomicU64,
    fell: AtomicBool,
    stop: AtomicBool,
}

impl Watch {
    fn run(&self, vcpu: &mut Vcpu, at: u64) {
        while !self.stop.load(Ordering::SeqCst) {
            if let Touch::Ended(_) = vcpu.load(at) {
                return self.fell.store(true, Ordering::SeqCst);
            }
            self.looks.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Lets the watching thread go, whether the scenario ends well or not.
struct StopOnDrop<'a>(&'a Watch);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_running_processor_never_falls_into_a_hole_where_a_dma_buf_is_mapped_and_taken_back() {
    const ROUNDS: u32 = 12;
    // Up to 64 pages are taken back in line, more on a worker. A heap's may be no more than 15, see `large`.
    let cases = [
        (Exporter::Camera, Export::ReadOnly, 60),
        (Exporter::Camera, Export::ReadOnly, 113),
        (Exporter::Camera, Export::ReadWrite, 113),
        (Exporter::Udmabuf, Export::ReadWrite, 113),
        (Exporter::Vgem, Export::ReadWrite, 113),
        (Exporter::Vgem, Export::ReadOnly, 113),
        (Exporter::DmaHeap, Export::ReadWrite, 15),
        (Exporter::DmaHeap, Export::ReadOnly, 15),
    ];
    let mut fell = Vec::new();
    for (exporter, export, pages) in cases {
        scenario(&format!("running exporter={} export={export:?} pages={pages}", exporter.name()), || {
            let mut desk = Desk::new();
            let buffer = exporter.export(pages * PAGE, export).expect("exported");
            let resource = desk.blob(&buffer, Way::Offered, pages * PAGE);
            let (watch, mut vcpu) = (Watch::default(), desk.machine.vcpu());
            let mut rounds = 0;
            std::thread::scope(|scope| {
                let _stop = StopOnDrop(&watch);
                scope.spawn(|| watch.run(&mut vcpu, PLACE + PAGE));
                while rounds < ROUNDS && !watch.fell.load(Ordering::SeqCst) {
                    desk.guest.map(resource, PLACE);
                    desk.ok(&Request::unmap(resource));
                    rounds += 1;
                }
            });
            let ended = watch.fell.load(Ordering::SeqCst);
            if ended {
                fell.push((exporter, export, pages, rounds));
            }
            format!("rounds={rounds} looks={} ended={ended}", watch.looks.load(Ordering::SeqCst))
        });
    }
    assert_eq!(fell, [], "processors fell into a hole");
}
