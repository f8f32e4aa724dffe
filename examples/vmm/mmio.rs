//! Virtio over MMIO (virtio 1.4, section 4.2): the registers through which a driver negotiates, sets up queues, finds the
//! window and resets. What they stand for is the device's business; kicks and interrupts do not come this way.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_gpu_uring::{Activation, DEVICE_ID, Device, Interrupt, QUEUE_SIZES, QueueSetup, SHM_ID_HOST_VISIBLE};
use virtio_queue::{Queue, QueueT};

use crate::memory::Ram;

/// Offset of the register that a driver writes a queue's index to.
pub(crate) const QUEUE_NOTIFY: u64 = register::QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"VGPU");

/// Offsets of the registers (virtio 1.4, section 4.2.2).
mod register {
    pub(super) const MAGIC: u16 = 0x00;
    pub(super) const VERSION: u16 = 0x04;
    pub(super) const DEVICE_ID: u16 = 0x08;
    pub(super) const VENDOR_ID: u16 = 0x0c;
    pub(super) const DEVICE_FEATURES: u16 = 0x10;
    pub(super) const DEVICE_FEATURES_SELECT: u16 = 0x14;
    pub(super) const DRIVER_FEATURES: u16 = 0x20;
    pub(super) const DRIVER_FEATURES_SELECT: u16 = 0x24;
    pub(super) const QUEUE_SELECT: u16 = 0x30;
    pub(super) const QUEUE_SIZE_MAX: u16 = 0x34;
    pub(super) const QUEUE_SIZE: u16 = 0x38;
    pub(super) const QUEUE_READY: u16 = 0x44;
    pub(super) const QUEUE_NOTIFY: u16 = 0x50;
    pub(super) const INTERRUPT_STATUS: u16 = 0x60;
    pub(super) const INTERRUPT_ACK: u16 = 0x64;
    pub(super) const STATUS: u16 = 0x70;
    pub(super) const QUEUE_DESCRIPTORS_LOW: u16 = 0x80;
    pub(super) const QUEUE_DESCRIPTORS_HIGH: u16 = 0x84;
    pub(super) const QUEUE_DRIVER_LOW: u16 = 0x90;
    pub(super) const QUEUE_DRIVER_HIGH: u16 = 0x94;
    pub(super) const QUEUE_DEVICE_LOW: u16 = 0xa0;
    pub(super) const QUEUE_DEVICE_HIGH: u16 = 0xa4;
    pub(super) const REGION_SELECT: u16 = 0xac;
    pub(super) const REGION_LENGTH_LOW: u16 = 0xb0;
    pub(super) const REGION_LENGTH_HIGH: u16 = 0xb4;
    pub(super) const REGION_BASE_LOW: u16 = 0xb8;
    pub(super) const REGION_BASE_HIGH: u16 = 0xbc;
    pub(super) const CONFIG_GENERATION: u16 = 0xfc;
    pub(super) const CONFIG: u16 = 0x100;
}

const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;
const STATUS_NEEDS_RESET: u32 = 0x40;

const INTERRUPT_QUEUE: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// What the device's thread and the processors' threads both change.
#[derive(Debug, Default)]
struct Signals {
    /// Why the driver was interrupted, until it has acknowledged.
    interrupt: AtomicU32,
    /// STATUS_NEEDS_RESET or nothing.
    needs_reset: AtomicU32,
}

/// How the device interrupts its driver: a reason, and an irqfd.
struct Line {
    signals: Arc<Signals>,
    event: OwnedFd,
}

impl Line {
    fn raise(&self, reason: u32) {
        self.signals.interrupt.fetch_or(reason, Ordering::SeqCst);
        // A counter that is full has raised the interrupt already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

impl Interrupt for Line {
    fn queue(&self, _index: u16) {
        self.raise(INTERRUPT_QUEUE);
    }

    fn needs_reset(&self) {
        self.signals.needs_reset.store(STATUS_NEEDS_RESET, Ordering::SeqCst);
        self.raise(INTERRUPT_CONFIG);
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
    fn write(&mut self, offset: u16, value: u32) {
        match offset {
            register::QUEUE_SIZE => self.size = u16::try_from(value).unwrap_or(0),
            register::QUEUE_READY => self.ready = value == 1,
            register::QUEUE_DESCRIPTORS_LOW => set_half(&mut self.descriptors, 0, value),
            register::QUEUE_DESCRIPTORS_HIGH => set_half(&mut self.descriptors, 1, value),
            register::QUEUE_DRIVER_LOW => set_half(&mut self.driver, 0, value),
            register::QUEUE_DRIVER_HIGH => set_half(&mut self.driver, 1, value),
            register::QUEUE_DEVICE_LOW => set_half(&mut self.device, 0, value),
            register::QUEUE_DEVICE_HIGH => set_half(&mut self.device, 1, value),
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
    queue_select: u32,
    queues: [QueueRegisters; QUEUE_SIZES.len()],
    region_select: u32,
}

/// The transport of one device.
pub(crate) struct Transport {
    device: Arc<Device<Ram>>,
    ram: Ram,
    doorbells: [OwnedFd; QUEUE_SIZES.len()],
    line: OwnedFd,
    /// The window's address and length in the guest.
    region: (u64, u64),
    signals: Arc<Signals>,
    registers: Registers,
}

impl Transport {
    pub(crate) fn new(
        device: Arc<Device<Ram>>,
        ram: Ram,
        doorbells: [OwnedFd; QUEUE_SIZES.len()],
        line: OwnedFd,
        region: (u64, u64),
    ) -> Self {
        Self { device, ram, doorbells, line, region, signals: Arc::default(), registers: Registers::default() }
    }

    /// A load from the registers; whatever is no register reads as zero.
    pub(crate) fn read(&self, offset: u16, out: &mut [u8]) {
        if offset >= register::CONFIG {
            return self.device.read_config(u64::from(offset - register::CONFIG), out);
        }
        out.fill(0);
        if let Some(out) = out.get_mut(..4) {
            out.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    /// A store to the registers. Drivers use 32 bits for all but the configuration space; anything else is not heard.
    pub(crate) fn write(&mut self, offset: u16, data: &[u8]) {
        if offset >= register::CONFIG {
            self.device.write_config(u64::from(offset - register::CONFIG), data);
        } else if let Ok(value) = data.try_into().map(u32::from_le_bytes) {
            self.write_register(offset, value);
        }
    }

    fn read_register(&self, offset: u16) -> u32 {
        let selected = self.registers.queue_select as usize;
        let (region_base, region_len) = self.selected_region();
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => DEVICE_ID,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(self.device.features(), self.registers.device_features_select),
            register::QUEUE_SIZE_MAX => QUEUE_SIZES.get(selected).map_or(0, |&size| size.into()),
            register::QUEUE_READY => self.registers.queues.get(selected).is_some_and(|queue| queue.ready).into(),
            register::INTERRUPT_STATUS => self.signals.interrupt.load(Ordering::SeqCst),
            register::STATUS => self.registers.status | self.signals.needs_reset.load(Ordering::SeqCst),
            register::REGION_LENGTH_LOW => half(region_len, 0),
            register::REGION_LENGTH_HIGH => half(region_len, 1),
            register::REGION_BASE_LOW => half(region_base, 0),
            register::REGION_BASE_HIGH => half(region_base, 1),
            // The configuration space never changes.
            register::CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    /// Region 1 is the window; a region that does not exist has a length of all ones.
    fn selected_region(&self) -> (u64, u64) {
        let exists = self.registers.region_select == u32::from(SHM_ID_HOST_VISIBLE);
        if exists { self.region } else { (u64::MAX, u64::MAX) }
    }

    fn write_register(&mut self, offset: u16, value: u32) {
        let registers = &mut self.registers;
        match offset {
            register::DEVICE_FEATURES_SELECT => registers.device_features_select = value,
            register::DRIVER_FEATURES_SELECT => registers.driver_features_select = value,
            register::DRIVER_FEATURES => {
                set_half(&mut registers.driver_features, registers.driver_features_select, value);
            }
            register::QUEUE_SELECT => registers.queue_select = value,
            register::QUEUE_NOTIFY => self.ring(value),
            register::INTERRUPT_ACK => drop(self.signals.interrupt.fetch_and(!value, Ordering::SeqCst)),
            register::STATUS => self.write_status(value),
            register::REGION_SELECT => registers.region_select = value,
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

    /// The driver's steps (virtio 1.4, section 3.1.1): only the first time that a bit is set means anything.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let new = value & !self.registers.status;
        self.registers.status = value;
        if new & STATUS_FEATURES_OK != 0
            && let Err(error) = self.device.acknowledge(self.registers.driver_features)
        {
            eprintln!("vmm: the driver's features: {error}");
            self.registers.status &= !STATUS_FEATURES_OK;
        }
        if new & STATUS_DRIVER_OK != 0
            && let Err(error) = self.activate()
        {
            eprintln!("vmm: the driver's queues: {error}");
            self.signals.needs_reset.store(STATUS_NEEDS_RESET, Ordering::SeqCst);
        }
    }

    /// Status 0. It waits until the device is quiet: the driver may free its memory as soon as it sees status 0.
    fn reset(&mut self) {
        if self.device.reset().wait().is_err() {
            eprintln!("vmm: the device is gone");
        }
        self.registers = Registers::default();
        self.signals.interrupt.store(0, Ordering::SeqCst);
        self.signals.needs_reset.store(0, Ordering::SeqCst);
    }

    /// DRIVER_OK: hands the driver's queues to the device.
    fn activate(&self) -> Result<(), Box<dyn std::error::Error>> {
        let line = Line { signals: Arc::clone(&self.signals), event: self.line.try_clone()? };
        let activation = Activation {
            memory: Arc::clone(&self.ram),
            control: self.queue(0)?,
            cursor: self.queue(1)?,
            interrupt: Box::new(line),
        };
        Ok(self.device.activate(activation).wait()??)
    }

    fn queue(&self, index: usize) -> Result<QueueSetup, Box<dyn std::error::Error>> {
        let QueueRegisters { size, ready, descriptors, driver, device } = self.registers.queues[index];
        let mut queue = Queue::new(QUEUE_SIZES[index])?;
        queue.set_size(size);
        queue.set_desc_table_address(Some(half(descriptors, 0)), Some(half(descriptors, 1)));
        queue.set_avail_ring_address(Some(half(driver, 0)), Some(half(driver, 1)));
        queue.set_used_ring_address(Some(half(device, 0)), Some(half(device, 1)));
        queue.set_ready(ready);
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
