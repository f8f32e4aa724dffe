//! The guest's physical addresses: RAM, the transport's registers below 4 GiB, the window above everything.

use std::ops::Range;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::VmmError;

/// Guest RAM, as rust-vmm's crates know it.
pub(crate) type Ram = Arc<GuestMemoryMmap>;

/// RAM ends here at the latest, and goes on at [`HIGH_RAM`]: interrupt controllers and devices lie between.
pub(crate) const LOW_RAM_END: u64 = 3 << 30;
pub(crate) const HIGH_RAM: u64 = 4 << 30;
/// The registers of the virtio-gpu's transport, one page.
pub(crate) const GPU_REGISTERS: u64 = 0xd000_0000;
/// What KVM on Intel processors needs for real mode: three pages and one, that nothing else may use.
pub(crate) const TSS: usize = 0xfffb_d000;
pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;

/// The window begins at a multiple of this, where the guest can map it with the largest pages.
const WINDOW_ALIGNMENT: u64 = 1 << 30;
/// And not below this, so that its place does not depend on the RAM of small guests.
const WINDOW_LOWEST: u64 = 8 << 30;

/// Where everything lies.
#[derive(Debug)]
pub(crate) struct Layout {
    /// From address 0.
    pub(crate) low_ram: u64,
    /// From [`HIGH_RAM`]; may be 0.
    pub(crate) high_ram: u64,
    /// Shared-memory region 1, outside RAM: descriptors must never point into it.
    pub(crate) window: Range<u64>,
}

impl Layout {
    /// For `memory` and `window` in MiB, on processors with `bits` bits of physical addresses.
    pub(crate) fn new(memory: u64, window: u64, bits: u8) -> Result<Self, VmmError> {
        let low_ram = (memory << 20).min(LOW_RAM_END);
        let high_ram = (memory << 20) - low_ram;
        let start = (HIGH_RAM + high_ram).next_multiple_of(WINDOW_ALIGNMENT).max(WINDOW_LOWEST);
        let end = start + (window << 20);
        if end > 1 << bits {
            return Err(VmmError::WindowTooHigh { end, bits });
        }
        Ok(Self { low_ram, high_ram, window: start..end })
    }

    /// The address and length of each piece of RAM.
    pub(crate) fn ram(&self) -> Vec<(u64, u64)> {
        let pieces = [(0, self.low_ram), (HIGH_RAM, self.high_ram)];
        pieces.into_iter().filter(|&(_, len)| len > 0).collect()
    }

    pub(crate) fn allocate(&self) -> Result<Ram, VmmError> {
        let ranges: Vec<_> = self.ram().iter().map(|&(at, len)| (GuestAddress(at), len as usize)).collect();
        GuestMemoryMmap::from_ranges(&ranges).map(Arc::new).map_err(VmmError::memory)
    }
}
