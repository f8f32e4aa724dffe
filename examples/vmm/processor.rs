//! The guest's processors: what each must look like for a Linux kernel to start, and the loops in which they run.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::io::Errno;

use super::boot::{CODE_SELECTOR, DATA_SELECTOR, Entry, GDT, GDT_LIMIT};
use super::bus::{Bus, Power};
use super::error::VmmError;
use super::kvm::{Processor, VirtualMachine};

/// IA32_MTRR_DEF_TYPE: memory is write-back unless something else is said. Without it a guest maps blobs uncached, though
/// the device says that they are cached.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// CPUID leaf 1, EDX: the number of processors in a package is stated.
const HYPER_THREADING: u32 = 1 << 28;
/// CPUID leaf 0x80000001, ECX, of AMD's processors: leaf 0x8000001e is there.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// CPUID leaf 1, ECX: a hypervisor is there. Without it Linux looks for a PC's timers, and waits for ever.
const HYPERVISOR: u32 = 1 << 31;

/// How the guest ended.
#[derive(Debug)]
pub(crate) enum End {
    PowerOff,
    Reset,
    TripleFault,
    /// KVM could not go on.
    InternalError {
        rip: u64,
        /// Whether the guest had printed anything by then.
        spoken: bool,
    },
    /// A processor touched memory of a slot that KVM cannot reach.
    MemoryFault {
        rip: u64,
        /// The guest's address, where this KVM tells it.
        address: Option<u64>,
    },
    Unexpected(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest has powered off"),
            Self::Reset => f.write_str("the guest has reset itself"),
            Self::TripleFault => f.write_str("the guest has ended in a triple fault: a panic, or a reboot"),
            Self::InternalError { rip, spoken: true } => {
                write!(f, "KVM gave up at instruction {rip:#x} (KVM_EXIT_INTERNAL_ERROR)")
            }
            Self::InternalError { rip, spoken: false } => write!(
                f,
                "this /dev/kvm cannot boot an ordinary kernel: it gave up at instruction {rip:#x} before the kernel's first \
                 word (KVM_EXIT_INTERNAL_ERROR)"
            ),
            Self::MemoryFault { rip, address } => {
                write!(f, "the instruction at {rip:#x} touched guest memory with nothing behind it (KVM_RUN: EFAULT)")?;
                if let Some(address) = address {
                    write!(f, ", at {address:#x}")?;
                }
                f.write_str(
                    ": a gap of the window under --gaps deny, a write to a buffer that is mapped read-only, a file that was \
                     truncated, or pages that KVM cannot give to a guest",
                )
            }
            Self::Unexpected(exit) => write!(f, "a processor stopped: {exit}"),
        }
    }
}

/// The processors' threads; they end with the process.
pub(crate) struct Processors(Receiver<End>);

impl Processors {
    /// Starts `cpus` processors: the first at the kernel's entry, all others wait for it to wake them.
    pub(crate) fn start(machine: &VirtualMachine, cpus: u8, entry: &Entry, bus: &Bus) -> Result<Self, VmmError> {
        let (ended, end) = channel();
        for id in 0..cpus {
            let processor = machine.processor(id)?;
            set_memory_type(&processor.vcpu)?;
            if id == 0 {
                set_entry(&processor.vcpu, entry)?;
            }
            let (bus, ended) = (bus.clone(), Ended(ended.clone()));
            let thread = std::thread::Builder::new().name(format!("vcpu{id}"));
            thread.spawn(move || run(processor, &bus, &ended)).map_err(VmmError::io("a processor's thread"))?;
        }
        Ok(Self(end))
    }

    /// Waits for the first processor that ends.
    pub(crate) fn wait(self) -> End {
        self.0.recv().unwrap_or_else(|_| End::Unexpected("all have gone".into()))
    }
}

/// Tells of a processor's end, whichever way its thread ends; only the first word counts.
struct Ended(Sender<End>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send(End::Unexpected("its thread has panicked".into()));
    }
}

fn run(mut processor: Processor, bus: &Bus, ended: &Ended) {
    let vcpu = &mut processor.vcpu;
    let end = loop {
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, out)) => bus.read_port(port, out),
            Ok(VcpuExit::MmioRead(address, out)) => bus.read_memory(address, out),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.write_memory(address, data),
            Ok(VcpuExit::IoOut(port, data)) => match bus.write_port(port, data) {
                None => {}
                Some(Power::Off) => break End::PowerOff,
                Some(Power::Reset) => break End::Reset,
            },
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                break End::MemoryFault { rip: instruction(vcpu), address: Some(gpa) };
            }
            Ok(VcpuExit::Shutdown) => break End::TripleFault,
            Ok(VcpuExit::InternalError) => {
                break End::InternalError { rip: instruction(vcpu), spoken: bus.console_has_output() };
            }
            Ok(exit) => break End::Unexpected(format!("{exit:?}")),
            Err(error) => match Errno::from_raw_os_error(error.errno()) {
                Errno::INTR | Errno::AGAIN => {}
                Errno::FAULT => break End::MemoryFault { rip: instruction(vcpu), address: None },
                errno => break End::Unexpected(format!("KVM_RUN: {errno}")),
            },
        }
    };
    // Nobody listens any more where another processor has ended first.
    let _ = ended.0.send(end);
}

fn instruction(vcpu: &VcpuFd) -> u64 {
    vcpu.get_regs().map_or(0, |registers| registers.rip)
}

/// What KVM supports, with the processor's own number in it. Each is a package of its own: of the host's topology, which a
/// guest would take for its own, nothing is left.
pub(crate) fn cpuid_of(id: u8, supported: &CpuId) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ecx |= HYPERVISOR;
                entry.ebx = entry.ebx & 0xffff | u32::from(id) << 24;
                entry.edx &= !HYPER_THREADING;
            }
            // Bits 31 to 14: how many share a cache, and cores of a package, less one.
            0x4 => entry.eax &= 0x3fff,
            0xb | 0x1f => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, entry.index, id.into()),
            0x8000_0001 => entry.ecx &= !TOPOLOGY_EXTENSIONS,
            0x8000_0008 => entry.ecx = 0,
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id.into(), 0, 0),
            _ => {}
        }
    }
    cpuid
}

fn set_memory_type(vcpu: &VcpuFd) -> Result<(), VmmError> {
    let entry = kvm_msr_entry { index: MTRR_DEF_TYPE, data: MTRR_ENABLED_WRITE_BACK, ..kvm_msr_entry::default() };
    let entries = Msrs::from_entries(&[entry]).map_err(VmmError::memory)?;
    match vcpu.set_msrs(&entries).map_err(VmmError::kvm("KVM_SET_MSRS"))? {
        1 => Ok(()),
        _ => Err(VmmError::MemoryType),
    }
}

/// 64-bit mode with paging, as the boot protocol wants it (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
fn set_entry(vcpu: &VcpuFd, entry: &Entry) -> Result<(), VmmError> {
    let registers = kvm_regs {
        rip: entry.instruction,
        rsp: entry.stack,
        rsi: entry.boot_parameters,
        rflags: 2,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&registers).map_err(VmmError::kvm("KVM_SET_REGS"))?;
    let mut special = vcpu.get_sregs().map_err(VmmError::kvm("KVM_GET_SREGS"))?;
    // PG and PE; PAE; LMA and LME.
    special.cr0 = 1 << 31 | 1;
    special.cr3 = entry.page_tables;
    special.cr4 = 1 << 5;
    special.efer = 1 << 10 | 1 << 8;
    special.gdt.base = GDT;
    special.gdt.limit = GDT_LIMIT;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: DATA_SELECTOR,
        type_: 3,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..kvm_segment::default()
    };
    special.cs = kvm_segment { selector: CODE_SELECTOR, type_: 11, db: 0, l: 1, ..data };
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    vcpu.set_sregs(&special).map_err(VmmError::kvm("KVM_SET_SREGS"))
}
