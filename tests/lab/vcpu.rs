//! A machine whose processor sees the whole window, however large: flat 32-bit code of a few bytes that loads, stores, and
//! copies ranges of the window into the fake guest's RAM, where they can be compared byte for byte.
#![expect(unsafe_code, reason = "KVM takes the addresses of memory slots as plain numbers")]

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use virtio_gpu_uring::HostWindow;
use virtio_gpu_uring::testing::GuestRam;
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

/// Where the guest sees the window: above its RAM, and low enough for 32-bit code.
const WINDOW: u64 = 1 << 30;
/// The code tells by writing to this port that it is through.
const PORT: u8 = 0x10;
/// As much is copied at a time.
const CHUNK: usize = 1 << 20;

/// What became of a touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Touch {
    /// The instruction was carried out; for a load, the byte that it saw.
    Done(u8),
    /// The processor's run ended: nothing can be reached at this offset of the window.
    Ended(u64),
}

/// A virtual machine with the window as one slot outside its RAM.
pub(crate) struct Machine {
    // In this order: no slot may outlive what it shows.
    vm: VmFd,
    _window: HostWindow,
    ram: GuestRam,
    /// The copies' destination.
    bounce: GuestAddress,
    vcpus: u64,
}

/// A processor of a [`Machine`].
pub(crate) struct Vcpu {
    file: VcpuFd,
    ram: GuestRam,
    code: GuestAddress,
    bounce: GuestAddress,
}

fn machine() -> VmFd {
    Kvm::new().expect("the lab has /dev/kvm").create_vm().expect("a machine")
}

impl Machine {
    pub(crate) fn new(ram: &GuestRam, window: &HostWindow) -> Self {
        let vm = machine();
        let host = ram.memory().get_host_address(GuestAddress(0)).expect("RAM at guest address 0");
        let slots = [(0, 0, ram.end().0, host), (1, WINDOW, window.len(), window.host_address())];
        for (slot, guest_phys_addr, memory_size, host) in slots {
            let userspace_addr = host as u64;
            let region = kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr, memory_size, userspace_addr };
            // SAFETY: the two ranges are mapped, do not overlap, and are kept by the fields behind `vm`, so that they
            // stay mapped for as long as there is a virtual machine to reach them.
            unsafe { vm.set_user_memory_region(region) }.expect("a memory slot");
        }
        let bounce = ram.alloc(CHUNK, 4096);
        Self { vm, _window: window.clone(), ram: ram.clone(), bounce, vcpus: 0 }
    }

    /// A processor that has not run yet. One whose run has ended in a fault is not used again.
    pub(crate) fn vcpu(&mut self) -> Vcpu {
        let file = self.vm.create_vcpu(self.vcpus).expect("a processor");
        self.vcpus += 1;
        let mut special = file.get_sregs().expect("special registers");
        let flat = kvm_segment { base: 0, limit: u32::MAX, present: 1, db: 1, s: 1, g: 1, ..kvm_segment::default() };
        special.cs = kvm_segment { type_: 11, selector: 8, ..flat };
        for segment in [&mut special.ds, &mut special.es, &mut special.ss] {
            *segment = kvm_segment { type_: 3, selector: 16, ..flat };
        }
        special.cr0 |= 1;
        file.set_sregs(&special).expect("special registers");
        let code = self.ram.alloc(4096, 4096);
        Vcpu { file, ram: self.ram.clone(), code, bounce: self.bounce }
    }
}

impl Vcpu {
    /// Loads the byte at this offset of the window.
    pub(crate) fn load(&mut self, offset: u64) -> Touch {
        // mov al, [esi]; out PORT, al
        self.run(&[0x8a, 0x06, 0xe6, PORT], offset, 0)
    }

    /// Stores a byte at this offset of the window.
    pub(crate) fn store(&mut self, offset: u64, byte: u8) -> Touch {
        // mov byte [esi], byte; out PORT, al
        self.run(&[0xc6, 0x06, byte, 0xe6, PORT], offset, 0)
    }

    /// Loads every byte of a range of the window, a multiple of four.
    ///
    /// # Errors
    /// The offset where the run ended, because nothing can be reached there.
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, u64> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let piece = CHUNK.min(len - bytes.len());
            // cld; rep movsd; out PORT, al
            match self.run(&[0xfc, 0xf3, 0xa5, 0xe6, PORT], offset + bytes.len() as u64, piece as u64 / 4) {
                Touch::Done(_) => bytes.extend(self.ram.read(self.bounce, piece)),
                Touch::Ended(at) => return Err(at),
            }
        }
        Ok(bytes)
    }

    fn run(&mut self, code: &[u8], offset: u64, count: u64) -> Touch {
        let at = WINDOW + offset;
        self.ram.write(self.code, code);
        let (rdi, rcx) = (self.bounce.0, count);
        let registers = kvm_regs { rip: self.code.0, rsi: at, rdi, rcx, rflags: 2, ..kvm_regs::default() };
        self.file.set_regs(&registers).expect("registers");
        loop {
            return match self.file.run() {
                Ok(VcpuExit::IoOut(port, data)) if port == u16::from(PORT) => Touch::Done(data[0]),
                // What an instruction emulator makes of memory that is in a slot and cannot be reached.
                Ok(VcpuExit::MmioRead(address, _) | VcpuExit::MmioWrite(address, _)) if address >= WINDOW => {
                    Touch::Ended(address - WINDOW)
                }
                Err(error) if error.errno() == rustix::io::Errno::FAULT.raw_os_error() => {
                    Touch::Ended(self.file.get_regs().expect("registers").rsi - WINDOW)
                }
                Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => continue,
                other => panic!("the processor ended with {other:?} at {offset:#x}"),
            };
        }
    }
}
