//! A buffer that is open for reading only, of an exporter that refuses private mappings: the guest's mapping is shared and
//! has no write access. The guest reads it as the host sees it; its first write ends the machine, which the README says, and
//! the VMM names what happened.

use std::os::fd::AsFd;

use virtio_gpu_uring::testing::HostService;

use super::served::Served;
use super::vm::Vm;
use crate::exporters::{Export, Exporter, say};

const LEN: u64 = 32 << 10;

const COMMANDS: &str = "
pause booted
lab-guest buffers --channel pipewire
";

#[test]
fn a_write_to_a_buffer_without_write_access_never_reaches_it_or_ends_as_a_bare_fault() {
    let service = HostService::listen();
    let socket = format!("pipewire={}", service.path().display());
    let mut vm = Vm::start(&["--socket", &socket], COMMANDS);
    vm.pauses("booted", 0);
    vm.resume();
    let buffer = Exporter::Vgem.export(LEN, Export::ReadOnly).expect("vgem exports for reading only");
    buffer.paint(1);
    let mut guest = Served::accept(&service, &[buffer.file.as_fd()]);
    for turn in [1, 2] {
        buffer.paint(turn);
        guest.expect(0, &buffer.bytes(), &format!("the host's turn {turn}"));
    }
    let before = buffer.bytes();
    guest.tell("fill 0 1");
    let ended = vm.end();
    assert_eq!(ended.status.code(), Some(1), "{:#?}", ended.heard);
    assert!(ended.console("guest: filled").is_empty(), "{:#?}", ended.heard);
    let said = ended.vmm("vmm: the instruction at 0x");
    assert!(matches!(said[..], [line] if line.contains("a buffer that is mapped read-only")), "{:#?}", ended.heard);
    assert!(buffer.bytes() == before, "the guest's write has reached the host's buffer");
    say(&format!("unwritable exporter=vgem bytes={LEN} read=yes written=0 named=yes"));
}
