//! Virtio over MMIO (virtio 1.4, section 4.2): the registers through which a driver negotiates, sets up queues, finds the
//! window and resets. What they stand for is the device's business; kicks and interrupts do not come this way.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::*;
use virtio_gpu_uring::{Activation, DEVICE_ID, Device, Interrupt, QUEUE_SIZES, QueueSetup, SHM_ID_HOST_VISIBLE};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::kvm::InterruptLine;
use super::memory::Ram;

/// Offset of the register that a driver writes a queue's index to.
pub(crate) const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"VGPU");

/// How the device interrupts its driver, and what the driver then reads: clones are the same.
#[derive(Debug, Clone)]
struct Signals {
    line: InterruptLine,
    /// Why the driver was interrupted, until it has acknowledged.
    reasons: Arc<AtomicU32>,
    /// VIRTIO_CONFIG_S_NEEDS_RESET or nothing.
    needs_reset: Arc<AtomicU32>,
}

impl Signals {
    fn raise(&self, reason: u32) {
        self.reasons.fetch_or(reason, Ordering::SeqCst);
        self.line.raise();
    }
}

impl Interrupt for Signals {
    fn queue(&self, _index: u16) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn config_changed(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }
}

/// A queue as the driver describes it.
#[derive(Debug, Clone, Copy, Default)]
struct QueueRegisters {
    size: u16,
    ready: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

impl QueueRegisters {
    fn write(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => self.size = u16::try_from(value).unwrap_or(0),
            VIRTIO_MMIO_QUEUE_READY => self.ready = value == 1,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut self.descriptors, 0, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut self.descriptors, 1, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut self.driver, 0, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut self.driver, 1, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut self.device, 0, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut self.device, 1, value),
            _ => {}
        }
    }
}

/// The registers that a driver has written.
#[derive(Debug, Default)]
struct Registers {
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    /// The driver has chosen features above bit 63, where none is offered.
    unknown_features: bool,
    queue_select: u32,
    queues: [QueueRegisters; QUEUE_SIZES.len()],
    region_select: u32,
}

/// The transport of one device.
pub(crate) struct Transport {
    device: Arc<Device<Ram>>,
    ram: Ram,
    doorbells: [OwnedFd; QUEUE_SIZES.len()],
    signals: Signals,
    /// The window's address and length in the guest.
    region: (u64, u64),
    registers: Registers,
}

impl Transport {
    pub(crate) fn new(
        device: Arc<Device<Ram>>,
        ram: Ram,
        doorbells: [OwnedFd; QUEUE_SIZES.len()],
        line: InterruptLine,
        region: (u64, u64),
    ) -> Self {
        let signals = Signals { line, reasons: Arc::default(), needs_reset: Arc::default() };
        Self { device, ram, doorbells, signals, region, registers: Registers::default() }
    }

    /// A load from the registers; whatever is no register reads as zero.
    pub(crate) fn read(&self, offset: u32, out: &mut [u8]) {
        if offset >= VIRTIO_MMIO_CONFIG {
            return self.device.read_config(u64::from(offset - VIRTIO_MMIO_CONFIG), out);
        }
        out.fill(0);
        if let Some(out) = out.get_mut(..4) {
            out.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    /// A store to the registers. Drivers use 32 bits for all but the configuration space; anything else is not heard.
    pub(crate) fn write(&mut self, offset: u32, data: &[u8]) {
        if offset >= VIRTIO_MMIO_CONFIG {
            self.device.write_config(u64::from(offset - VIRTIO_MMIO_CONFIG), data);
        } else if let Ok(value) = data.try_into().map(u32::from_le_bytes) {
            self.write_register(offset, value);
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        let selected = self.registers.queue_select as usize;
        let (region_base, region_len) = self.selected_region();
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => DEVICE_ID,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.device.features(), self.registers.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX => QUEUE_SIZES.get(selected).map_or(0, |&size| size.into()),
            VIRTIO_MMIO_QUEUE_READY => self.registers.queues.get(selected).is_some_and(|queue| queue.ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.signals.reasons.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => self.registers.status | self.signals.needs_reset.load(Ordering::SeqCst),
            VIRTIO_MMIO_SHM_LEN_LOW => half(region_len, 0),
            VIRTIO_MMIO_SHM_LEN_HIGH => half(region_len, 1),
            VIRTIO_MMIO_SHM_BASE_LOW => half(region_base, 0),
            VIRTIO_MMIO_SHM_BASE_HIGH => half(region_base, 1),
            VIRTIO_MMIO_CONFIG_GENERATION => self.device.config_generation(),
            _ => 0,
        }
    }

    /// Region 1 is the window; a region that does not exist has a length of all ones.
    fn selected_region(&self) -> (u64, u64) {
        let exists = self.registers.region_select == u32::from(SHM_ID_HOST_VISIBLE);
        if exists { self.region } else { (u64::MAX, u64::MAX) }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        let registers = &mut self.registers;
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => {
                set_half(&mut registers.driver_features, registers.driver_features_select, value);
                registers.unknown_features |= registers.driver_features_select > 1 && value != 0;
            }
            VIRTIO_MMIO_QUEUE_SEL => registers.queue_select = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => self.ring(value),
            VIRTIO_MMIO_INTERRUPT_ACK => drop(self.signals.reasons.fetch_and(!value, Ordering::SeqCst)),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            VIRTIO_MMIO_SHM_SEL => registers.region_select = value,
            _ => {
                if let Some(queue) = registers.queues.get_mut(registers.queue_select as usize) {
                    queue.write(offset, value);
                }
            }
        }
    }

    /// A kick that did not come through the ioeventfd.
    fn ring(&self, index: u32) {
        if let Some(doorbell) = self.doorbells.get(index as usize) {
            let _ = rustix::io::write(doorbell, &1u64.to_ne_bytes());
        }
    }

    /// The driver's steps (virtio 1.4, section 3.1.1): the first time that a bit is set counts, and none is cleared but by
    /// a reset.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let new = value & !self.registers.status;
        self.registers.status |= value;
        if new & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.features_are_good() {
            self.registers.status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        let started = new & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        if started && let Err(error) = self.activate() {
            tracing::info!(%error, "the driver's queues");
            self.signals.needs_reset();
        }
    }

    fn features_are_good(&self) -> bool {
        let acknowledged = self.device.acknowledge(self.registers.driver_features);
        if let Err(error) = &acknowledged {
            tracing::info!(%error, "the driver's features");
        }
        acknowledged.is_ok() && !self.registers.unknown_features
    }

    /// Status 0. It waits until the device is quiet: the driver may free its memory as soon as it sees status 0.
    fn reset(&mut self) {
        // A device that has stopped is as quiet as can be.
        let _ = self.device.reset().wait();
        self.registers = Registers::default();
        self.signals.reasons.store(0, Ordering::SeqCst);
        self.signals.needs_reset.store(0, Ordering::SeqCst);
    }

    /// DRIVER_OK: hands the driver's queues to the device.
    fn activate(&self) -> Result<(), Box<dyn std::error::Error>> {
        if self.registers.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            return Err("started without FEATURES_OK".into());
        }
        let activation = Activation {
            memory: Arc::clone(&self.ram),
            control: self.queue(0)?,
            cursor: self.queue(1)?,
            interrupt: Box::new(self.signals.clone()),
        };
        Ok(self.device.activate(activation).wait()??)
    }

    fn queue(&self, index: usize) -> Result<QueueSetup, Box<dyn std::error::Error>> {
        let QueueRegisters { size, ready, descriptors, driver, device } = self.registers.queues[index];
        let mut queue = Queue::new(QUEUE_SIZES[index])?;
        if ready {
            queue.try_set_size(size)?;
            queue.try_set_desc_table_address(GuestAddress(descriptors))?;
            queue.try_set_avail_ring_address(GuestAddress(driver))?;
            queue.try_set_used_ring_address(GuestAddress(device))?;
            queue.set_ready(true);
        }
        Ok(QueueSetup { queue, kick: self.doorbells[index].as_fd().try_clone_to_owned()? })
    }
}

/// The lower (0) or upper (1) 32 bits; there are no others.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}
