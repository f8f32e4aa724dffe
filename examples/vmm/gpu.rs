//! The device as this VMM embeds it: its window, its host sockets, and the ends that tie it to KVM.

use std::sync::Arc;

use virtio_gpu_uring::{Builder, ChannelType, Counters, Device, HostWindow};

use crate::acpi::GPU_GSI;
use crate::arguments::{Arguments, Gaps};
use crate::camera::CameraService;
use crate::error::VmmError;
use crate::kvm::VirtualMachine;
use crate::memory::{GPU_REGISTERS, Ram};
use crate::mmio::{QUEUE_NOTIFY, Transport};
use crate::window::CheckedWindow;

/// The device, and where its window lies in the guest.
pub(crate) struct Gpu {
    device: Arc<Device<Ram>>,
    region: (u64, u64),
}

/// The window, filled as the command line says.
pub(crate) fn window(arguments: &Arguments) -> Result<HostWindow, VmmError> {
    let len = (arguments.window << 20) as usize;
    let window = match arguments.gaps {
        Gaps::Scratch => HostWindow::new(len),
        Gaps::Deny => HostWindow::deny_gaps(len),
    };
    window.map_err(VmmError::io("the window"))
}

impl Gpu {
    /// The device over `window`, which is the guest's already, from `window_at` on.
    pub(crate) fn new(
        arguments: &Arguments,
        camera: Option<&CameraService>,
        machine: &VirtualMachine,
        window: HostWindow,
        window_at: u64,
    ) -> Result<Self, VmmError> {
        let region = (window_at, window.len());
        let mut builder = match machine.prober(arguments.cpus)? {
            Some(prober) => Builder::new().window(CheckedWindow::new(window, window_at, prober)?),
            None => {
                eprintln!(
                    "vmm: before Linux 6.10 a guest that maps a buffer that KVM cannot reach ends at its first touch"
                );
                Builder::new().window(window)
            }
        };
        for (channel_type, path) in &arguments.socket {
            builder = builder.host_socket(*channel_type, path);
        }
        if let Some(camera) = camera {
            builder = builder.host_socket(ChannelType::CAMERA, camera.path());
        }
        Ok(Self { device: Arc::new(builder.spawn()?), region })
    }

    /// The transport, with an ioeventfd for each queue and an irqfd.
    pub(crate) fn transport(&self, machine: &VirtualMachine, ram: Ram) -> Result<Transport, VmmError> {
        let notify = GPU_REGISTERS + QUEUE_NOTIFY;
        let doorbells = [machine.doorbell(notify, 0)?, machine.doorbell(notify, 1)?];
        let line = machine.interrupt_line(GPU_GSI)?;
        Ok(Transport::new(Arc::clone(&self.device), ram, doorbells, line, self.region))
    }

    /// Ends the device: the window is empty then, and what the guest has held is closed.
    pub(crate) fn stop(&self) {
        if self.device.stop().wait().is_err() {
            eprintln!("vmm: the device had stopped before the guest");
        }
        let Counters { commands, answers_error, maps, unmaps, .. } = self.device.counters();
        eprintln!("vmm: device commands={commands} errors={answers_error} maps={maps} unmaps={unmaps}");
        tracing::info!(counters = ?self.device.counters(), "the device has ended");
    }
}
