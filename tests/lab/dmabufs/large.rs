//! Dma-bufs of 64 MiB, those whose pages the kernel has made in large pieces, and windows that populate what they map.

use std::time::Instant;

use virtio_gpu_uring::testing::Request;
use virtio_gpu_uring::{Builder, HostWindow};

use crate::desk::{Desk, PAGE, PLACE, WINDOW, Way, assert_same, dma_bufs, scenario};
use crate::exporters::{DmaBuf, Export, Exporter};
use crate::vcpu::Touch;

const MIB: u64 = 1 << 20;
/// The most that udmabuf makes.
const LARGE: u64 = 64 * MIB;

fn window_bytes(desk: &Desk, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    desk.window.read(offset, &mut bytes).expect("in the window");
    bytes
}

/// What a processor sees at the start of every MiB. A heap's pieces of a MiB can be reached just there.
fn probe(desk: &mut Desk, offset: u64) -> Vec<Touch> {
    (0..LARGE / MIB).map(|step| desk.vcpu.load(offset + step * MIB)).collect()
}

fn expect_large(desk: &mut Desk, buffer: &DmaBuf, offset: u64) {
    let bytes = buffer.bytes();
    assert_same(&window_bytes(desk, offset, LARGE), &bytes, "the window and the owner differ");
    let heads: Vec<Touch> = bytes.iter().step_by(MIB as usize).map(|byte| Touch::Done(*byte)).collect();
    assert_eq!(probe(desk, offset), heads);
}

/// Maps a large dma-buf and takes it back, with another command on the way; how long each took.
fn there_and_back(exporter: Exporter, populated: bool) -> String {
    let window = HostWindow::with_scratch(96 * MIB as usize, 16 * MIB as usize).expect("a window");
    let mut desk = Desk::on(window.populated(populated), Builder::new());
    let (buffer, small) = (exporter.writable(LARGE), exporter.writable(4 * PAGE));
    buffer.paint(5);
    small.paint(6);
    let held = dma_bufs();
    let (large, other) = (desk.blob(&buffer, Way::Offered, LARGE), desk.blob(&small, Way::Offered, small.len));
    let started = Instant::now();
    desk.guest.map(large, MIB);
    let mapped = started.elapsed().as_micros();
    expect_large(&mut desk, &buffer, MIB);
    desk.store(MIB + LARGE - MIB, 0x42);
    assert_eq!(buffer.bytes()[(LARGE - MIB) as usize], 0x42);
    let started = Instant::now();
    let unmap = desk.guest.submit(&Request::unmap(large));
    let map = desk.guest.submit(&Request::map(other, 0));
    desk.guest.settle();
    desk.guest.wait(map).ok();
    let meanwhile = started.elapsed().as_micros();
    assert_same(&window_bytes(&desk, 0, small.len), &small.bytes(), "mapped meanwhile");
    desk.guest.wait(unmap).ok();
    let unmapped = started.elapsed().as_micros();
    assert_eq!(probe(&mut desk, MIB), vec![Touch::Done(0); 64]);
    assert_eq!(dma_bufs(), (held.0 + 2, held.1 + 1));
    desk.ok(&Request::unref(large));
    desk.ok(&Request::unref(other));
    assert_eq!(dma_bufs(), held);
    format!("size={LARGE:#x} live=ok map-us={mapped} others-us={meanwhile} unmap-us={unmapped}")
}

#[test]
fn nobody_waits_behind_a_dma_buf_of_64_mib_and_nothing_of_it_stays() {
    for (exporter, populated) in [(Exporter::Udmabuf, true), (Exporter::Udmabuf, false), (Exporter::DmaHeap, false)] {
        let name = format!("large exporter={} populated={populated}", exporter.name());
        scenario(&name, || there_and_back(exporter, populated));
    }
}

#[test]
fn a_window_that_populates_never_refuses_or_changes_a_dma_buf() {
    for exporter in Exporter::ALL {
        for export in [Export::ReadWrite, Export::ReadOnly] {
            let Ok(buffer) = exporter.export(15 * PAGE, export) else { continue };
            scenario(&format!("populated exporter={} export={export:?}", exporter.name()), || {
                let window = HostWindow::with_scratch(WINDOW as usize, WINDOW as usize).expect("a window");
                let mut desk = Desk::on(window.populated(true), Builder::new());
                for way in Way::BOTH {
                    buffer.paint(1);
                    let before = buffer.bytes();
                    let resource = desk.show(&buffer, way, PLACE);
                    assert_same(&buffer.bytes(), &before, "populating has changed the buffer");
                    for turn in 2..4 {
                        desk.expect(PLACE, &buffer.bytes());
                        buffer.paint(turn);
                    }
                    desk.expect(PLACE, &buffer.bytes());
                    desk.expect_filler_but(PLACE, buffer.len);
                    desk.ok(&Request::unmap(resource));
                    desk.expect_filler(0, WINDOW);
                }
                format!("size={:#x} live=ok", buffer.len)
            });
        }
    }
}

/// Before Linux 6.13 KVM gives a guest no page of a pure page-frame mapping that has no count of its own: of the pieces of
/// several pages that a heap allocates, only each one's first page can be reached. A `HostWindow` cannot see that; whoever
/// has the virtual machine can.
#[test]
fn a_page_that_kvm_cannot_reach_never_costs_more_than_the_run() {
    scenario("kvm exporter=dma-heap", || {
        let mut desk = Desk::new();
        let (buffer, beside) = (Exporter::DmaHeap.writable(16 * PAGE), Exporter::DmaHeap.writable(15 * PAGE));
        buffer.paint(1);
        beside.paint(2);
        let resource = desk.show(&buffer, Way::Sent, PLACE);
        let other = PLACE + buffer.len;
        desk.show(&beside, Way::Sent, other);
        assert_same(&window_bytes(&desk, PLACE, buffer.len), &buffer.bytes(), "the window and the owner differ");
        let reached = match desk.vcpu.read(PLACE, buffer.len as usize) {
            Ok(bytes) => {
                assert_same(&bytes, &buffer.bytes(), "the processor and the owner differ");
                buffer.len
            }
            Err(at) => {
                assert_eq!(desk.machine.vcpu().load(PLACE), Touch::Done(buffer.bytes()[0]));
                desk.vcpu = desk.machine.vcpu();
                at - PLACE
            }
        };
        desk.expect(other, &beside.bytes());
        desk.ok(&Request::unmap(resource));
        desk.expect_filler(0, other);
        format!("size={:#x} reached={reached:#x}", buffer.len)
    });
}
