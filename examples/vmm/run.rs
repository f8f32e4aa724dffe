//! One guest from the command line to its end.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use virtio_gpu_uring::ChannelType;

use super::acpi;
use super::arguments::Arguments;
use super::boot;
use super::bus::Bus;
use super::camera::CameraService;
use super::console::Console;
use super::control::Control;
use super::error::VmmError;
use super::gpu::Gpu;
use super::kvm::{Host, VirtualMachine};
use super::memory::Layout;
use super::processor::{End, Processors};
use super::screens::Screens;
use super::trace;

/// The whole program. Status 0: the guest has powered off; 1: anything else, which one line names; 2: bad arguments.
pub(crate) fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(End::PowerOff) => ExitCode::SUCCESS,
        Ok(end) => {
            say!("{end}");
            ExitCode::FAILURE
        }
        Err(error) => {
            say!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Boots the guest, and returns when it has ended. Other processors may run on until the process ends, and see a device
/// that has stopped.
fn run(arguments: &Arguments) -> Result<End, VmmError> {
    if arguments.camera.is_some() && arguments.socket.iter().any(|(kind, _)| *kind == ChannelType::CAMERA) {
        return Err(VmmError::TwoCameras);
    }
    trace::start(arguments.trace.as_deref())?;
    let camera = arguments.camera.as_deref().map(CameraService::start).transpose()?;
    let host = Host::open()?;
    let layout = Layout::new(arguments.memory, arguments.window, host.address_bits()?)?;
    let ram = layout.allocate()?;
    acpi::write_tables(&ram, arguments.cpus)?;
    let entry = boot::load(&ram, &layout, &arguments.kernel, &arguments.initrd, &arguments.command_line())?;

    let window = arguments.host_window()?;
    let machine = VirtualMachine::new(&host, Arc::clone(&ram), window.clone(), layout.window.start)?;
    say!("window guest {:#x} host {:#x} len {:#x}", layout.window.start, window.host_address() as usize, window.len());
    let screens = Screens::new(arguments);
    let (gpu, transport) = Gpu::new(arguments, &screens, camera.as_ref(), &machine, ram, window, layout.window.start)?;
    let control = arguments.control.as_deref();
    let _control = control.map(|path| Control::start(path, gpu.displays(), screens)).transpose()?;
    let console = Console::new(machine.interrupt_line(acpi::CONSOLE_GSI)?)?;
    let end = Processors::start(&machine, arguments.cpus, &entry, &Bus::new(console, transport))?.wait();
    gpu.stop();
    Ok(end)
}
