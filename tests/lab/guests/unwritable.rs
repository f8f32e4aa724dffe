//! A buffer that is open for reading only, of an exporter that refuses private mappings: the guest's mapping is shared and
//! has no write access. The guest reads what the host writes. Its own stores are lost: KVM, which may not write there either,
//! gives a store to a device's memory to the VMM, as one to a register, and at this address there is none. (To memory of the
//! page cache it would answer EFAULT, which `gaps` shows; no exporter of the lab has such pages.)

use std::os::fd::AsFd;

use virtio_gpu_uring::testing::HostService;

use super::served::Served;
use super::vm::Vm;
use crate::exporters::{Export, Exporter, say};

const LEN: u64 = 32 << 10;
const TURNS: u8 = 3;

const COMMANDS: &str = "
pause booted
lab-guest buffers --channel pipewire
";

#[test]
fn a_store_to_a_buffer_without_write_access_never_reaches_it_or_ends_the_guest() {
    let service = HostService::listen();
    let socket = format!("pipewire={}", service.path().display());
    let mut vm = Vm::start(&["--socket", &socket], COMMANDS);
    vm.pauses("booted", 0);
    vm.resume();
    let buffer = Exporter::Vgem.export(LEN, Export::ReadOnly).expect("vgem exports for reading only");
    let mut guest = Served::accept(&service, &[buffer.file.as_fd()]);
    for turn in 1..=TURNS {
        buffer.paint(turn);
        let before = buffer.bytes();
        guest.expect(0, &before, &format!("the host's turn {turn}"));
        guest.fill(0, turn + 100);
        assert!(buffer.bytes() == before, "a guest's store has reached the host's buffer");
        guest.expect(0, &before, "after the guest's stores");
    }
    assert!(vm.window_is_whole(), "a hole in the window");
    guest.tell("quit");
    vm.end().expect_success();
    say(&format!("unwritable exporter=vgem turns={TURNS} bytes={LEN} reached=0 guest=lives"));
}
