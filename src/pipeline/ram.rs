//! Guest memory as the rooms below the queues see it: two questions, asked anew each time, because regions may go.

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory, Permissions};

use crate::resource::GuestRam;

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

    fn share(&self) -> Box<dyn GuestRam + Send> {
        Box::new(Self(self.0.clone()))
    }
}
