//! The guest's serial console: a 16550 whose output is stdout and whose input is stdin.

use std::convert::Infallible;
use std::io::{self, Read, Stdout, Write};
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::{Serial, Trigger};

use super::error::VmmError;
use super::kvm::InterruptLine;

/// The first port of COM1.
pub(crate) const PORT: u16 = 0x3f8;
/// How many ports it has.
pub(crate) const PORTS: u8 = 8;

impl Trigger for InterruptLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.raise();
        Ok(())
    }
}

/// Stdout, and whether anything went there.
struct Output {
    stdout: Stdout,
    used: bool,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.used = true;
        self.stdout.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }
}

type Uart = Serial<InterruptLine, vm_superio::serial::NoEvents, Output>;

/// Clones are the same console.
#[derive(Clone)]
pub(crate) struct Console(Arc<Mutex<Uart>>);

impl Console {
    /// A console whose interrupt is `line`; a thread of its own waits for input.
    pub(crate) fn new(line: InterruptLine) -> Result<Self, VmmError> {
        let output = Output { stdout: io::stdout(), used: false };
        let console = Self(Arc::new(Mutex::new(Serial::new(line, output))));
        let input = console.clone();
        let thread = std::thread::Builder::new().name("console".into());
        thread.spawn(move || input.forward(io::stdin())).map_err(VmmError::io("the console's thread"))?;
        Ok(console)
    }

    pub(crate) fn has_output(&self) -> bool {
        self.with(|uart| uart.writer().used)
    }

    pub(crate) fn read(&self, offset: u8) -> u8 {
        self.with(|uart| uart.read(offset))
    }

    pub(crate) fn write(&self, offset: u8, value: u8) {
        // Whoever reads stdout may have gone; the guest goes on.
        let _ = self.with(|uart| uart.write(offset, value));
    }

    /// Passes on what is typed, at the guest's pace, until there is no more.
    fn forward(&self, mut input: impl Read) {
        let mut bytes = [0; 64];
        while let Ok(len @ 1..) = input.read(&mut bytes) {
            let mut rest = &bytes[..len];
            while !rest.is_empty() {
                let taken = self.with(|uart| uart.enqueue_raw_bytes(rest)).unwrap_or(0);
                rest = &rest[taken..];
                if taken == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Uart) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
