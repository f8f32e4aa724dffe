//! The virtual machine: its memory slots, and the event descriptors by which KVM and the device talk past the VMM.
//! All `unsafe` code of the example is here: KVM takes the addresses of memory slots as plain numbers.
#![expect(unsafe_code, reason = "memory slots are plain addresses, and eventfds of vmm-sys-util plain descriptors")]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_PRE_FAULT_MEMORY, KVM_MAX_CPUID_ENTRIES, KVMIO, kvm_pre_fault_memory, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use virtio_gpu_uring::HostWindow;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::error::VmmError;
use super::memory::{IDENTITY_MAP, Ram, TSS};
use super::processor::cpuid_of;

/// Slots 0 and up are RAM.
const WINDOW_SLOT: u32 = 31;

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// An interrupt of the guest; writing raises it.
#[derive(Debug, Clone)]
pub(crate) struct InterruptLine(Arc<OwnedFd>);

impl InterruptLine {
    pub(crate) fn raise(&self) {
        // An eventfd whose counter is full has raised the interrupt already; nothing else can go wrong.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// What this host's KVM offers.
pub(crate) struct Host(Kvm);

impl Host {
    pub(crate) fn open() -> Result<Self, VmmError> {
        Kvm::new().map(Self).map_err(VmmError::kvm("open"))
    }

    /// What KVM lets a guest's processor be.
    fn supported_cpuid(&self) -> Result<CpuId, VmmError> {
        self.0.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(VmmError::kvm("KVM_GET_SUPPORTED_CPUID"))
    }

    /// How many bits a guest's physical addresses have: CPUID leaf 0x80000008. KVM takes no slot above them.
    pub(crate) fn address_bits(&self) -> Result<u8, VmmError> {
        let cpuid = self.supported_cpuid()?;
        let leaf = cpuid.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
        Ok(leaf.map_or(36, |entry| entry.eax.to_le_bytes()[0]))
    }
}

/// What the slots show.
#[derive(Clone)]
struct Slots {
    ram: Ram,
    window: HostWindow,
}

/// A virtual machine with memory and interrupt controllers.
pub(crate) struct VirtualMachine {
    vm: VmFd,
    slots: Slots,
    supported: CpuId,
}

/// A processor, which keeps all memory that it can reach.
pub(crate) struct Processor {
    pub(crate) vcpu: VcpuFd,
    _slots: Slots,
}

/// A processor that the guest does not know of and that never runs: KVM is asked through it what a guest could reach.
pub(crate) struct Prober(Processor);

impl VirtualMachine {
    /// A machine with this RAM, and the window at `window_at`: one slot, which nobody touches again.
    pub(crate) fn new(host: &Host, ram: Ram, window: HostWindow, window_at: u64) -> Result<Self, VmmError> {
        let vm = host.0.create_vm().map_err(VmmError::kvm("KVM_CREATE_VM"))?;
        vm.set_tss_address(TSS).map_err(VmmError::kvm("KVM_SET_TSS_ADDR"))?;
        vm.set_identity_map_address(IDENTITY_MAP).map_err(VmmError::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.create_irq_chip().map_err(VmmError::kvm("KVM_CREATE_IRQCHIP"))?;
        let machine = Self { vm, slots: Slots { ram, window }, supported: host.supported_cpuid()? };
        for (slot, region) in (0..).zip(machine.slots.ram.iter()) {
            let host = machine.slots.ram.get_host_address(region.start_addr()).map_err(VmmError::memory)?;
            machine.map(slot, region.start_addr().raw_value(), host, region.len())?;
        }
        let window = &machine.slots.window;
        machine.map(WINDOW_SLOT, window_at, window.host_address(), window.len())?;
        Ok(machine)
    }

    pub(crate) fn processor(&self, id: u8) -> Result<Processor, VmmError> {
        let vcpu = self.vm.create_vcpu(u64::from(id)).map_err(VmmError::kvm("KVM_CREATE_VCPU"))?;
        vcpu.set_cpuid2(&cpuid_of(id, &self.supported)).map_err(VmmError::kvm("KVM_SET_CPUID2"))?;
        Ok(Processor { vcpu, _slots: self.slots.clone() })
    }

    /// A prober, where this kernel has the question (KVM_CAP_PRE_FAULT_MEMORY, Linux 6.10). `id` is a number that no
    /// processor of the guest has.
    pub(crate) fn prober(&self, id: u8) -> Result<Option<Prober>, VmmError> {
        let capable = self.vm.check_extension_raw(u64::from(KVM_CAP_PRE_FAULT_MEMORY)) > 0;
        capable.then(|| self.processor(id).map(Prober)).transpose()
    }

    fn map(&self, slot: u32, guest_phys_addr: u64, host: *mut u8, memory_size: u64) -> Result<(), VmmError> {
        let userspace_addr = host as u64;
        let region = kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr, memory_size, userspace_addr };
        // SAFETY: `new` passes the whole of a mapping that was made for the guest alone: RAM, which is only accessed
        // through volatile copies, and the window, which hands out no references. Only processors reach a slot, and
        // each keeps what the slots show mapped.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(VmmError::kvm("KVM_SET_USER_MEMORY_REGION"))
    }

    /// Interrupt `gsi`, raised through an eventfd.
    pub(crate) fn interrupt_line(&self, gsi: u32) -> Result<InterruptLine, VmmError> {
        let event = eventfd()?;
        self.vm.register_irqfd(&event, gsi).map_err(VmmError::kvm("KVM_IRQFD"))?;
        Ok(InterruptLine(Arc::new(owned(event))))
    }

    /// An eventfd that KVM writes when the guest stores the 32-bit `value` at `address`, without an exit to the VMM.
    pub(crate) fn doorbell(&self, address: u64, value: u32) -> Result<OwnedFd, VmmError> {
        let event = eventfd()?;
        let address = IoEventAddress::Mmio(address);
        self.vm.register_ioevent(&event, &address, value).map_err(VmmError::kvm("KVM_IOEVENTFD"))?;
        Ok(owned(event))
    }
}

impl Prober {
    /// Has KVM look up each page of a range, as the guest's first touches would.
    ///
    /// # Errors
    /// What those touches would end with: `EFAULT` for pages that KVM cannot give to a guest.
    pub(crate) fn probe(&self, at: u64, len: u64) -> io::Result<()> {
        let mut rest = kvm_pre_fault_memory { gpa: at, size: len, ..kvm_pre_fault_memory::default() };
        while rest.size > 0 {
            // SAFETY: the argument is what KVM_PRE_FAULT_MEMORY takes, and lives for the call, which moves its start and
            // size on by what was done. No memory of this process is read or written; pages become present.
            let done = unsafe { ioctl_with_mut_ref(&self.0.vcpu, KVM_PRE_FAULT_MEMORY(), &mut rest) };
            if done < 0 {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                    _ => return Err(error),
                }
            }
        }
        Ok(())
    }
}

fn eventfd() -> Result<EventFd, VmmError> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(VmmError::io("eventfd"))
}

fn owned(event: EventFd) -> OwnedFd {
    // SAFETY: `into_raw_fd` gives up an open descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }
}
