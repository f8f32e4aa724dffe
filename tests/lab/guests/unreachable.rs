//! A dma-buf that the host can map and its KVM cannot give to a guest: before Linux 6.13 KVM takes no pages without a
//! reference count of their own, of which a dma-heap makes larger buffers. An OK to MAP would end the guest at its first touch.

use std::os::fd::AsFd;

use virtio_gpu_uring::testing::HostService;

use super::served::Served;
use super::vm::Vm;
use crate::exporters::{Exporter, say};

const LEN: u64 = 256 << 10;

const COMMANDS: &str = "
pause booted
lab-guest refused --channel pipewire --factor 1 || exit 1
pause refused
lab-guest buffers --channel wayland || exit 1
";

#[test]
fn a_buffer_that_kvm_cannot_reach_never_ends_the_guest() {
    let (heaps, others) = (HostService::listen(), HostService::listen());
    let sockets = [("pipewire", &heaps), ("wayland", &others)]
        .map(|(name, service)| format!("{name}={}", service.path().display()));
    let mut vm = Vm::start(&["--socket", &sockets[0], "--socket", &sockets[1]], COMMANDS);
    vm.pauses("booted", 0);
    vm.resume();
    let heap = Exporter::DmaHeap.writable(LEN);
    let peer = heaps.accept();
    peer.send(b"buffers\n", &[heap.file.as_fd()]);
    vm.says("guest: refused held=1");
    assert!(vm.window_is_whole(), "a hole in the window while the guest keeps the blob");
    assert_eq!(vm.dma_bufs_in_window(), 0, "what KVM cannot reach stays in the window");
    peer.send(b"go on\n", &[]);
    vm.pauses("refused", 0);
    assert!(vm.window_is_whole(), "a hole in the window");
    vm.expect_no_dma_buf();
    vm.resume();
    let udmabuf = Exporter::Udmabuf.writable(LEN);
    udmabuf.paint(1);
    let mut guest = Served::accept(&others, &[udmabuf.file.as_fd()]);
    guest.expect(0, &udmabuf.bytes(), "a buffer that comes later");
    guest.tell("quit");
    let ended = vm.end();
    // The guest's driver reports each command that is answered with an error: here MAP, and UNMAP of what is not mapped.
    ended.expect_success_but(&["(command 0x208)", "(command 0x209)"]);
    assert_eq!(ended.console("guest: refused index="), [format!("guest: refused index=0 size={LEN} errno=EINVAL")]);
    assert_eq!(ended.console("guest: buffers "), ["guest: buffers count=1"]);
    say("unreachable exporter=dma-heap refused=1 holes=0 guest=lives");
}
