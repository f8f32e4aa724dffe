//! What a processor's loads and stores reach where there is no memory: the transport's registers, the console, power.

use std::sync::{Arc, Mutex, PoisonError};

use super::acpi::{POWER_OFF, RESET, RESET_VALUE, SLEEP_CONTROL};
use super::console::{self, Console};
use super::memory::GPU_REGISTERS;
use super::mmio::Transport;

/// What a guest asks of the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    Off,
    Reset,
}

/// Clones reach the same devices.
#[derive(Clone)]
pub(crate) struct Bus {
    console: Console,
    transport: Arc<Mutex<Transport>>,
}

impl Bus {
    pub(crate) fn new(console: Console, transport: Transport) -> Self {
        Self { console, transport: Arc::new(Mutex::new(transport)) }
    }

    /// Whether the guest has printed anything.
    pub(crate) fn console_has_output(&self) -> bool {
        self.console.has_output()
    }

    pub(crate) fn read_port(&self, port: u16, out: &mut [u8]) {
        // Ports that nothing answers at read as ones, and those of the sleep registers as zero: no wake-up has come.
        let nothing = if (SLEEP_CONTROL..=RESET).contains(&port) { 0 } else { 0xff };
        out.fill(nothing);
        if let (Some(offset), [byte]) = (console_register(port), out) {
            *byte = self.console.read(offset);
        }
    }

    /// Answers with what became of the machine, if anything.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> Option<Power> {
        match (port, data) {
            (SLEEP_CONTROL, &[POWER_OFF]) => return Some(Power::Off),
            (RESET, &[RESET_VALUE]) => return Some(Power::Reset),
            _ => {}
        }
        if let (Some(offset), &[byte]) = (console_register(port), data) {
            self.console.write(offset, byte);
        }
        None
    }

    pub(crate) fn read_memory(&self, address: u64, out: &mut [u8]) {
        match gpu_register(address) {
            Some(offset) => self.with_transport(|transport| transport.read(offset, out)),
            None => out.fill(0xff),
        }
    }

    pub(crate) fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some(offset) = gpu_register(address) {
            self.with_transport(|transport| transport.write(offset, data));
        }
    }

    fn with_transport<T>(&self, work: impl FnOnce(&mut Transport) -> T) -> T {
        work(&mut self.transport.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn console_register(port: u16) -> Option<u8> {
    let offset = u8::try_from(port.checked_sub(console::PORT)?).ok()?;
    (offset < console::PORTS).then_some(offset)
}

fn gpu_register(address: u64) -> Option<u32> {
    let offset = u32::try_from(address.checked_sub(GPU_REGISTERS)?).ok()?;
    (offset < 0x1000).then_some(offset)
}
