//! Guest memory as the rooms below the queues see it: two questions, asked anew each time, because regions may go.

use std::any::Any;
use std::ptr::NonNull;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryBackend, Permissions};

use crate::resource::{GuestRam, HostPiece};

/// A VMM's guest memory.
pub(super) struct Ram<M>(pub(super) M);

impl<M: GuestAddressSpace + Send + 'static> GuestRam for Ram<M> {
    fn contains(&self, address: u64, len: u64) -> bool {
        let Ok(len) = usize::try_from(len) else { return false };
        self.0.memory().check_range(GuestAddress(address), len, Permissions::ReadWrite)
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.0.memory().write_slice(data, GuestAddress(address)).is_ok()
    }

    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        self.0.memory().read_slice(out, GuestAddress(address)).is_ok()
    }

    fn held(&self) -> Box<dyn GuestRam + '_> {
        Box::new(Held { memory: self.0.memory(), all: self })
    }

    fn share(&self) -> Box<dyn GuestRam + Send> {
        Box::new(Self(self.0.clone()))
    }

    fn pin(&self, ranges: &mut dyn Iterator<Item = (u64, u64)>) -> Option<(Vec<HostPiece>, Box<dyn Any>)> {
        let memory = self.0.memory();
        let mut pieces = Vec::new();
        for (address, len) in ranges {
            let len = usize::try_from(len).ok()?;
            let memory = memory.physical_memory()?;
            for slice in GuestMemoryBackend::get_slices(memory, GuestAddress(address), len) {
                let slice = slice.ok()?;
                let address = NonNull::new(slice.ptr_guard_mut().as_ptr())?;
                pieces.push(HostPiece { address, len: slice.len() });
            }
        }
        Some((pieces, Box::new(memory)))
    }
}

/// Guest memory that has been looked up, for many accesses: the count of an `Arc` waits for all stores before it, and those
/// of a copy are many.
struct Held<'a, M: GuestAddressSpace> {
    memory: M::T,
    all: &'a Ram<M>,
}

impl<M: GuestAddressSpace + Send + 'static> GuestRam for Held<'_, M> {
    fn contains(&self, address: u64, len: u64) -> bool {
        let Ok(len) = usize::try_from(len) else { return false };
        self.memory.check_range(GuestAddress(address), len, Permissions::ReadWrite)
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.memory.write_slice(data, GuestAddress(address)).is_ok()
    }

    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        // In one region as a rule: the iterator over several moves results around, which waits for those stores too.
        let piece = self.memory.physical_memory().and_then(|all| all.get_slice(GuestAddress(address), out.len()).ok());
        match piece {
            Some(piece) => piece.copy_to(out) == out.len(),
            None => self.memory.read_slice(out, GuestAddress(address)).is_ok(),
        }
    }

    fn held(&self) -> Box<dyn GuestRam + '_> {
        self.all.held()
    }

    fn share(&self) -> Box<dyn GuestRam + Send> {
        self.all.share()
    }

    fn pin(&self, ranges: &mut dyn Iterator<Item = (u64, u64)>) -> Option<(Vec<HostPiece>, Box<dyn Any>)> {
        self.all.pin(ranges)
    }
}
