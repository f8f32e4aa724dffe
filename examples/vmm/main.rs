//! A small VMM that embeds the device the way its author would: KVM, rust-vmm's crates, virtio over MMIO, and the window as
//! one memory slot. It boots a distribution's kernel, and shows it a camera when asked.
//!
//! The order of steps, each in the file that its name says:
//!
//! 1. `memory`: guest RAM, and where the window lies: outside RAM, below the end of the guest's physical addresses.
//! 2. `acpi`, `boot`: into RAM go the tables that describe the transport to the guest, its kernel and its initrd.
//! 3. `kvm`: RAM and window ([`HostWindow`](virtio_gpu_uring::HostWindow)) become memory slots. The window's slot is never
//!    touched again: blobs come and go inside it.
//! 4. `gpu`: the device ([`Builder`](virtio_gpu_uring::Builder)) over that window, with a thread of its own; KVM has a word in
//!    what counts as mapped. An ioeventfd for each queue, an irqfd for the interrupt, and the transport, `mmio`.
//! 5. `processor`, `bus`: vCPUs run, and their exits reach the transport: FEATURES_OK becomes
//!    [`Device::acknowledge`](virtio_gpu_uring::Device::acknowledge), DRIVER_OK
//!    [`activate`](virtio_gpu_uring::Device::activate), status 0 [`reset`](virtio_gpu_uring::Device::reset).
//! 6. At the guest's end the device is stopped, which empties the window and closes what the guest has held.
//!
//! `screens` is what the guest's pictures are shown on; `control` plugs and unplugs screens while the guest runs.
//!
//! `camera` is a host service that has nothing to do with VMMs: it serves a V4L2 device's buffers on a Unix socket, as
//! PipeWire would.

use std::process::ExitCode;

/// Says a line on stderr, whether or not anybody reads it: a guest must not end because a terminal is gone.
macro_rules! say {
    ($($word:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "vmm: {}", format_args!($($word)*));
    }};
}

#[cfg(target_arch = "x86_64")]
#[path = ""]
mod vmm {
    mod acpi;
    mod arguments;
    mod boot;
    mod bus;
    mod camera;
    mod console;
    mod control;
    mod error;
    mod gpu;
    mod kvm;
    mod memory;
    mod mmio;
    mod processor;
    pub(super) mod run;
    mod screens;
    mod trace;
}

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    vmm::run::main()
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    say!("this example is for x86-64 machines");
    ExitCode::FAILURE
}
