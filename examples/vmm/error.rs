//! Everything that can keep a guest from running, each as one line that names what was tried.

use std::io;
use std::path::PathBuf;

use virtio_gpu_uring::BuildError;
use virtio_gpu_uring::sources::SourceError;

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmmError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} cannot be booted: {reason}", path.display())]
    Kernel { path: PathBuf, reason: String },
    #[error("{what} of {len:#x} bytes does not fit into {room:#x} bytes of guest RAM")]
    NoRoom { what: &'static str, len: u64, room: u64 },
    #[error("the window ends at {end:#x}, above the guest's {bits} bits of physical addresses")]
    WindowTooHigh { end: u64, bits: u8 },
    #[error("/dev/kvm: {step}: {source}")]
    Kvm { step: &'static str, source: kvm_ioctls::Error },
    #[error("KVM does not take the guest's memory type (IA32_MTRR_DEF_TYPE): blobs would be uncached")]
    MemoryType,
    #[error("--camera and --socket camera=PATH: a guest has one camera service")]
    TwoCameras,
    #[error("a socket at {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("guest memory: {0}")]
    Memory(String),
    #[error("the device: {0}")]
    Device(#[from] BuildError),
    #[error("camera: {0}")]
    Camera(#[from] SourceError),
    #[error("{step}: {source}")]
    Io { step: &'static str, source: io::Error },
}

impl VmmError {
    /// For `map_err`: a request to KVM that failed.
    pub(crate) fn kvm(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { step, source }
    }

    /// For `map_err`: something else that the host refused.
    pub(crate) fn io(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { step, source }
    }

    /// For `map_err`: an access to guest memory, or its allocation.
    pub(crate) fn memory(error: impl std::fmt::Display) -> Self {
        Self::Memory(error.to_string())
    }
}
