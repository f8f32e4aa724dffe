//! A small VMM that embeds the device the way its author would: KVM, rust-vmm's crates, virtio over MMIO, and the window as
//! one memory slot. It boots a distribution's kernel, and shows it a camera when asked.
//!
//! The order of steps, each in the file that its name says:
//!
//! 1. `memory`: guest RAM, and where the window lies: outside RAM, below the end of the guest's physical addresses.
//! 2. `kvm`: RAM and window ([`HostWindow`](virtio_gpu_uring::HostWindow)) become memory slots. The window's slot is never
//!    touched again: blobs come and go inside it.
//! 3. `gpu`: the device ([`Builder`](virtio_gpu_uring::Builder)) over that window, with a thread of its own. `window` stands
//!    between the two, so that KVM has a word in what counts as mapped.
//! 4. `gpu` again: an ioeventfd for each queue, an irqfd for the interrupt, and what the transport, `mmio`, needs of them.
//! 5. `acpi`, `boot`: the tables that describe the transport to the guest, its kernel, its initrd.
//! 6. `processor`, `bus`: vCPUs run, and their exits reach the transport: FEATURES_OK becomes
//!    [`Device::acknowledge`](virtio_gpu_uring::Device::acknowledge), DRIVER_OK
//!    [`activate`](virtio_gpu_uring::Device::activate), status 0 [`reset`](virtio_gpu_uring::Device::reset).
//! 7. At the guest's end the device is stopped, which empties the window and closes what the guest has held.
//!
//! `camera` is a host service that has nothing to do with VMMs: it serves a V4L2 device's buffers on a Unix socket, as
//! PipeWire would.

mod acpi;
mod arguments;
mod boot;
mod bus;
mod camera;
mod console;
mod error;
mod gpu;
mod kvm;
mod memory;
mod mmio;
mod processor;
mod trace;
mod window;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

use arguments::Arguments;
use bus::Bus;
use camera::CameraService;
use console::Console;
use error::VmmError;
use gpu::Gpu;
use kvm::{Host, VirtualMachine};
use memory::Layout;
use processor::{End, Processors};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(End::PowerOff) => ExitCode::SUCCESS,
        Ok(end) => {
            eprintln!("vmm: {end}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Boots the guest, and returns when it has ended.
fn run(arguments: &Arguments) -> Result<End, VmmError> {
    trace::start(arguments.trace.as_deref())?;
    let camera = arguments.camera.as_deref().map(CameraService::start).transpose()?;
    let host = Host::open()?;
    let layout = Layout::new(arguments.memory, arguments.window, host.address_bits()?)?;
    let ram = layout.allocate()?;
    let (window, window_at) = (gpu::window(arguments)?, layout.window.start);
    let machine = VirtualMachine::new(&host, Arc::clone(&ram), window.clone(), window_at)?;
    eprintln!("vmm: window guest {window_at:#x} host {:#x} len {:#x}", window.host_address() as usize, window.len());
    let gpu = Gpu::new(arguments, camera.as_ref(), &machine, window, window_at)?;
    let transport = gpu.transport(&machine, Arc::clone(&ram))?;
    let console = Console::new(machine.interrupt_line(acpi::CONSOLE_GSI)?)?;
    acpi::write_tables(&ram, arguments.cpus)?;
    let entry = boot::load(&ram, &layout, &arguments.kernel, &arguments.initrd, &arguments.command_line())?;
    let bus = Bus::new(console, transport);
    let end = Processors::start(&host, &machine, arguments.cpus, &entry, &bus)?.wait();
    gpu.stop();
    Ok(end)
}
