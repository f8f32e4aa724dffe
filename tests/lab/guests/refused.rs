//! Dma-bufs of which no blob can be made: the guest gets an error and lives on, and the VMM's window has no hole, neither
//! while the guest keeps what was refused nor afterwards.
//!
//! A descriptor that cannot be mapped (open for writing only) is announced to the guest as unsupported: there is nothing to
//! make a blob of. A buffer that is smaller than its blob is refused when the blob is created, and its MAP then finds no
//! resource: nothing was placed in the window in either case. What is refused by MAP itself: see `unreachable`.

use std::os::fd::AsFd;

use virtio_gpu_uring::testing::HostService;

use super::vm::{Ended, Vm, figure};
use crate::exporters::{CAMERA, Export, Exporter, say};
use crate::vgem::Vgem;

/// A dma-heap makes this of single pages, which every KVM can reach: it is the size alone that is wrong.
const LEN: u64 = 32 << 10;

const COMMANDS: &str = "
pause booted
lab-guest refused --channel pipewire --factor 2 || exit 1
pause refused
lab-guest camera --frames 8 || exit 1
";

#[test]
fn a_buffer_that_cannot_be_mapped_never_leaves_a_hole_or_ends_the_guest() {
    let service = HostService::listen();
    let socket = format!("pipewire={}", service.path().display());
    let mut vm = Vm::start(&["--camera", CAMERA, "--socket", &socket], COMMANDS);
    vm.pauses("booted", 0);
    assert!(vm.window_is_whole(), "before anything was mapped");
    vm.resume();
    let unmappable = [Exporter::DmaHeap, Exporter::Camera]
        .map(|exporter| exporter.export(LEN, Export::WriteOnly).expect("a dma-buf that is open for writing only"));
    let small = [Exporter::Udmabuf, Exporter::DmaHeap].map(|exporter| exporter.writable(LEN));
    let vgem = Vgem::open().buffer(LEN as usize);
    let files = unmappable.iter().chain(&small).map(|buffer| buffer.file.as_fd());
    let files: Vec<_> = files.chain([vgem.fd.as_fd()]).collect();
    let peer = service.accept();
    peer.send(b"buffers\n", &files);
    vm.says("guest: refused held=3");
    assert!(vm.window_is_whole(), "while the guest keeps the blobs");
    peer.send(b"go on\n", &[]);
    vm.pauses("refused", 0);
    assert!(vm.window_is_whole(), "after the guest has closed them");
    vm.expect_no_dma_buf();
    // A camera has one queue, which belongs to whoever has its buffers: here until they are gone.
    drop(unmappable);
    vm.resume();
    expect_refusals(&vm.end());
    say("refused unmappable=2 too-small=3 holes=0 frames-after=8");
}

fn expect_refusals(ended: &Ended) {
    // The guest's driver reports each command that is answered with an error.
    ended.expect_success_but(&["*ERROR* response 0x120"]);
    let created = ended.console("kernel: ").iter().filter(|line| line.contains("(command 0x10c)")).count();
    assert_eq!(created, 3, "blobs are refused when they are created: {:#?}", ended.heard);
    let told = ended.console("guest: refused index=");
    let told: Vec<&str> = told.iter().map(|line| line.split_whitespace().next_back().unwrap_or_default()).collect();
    assert_eq!(told, ["unsupported", "unsupported", "errno=EINVAL", "errno=EINVAL", "errno=EINVAL"]);
    let account = ended.vmm("vmm: camera frames=");
    assert_eq!((figure(account[0], "frames"), figure(account[0], "mismatched")), (8, 0));
}
