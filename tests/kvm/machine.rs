//! The smallest machine that can look through the window as a guest does: the fake guest's RAM in one slot, the window in
//! another beside it, and a vCPU that runs a few bytes of real-mode code for every touch.
#![expect(unsafe_code, reason = "KVM takes the addresses of memory slots as plain numbers")]

use std::fmt::Display;
use std::io::Write as _;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use virtio_gpu_uring::HostWindow;
use virtio_gpu_uring::testing::GuestRam;
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

/// Guest RAM from address 0 on: what queues, requests and the code take.
pub(crate) const RAM: usize = 256 << 10;
/// Where the guest sees the window: right above its RAM. Both lie below 1 MiB, where real mode reaches everything.
const WINDOW: u64 = RAM as u64;
/// The window's length in bytes; its end is below the 1 MiB as well.
pub(crate) const WINDOW_LEN: u64 = 512 << 10;
/// The code tells by writing to this port that it is through.
const PORT: u8 = 0x10;

/// What became of a touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Touch {
    /// The instruction was carried out; for a load, the byte that it saw.
    Done(u8),
    /// The vCPU's run ended: nothing can be reached there.
    Ended,
}

/// A virtual machine with the window as a slot outside its RAM.
pub(crate) struct Machine {
    // In this order: no slot may outlive what it shows.
    vm: VmFd,
    _window: HostWindow,
    ram: GuestRam,
    code: GuestAddress,
    vcpus: u64,
}

/// A processor of a [`Machine`].
pub(crate) struct Vcpu {
    file: VcpuFd,
    ram: GuestRam,
    code: GuestAddress,
}

/// Opens KVM and makes a virtual machine, or says on the terminal why the test is skipped.
pub(crate) fn open_or_skip() -> Option<VmFd> {
    let opened = Kvm::new().map_err(|error| format!("/dev/kvm does not open: {error}"));
    let vm = opened.and_then(|kvm| kvm.create_vm().map_err(|error| format!("/dev/kvm makes no machine: {error}")));
    vm.map_err(|reason| skipped(&reason)).ok()
}

/// Straight to the terminal: what a passing test prints is otherwise kept from view.
fn skipped(reason: &dyn Display) {
    let test = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {reason}", test.name().unwrap_or("kvm"));
}

impl Machine {
    pub(crate) fn new(vm: VmFd, ram: &GuestRam, window: &HostWindow) -> Self {
        assert_eq!(window.len(), WINDOW_LEN);
        let host = ram.memory().get_host_address(GuestAddress(0)).expect("RAM at guest address 0");
        let slots = [(0, 0, RAM as u64, host), (1, WINDOW, WINDOW_LEN, window.host_address())];
        for (slot, guest_phys_addr, memory_size, host) in slots {
            let userspace_addr = host as u64;
            let region = kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr, memory_size, userspace_addr };
            // SAFETY: the two ranges are mapped, do not overlap, and are kept by the fields behind `vm`, so that they
            // stay mapped for as long as there is a virtual machine to reach them.
            unsafe { vm.set_user_memory_region(region) }.expect("a memory slot");
        }
        let code = ram.alloc(4096, 4096);
        Self { vm, _window: window.clone(), ram: ram.clone(), code, vcpus: 0 }
    }

    /// A processor that has not run yet. One whose run has ended in a fault is not used again.
    pub(crate) fn vcpu(&mut self) -> Vcpu {
        let file = self.vm.create_vcpu(self.vcpus).expect("a vCPU");
        self.vcpus += 1;
        Vcpu { file, ram: self.ram.clone(), code: self.code }
    }
}

impl Vcpu {
    /// Loads the byte at this offset of the window.
    pub(crate) fn load(&mut self, offset: u64) -> Touch {
        // mov al, [si]; out PORT, al
        self.run(&[0x8a, 0x04, 0xe6, PORT], offset)
    }

    /// Stores a byte at this offset of the window.
    pub(crate) fn store(&mut self, offset: u64, byte: u8) -> Touch {
        // mov byte [si], byte; out PORT, al
        self.run(&[0xc6, 0x04, byte, 0xe6, PORT], offset)
    }

    fn run(&mut self, code: &[u8], offset: u64) -> Touch {
        assert!(offset < WINDOW_LEN, "{offset:#x} is not in the window");
        let at = WINDOW + offset;
        self.ram.write(self.code, code);
        let mut special = self.file.get_sregs().expect("special registers");
        place(&mut special.cs, self.code.0);
        place(&mut special.ds, at);
        self.file.set_sregs(&special).expect("special registers");
        let registers = kvm_regs { rip: 0, rsi: at % 16, rflags: 2, ..kvm_regs::default() };
        self.file.set_regs(&registers).expect("registers");
        loop {
            return match self.file.run() {
                Ok(VcpuExit::IoOut(port, data)) if port == u16::from(PORT) => Touch::Done(data[0]),
                // What an instruction emulator makes of memory that is in a slot and cannot be reached.
                Ok(VcpuExit::MmioRead(address, _) | VcpuExit::MmioWrite(address, _)) if address == at => Touch::Ended,
                Err(error) if error.errno() == rustix::io::Errno::FAULT.raw_os_error() => Touch::Ended,
                Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => continue,
                other => panic!("the vCPU ended with {other:?} at {offset:#x}"),
            };
        }
    }
}

/// A real-mode segment whose first paragraph holds `address`.
fn place(segment: &mut kvm_segment, address: u64) {
    segment.base = address & !15;
    segment.selector = u16::try_from(address >> 4).expect("an address below 1 MiB");
}
