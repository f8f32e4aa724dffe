//! Buffers that host and guest write by turns: what either side writes is what the other reads, for every exporter.

use std::os::fd::AsFd;

use virtio_gpu_uring::testing::HostService;

use super::served::Served;
use super::vm::Vm;
use crate::exporters::{Exporter, say};
use crate::vgem::Vgem;

/// Small enough for a dma-heap to make it of single pages: see `unreachable` for larger ones.
const LEN: u64 = 32 << 10;
const TURNS: u8 = 3;

const COMMANDS: &str = "
pause booted
lab-guest buffers --channel pipewire
";

#[test]
fn what_one_side_writes_is_never_hidden_from_the_other() {
    let service = HostService::listen();
    let socket = format!("pipewire={}", service.path().display());
    let mut vm = Vm::start(&["--socket", &socket, "--cpus", "2"], COMMANDS);
    let buffers = [Exporter::Udmabuf, Exporter::DmaHeap].map(|exporter| exporter.writable(LEN));
    let vgem = Vgem::open().buffer(LEN as usize);
    vm.pauses("booted", 0);
    vm.resume();
    let files: Vec<_> = buffers.iter().map(|buffer| buffer.file.as_fd()).chain([vgem.fd.as_fd()]).collect();
    let mut guest = Served::accept(&service, &files);
    for turn in 1..=TURNS {
        for (index, buffer) in buffers.iter().enumerate() {
            buffer.paint(turn);
            guest.expect(index, &buffer.bytes(), &format!("buffer {index}, the host's turn {turn}"));
            guest.fill(index, turn);
            assert!(buffer.bytes().iter().all(|&byte| byte == turn), "buffer {index}, the guest's turn {turn}");
        }
        vgem.fill(turn);
        guest.expect(2, &vgem.contents(), &format!("vgem, the host's turn {turn}"));
        guest.fill(2, turn + 100);
        assert!(vgem.contents().iter().all(|&byte| byte == turn + 100), "vgem, the guest's turn {turn}");
    }
    guest.tell("quit");
    vm.end().expect_success();
    say(&format!("live exporters=udmabuf,dma-heap,vgem turns={TURNS} bytes={LEN} hidden=0"));
}
