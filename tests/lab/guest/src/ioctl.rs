//! How a structure of the kernel's headers becomes an ioctl.

/// Structures that are one ioctl's argument each: size, number, direction, fields.
macro_rules! ioctls {
    ($( $size:literal $number:literal $direction:ident $name:ident { $( $field:ident: $kind:ty, )* } )*) => { $(
        #[repr(C)]
        #[derive(Default)]
        struct $name { $( $field: $kind, )* }

        const _: () = assert!(size_of::<$name>() == $size);

        impl $name {
            /// # Safety
            /// Every address among the fields is good for what the ioctl reads or writes there.
            unsafe fn call(&mut self, gpu: std::os::fd::BorrowedFd<'_>) -> rustix::io::Result<()> {
                const OPCODE: rustix::ioctl::Opcode = rustix::ioctl::opcode::$direction::<$name>(b'd', $number);
                // SAFETY: the opcode is made of this very structure's size, and belongs to it.
                let request = unsafe { rustix::ioctl::Updater::<OPCODE, $name>::new(self) };
                // SAFETY: on a DRM device this opcode reads and writes the structure, and what the caller vouches for.
                unsafe { rustix::ioctl::ioctl(gpu, request) }
            }
        }
    )* };
}

pub(crate) use ioctls;

/// What the kernel takes for a pointer.
pub(crate) fn address<T: ?Sized>(pointer: *const T) -> u64 {
    pointer.cast::<u8>().addr() as u64
}
