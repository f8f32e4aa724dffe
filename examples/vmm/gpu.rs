//! The device as this VMM embeds it: its window, its displays, its host sockets, and the ends that tie it to KVM.

use std::sync::Arc;
use std::time::Duration;

use virtio_gpu_uring::protocol::features::VIRGL;
use virtio_gpu_uring::{Builder, ChannelType, Counters, Device, Displays, HostWindow, RutabagaRenderer};

use super::acpi::GPU_GSI;
use super::arguments::Arguments;
use super::camera::CameraService;
use super::error::VmmError;
use super::kvm::VirtualMachine;
use super::memory::{GPU_REGISTERS, Ram};
use super::mmio::{QUEUE_NOTIFY, Transport};
use super::screens::Screens;

/// KVM looks at some thousand pages in a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);

/// The device, beside its transport.
pub(crate) struct Gpu(Arc<Device<Ram>>);

impl Gpu {
    /// The device over `window`, which the guest sees from `window_at` on, and its transport: an ioeventfd for each queue,
    /// an irqfd, and the registers.
    pub(crate) fn new(
        arguments: &Arguments,
        screens: &Screens,
        camera: Option<&CameraService>,
        machine: &VirtualMachine,
        ram: Ram,
        window: HostWindow,
        window_at: u64,
    ) -> Result<(Self, Transport), VmmError> {
        let region = (window_at, window.len());
        let mut builder = Builder::new().window(checked(window, window_at, machine, arguments.cpus)?);
        builder = screens.connect(builder)?;
        if arguments.no_3d {
            builder = builder.withhold(VIRGL);
        }
        if let Some(settings) = arguments.renderer_settings() {
            builder = builder.renderer(|| RutabagaRenderer::new(settings));
        }
        for (channel_type, path) in &arguments.socket {
            builder = builder.host_socket(*channel_type, path);
        }
        if let Some(camera) = camera {
            builder = builder.host_socket(ChannelType::CAMERA, camera.path());
        }
        let device = Arc::new(builder.spawn()?);
        let notify = GPU_REGISTERS + QUEUE_NOTIFY;
        let doorbells = [machine.doorbell(notify, 0)?, machine.doorbell(notify, 1)?];
        let line = machine.interrupt_line(GPU_GSI)?;
        let transport = Transport::new(Arc::clone(&device), ram, doorbells, line, region);
        Ok((Self(device), transport))
    }

    /// For those who plug displays in and out.
    pub(crate) fn displays(&self) -> Displays {
        self.0.displays()
    }

    /// Ends the device: the window is empty then, and what the guest has held is closed.
    pub(crate) fn stop(&self) {
        if self.0.stop().wait().is_err() {
            say!("the device had stopped before the guest");
        }
        let counters = self.0.counters();
        let Counters { commands, answers_error, maps, unmaps, .. } = counters;
        say!("device commands={commands} errors={answers_error} maps={maps} unmaps={unmaps}");
        tracing::info!(?counters, "the device has ended");
    }
}

/// The window, with KVM's word on each dma-buf in it where this KVM can be asked.
fn checked(window: HostWindow, at: u64, machine: &VirtualMachine, cpus: u8) -> Result<HostWindow, VmmError> {
    match machine.prober(cpus)? {
        Some(prober) => window
            .checked_by(PATIENCE, move |offset, len| prober.probe(at + offset, len))
            .map_err(VmmError::io("the thread that asks KVM")),
        None => {
            say!(
                "this KVM cannot say what a guest could reach (KVM_CAP_PRE_FAULT_MEMORY): a dma-buf may end its guest"
            );
            Ok(window)
        }
    }
}
