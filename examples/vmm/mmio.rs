//! Virtio over MMIO (virtio 1.4, section 4.2): the registers through which a driver negotiates, sets up queues, finds the
//! window and resets. What they stand for is the device's business; kicks and interrupts do not come this way.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_gpu_uring::{Activation, DEVICE_ID, Device, Interrupt, QUEUE_SIZES, QueueSetup, SHM_ID_HOST_VISIBLE};
use virtio_queue::{Queue, QueueT};

use crate::memory::Ram;

/// Offset of the register that a driver writes a queue's index to.
pub(crate) const QUEUE_NOTIFY: u64 = REGISTER_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"VGPU");

const REGISTER_MAGIC: u16 = 0x00;
const REGISTER_VERSION: u16 = 0x04;
const REGISTER_DEVICE_ID: u16 = 0x08;
const REGISTER_VENDOR_ID: u16 = 0x0c;
const REGISTER_DEVICE_FEATURES: u16 = 0x10;
const REGISTER_DEVICE_FEATURES_SELECT: u16 = 0x14;
const REGISTER_DRIVER_FEATURES: u16 = 0x20;
const REGISTER_DRIVER_FEATURES_SELECT: u16 = 0x24;
const REGISTER_QUEUE_SELECT: u16 = 0x30;
const REGISTER_QUEUE_SIZE_MAX: u16 = 0x34;
const REGISTER_QUEUE_SIZE: u16 = 0x38;
const REGISTER_QUEUE_READY: u16 = 0x44;
const REGISTER_QUEUE_NOTIFY: u16 = 0x50;
const REGISTER_INTERRUPT_STATUS: u16 = 0x60;
const REGISTER_INTERRUPT_ACK: u16 = 0x64;
const REGISTER_STATUS: u16 = 0x70;
const REGISTER_QUEUE_DESCRIPTORS: u16 = 0x80;
const REGISTER_QUEUE_DRIVER: u16 = 0x90;
const REGISTER_QUEUE_DEVICE: u16 = 0xa0;
const REGISTER_REGION_SELECT: u16 = 0xac;
const REGISTER_REGION_LENGTH: u16 = 0xb0;
const REGISTER_REGION_BASE: u16 = 0xb8;
const REGISTER_CONFIG_GENERATION: u16 = 0xfc;
const REGISTER_CONFIG: u16 = 0x100;

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
        if offset >= REGISTER_CONFIG {
            return self.device.read_config(u64::from(offset - REGISTER_CONFIG), out);
        }
        out.fill(0);
        if let Some(out) = out.get_mut(..4) {
            out.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    /// A store to the registers. Drivers use 32 bits for all but the configuration space; anything else is not heard.
    pub(crate) fn write(&mut self, offset: u16, data: &[u8]) {
        if offset >= REGISTER_CONFIG {
            self.device.write_config(u64::from(offset - REGISTER_CONFIG), data);
        } else if let Ok(value) = data.try_into().map(u32::from_le_bytes) {
            self.write_register(offset, value);
        }
    }

    fn read_register(&self, offset: u16) -> u32 {
        let queue = self.registers.queues.get(self.registers.queue_select as usize);
        match offset {
            REGISTER_MAGIC => MAGIC,
            REGISTER_VERSION => VERSION,
            REGISTER_DEVICE_ID => DEVICE_ID,
            REGISTER_VENDOR_ID => VENDOR,
            REGISTER_DEVICE_FEATURES => half(self.device.features(), self.registers.device_features_select),
            REGISTER_QUEUE_SIZE_MAX => {
                QUEUE_SIZES.get(self.registers.queue_select as usize).map_or(0, |&size| size.into())
            }
            REGISTER_QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            REGISTER_INTERRUPT_STATUS => self.signals.interrupt.load(Ordering::SeqCst),
            REGISTER_STATUS => self.registers.status | self.signals.needs_reset.load(Ordering::SeqCst),
            0xb0..=0xbc => self.read_region(offset),
            // The configuration space never changes.
            REGISTER_CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    /// Region 1 is the window; a region that does not exist has a length of all ones.
    fn read_region(&self, offset: u16) -> u32 {
        let exists = self.registers.region_select == u32::from(SHM_ID_HOST_VISIBLE);
        let (base, len) = if exists { self.region } else { (u64::MAX, u64::MAX) };
        match offset {
            REGISTER_REGION_LENGTH | 0xb4 => half(len, u32::from(offset != REGISTER_REGION_LENGTH)),
            REGISTER_REGION_BASE | 0xbc => half(base, u32::from(offset != REGISTER_REGION_BASE)),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u16, value: u32) {
        match offset {
            REGISTER_DEVICE_FEATURES_SELECT => self.registers.device_features_select = value,
            REGISTER_DRIVER_FEATURES_SELECT => self.registers.driver_features_select = value,
            REGISTER_DRIVER_FEATURES => {
                set_half(&mut self.registers.driver_features, self.registers.driver_features_select, value);
            }
            REGISTER_QUEUE_SELECT => self.registers.queue_select = value,
            REGISTER_QUEUE_NOTIFY => self.ring(value),
            REGISTER_INTERRUPT_ACK => drop(self.signals.interrupt.fetch_and(!value, Ordering::SeqCst)),
            REGISTER_STATUS => self.write_status(value),
            REGISTER_REGION_SELECT => self.registers.region_select = value,
            _ => self.write_queue(offset, value),
        }
    }

    fn write_queue(&mut self, offset: u16, value: u32) {
        let Some(queue) = self.registers.queues.get_mut(self.registers.queue_select as usize) else { return };
        let upper = u32::from(offset & 4 != 0);
        match offset & !4 {
            _ if offset == REGISTER_QUEUE_READY => queue.ready = value == 1,
            REGISTER_QUEUE_SIZE => queue.size = u16::try_from(value).unwrap_or(0),
            REGISTER_QUEUE_DESCRIPTORS => set_half(&mut queue.descriptors, upper, value),
            REGISTER_QUEUE_DRIVER => set_half(&mut queue.driver, upper, value),
            REGISTER_QUEUE_DEVICE => set_half(&mut queue.device, upper, value),
            _ => {}
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
