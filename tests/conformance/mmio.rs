//! What a driver finds in a transport's registers, of the example VMM's virtio over MMIO: the parts of items 1, 2, 4, 7, 8, 12,
//! 21 and 24 that a VMM makes of what this crate gives it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_gpu_uring::protocol::features::{CONTEXT_INIT, EDID, OFFERED, VERSION_1, VIRGL};
use virtio_gpu_uring::testing::{DEADLINE, DriverQueue, GuestRam, Layout, Request, RingFeatures, Screen, Viewer};
use virtio_gpu_uring::{Builder, Device, HostWindow, Monitor, QUEUE_SIZES};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use kvm::InterruptLine;
use memory::Ram;
use transport::Transport;

/// The VMM's transport.
#[path = "../../examples/vmm/mmio.rs"]
#[allow(dead_code, reason = "the VMM's, and not all of it is needed here")]
mod transport;

/// What stands in for the VMM's KVM: it names this module.
mod kvm {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    /// A line that counts how often it was raised.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct InterruptLine(pub(crate) Arc<AtomicU64>);

    impl InterruptLine {
        pub(crate) fn raise(&self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
}

/// And for its memory.
mod memory {
    pub(crate) type Ram = std::sync::Arc<vm_memory::GuestMemoryMmap>;
}

/// Where the window is in this machine.
const WINDOW_AT: u64 = 0x12_3456_7000;
const WINDOW: u64 = 1 << 20;
const CONFIG: u32 = VIRTIO_MMIO_CONFIG;
/// The driver's steps up to the choice of features.
const DRIVER: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

/// A machine with the transport, and a driver at its registers.
struct Machine {
    transport: Transport,
    device: Arc<Device<Ram>>,
    doorbell: OwnedFd,
    line: InterruptLine,
    ram: GuestRam,
    queues: [DriverQueue; 2],
    _viewer: Viewer,
}

fn doorbell() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

impl Machine {
    fn new() -> Self {
        let window = HostWindow::new(WINDOW as usize).expect("a window");
        let (screen, viewer) = Screen::new();
        let builder = Builder::new().window(window).scanouts(2).display(0, Monitor::new(640, 480), screen);
        let device = Arc::new(builder.spawn().expect("a device"));
        let ram = GuestRam::new(8 << 20);
        let (doorbells, line) = ([doorbell(), doorbell()], InterruptLine::default());
        let doorbell = doorbells[0].as_fd().try_clone_to_owned().expect("a duplicate");
        let features = RingFeatures { event_idx: true, indirect: true };
        let queues = [64, 16].map(|size| DriverQueue::new(ram.clone(), size, features));
        let region = (WINDOW_AT, WINDOW);
        let transport = Transport::new(Arc::clone(&device), ram.space(), doorbells, line.clone(), region);
        Self { transport, device, doorbell, line, ram, queues, _viewer: viewer }
    }

    fn read(&self, offset: u32) -> u32 {
        let mut bytes = [0xee; 4];
        self.transport.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// The control queue's used ring, as far as its entries.
    fn used_ring(&self) -> Vec<u8> {
        let at = GuestAddress(self.queues[0].device_queue().used_ring());
        self.ram.read(at, 4 + 64 * 8)
    }

    fn status(&self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// The driver's choice of features, and what the status says then.
    fn choose(&mut self, features: u64) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.status(), 0);
        self.write(VIRTIO_MMIO_STATUS, DRIVER);
        for (half, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        self.write(VIRTIO_MMIO_STATUS, FEATURES_OK);
        self.status()
    }

    fn start(&mut self) {
        assert_eq!(self.choose(OFFERED), FEATURES_OK);
        for index in 0..2 {
            self.queues[index].reset();
            let queue = self.queues[index].device_queue();
            self.write(VIRTIO_MMIO_QUEUE_SEL, index as u32);
            self.write(VIRTIO_MMIO_QUEUE_NUM, queue.size().into());
            for (low, address) in [
                (VIRTIO_MMIO_QUEUE_DESC_LOW, queue.desc_table()),
                (VIRTIO_MMIO_QUEUE_AVAIL_LOW, queue.avail_ring()),
                (VIRTIO_MMIO_QUEUE_USED_LOW, queue.used_ring()),
            ] {
                self.write(low, address as u32);
                self.write(low + 4, (address >> 32) as u32);
            }
            self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.write(VIRTIO_MMIO_STATUS, DRIVER_OK);
        assert_eq!(self.status(), DRIVER_OK);
    }

    #[track_caller]
    fn until(&self, what: &str, true_now: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !true_now(self) {
            assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} until {what}");
            std::thread::yield_now();
        }
    }

    /// Sends a request on the control queue, as a driver does: with the queue's index in QueueNotify.
    #[track_caller]
    fn ask(&mut self, request: &Request) -> Vec<u8> {
        let raised = self.line.0.load(SeqCst);
        let _ = self.queues[0].add(&request.bytes(), request.room(), &Layout::default()).expect("room");
        if self.queues[0].publish() {
            self.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        }
        self.until("the line is raised", |machine| machine.line.0.load(SeqCst) > raised);
        assert_eq!(self.read(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INT_VRING);
        self.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
        self.queues[0].poll_used().expect("an answer").response
    }
}

#[test]
fn spec_01_the_registers_say_what_the_device_is() {
    let mut machine = Machine::new();
    assert_eq!(machine.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(machine.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(machine.read(VIRTIO_MMIO_DEVICE_ID), 16);
    for (index, size) in [QUEUE_SIZES[0], QUEUE_SIZES[1], 0, 0].into_iter().enumerate() {
        machine.write(VIRTIO_MMIO_QUEUE_SEL, index as u32);
        assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_NUM_MAX), u32::from(size), "queue {index}");
        assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
    let mut offered = 0;
    for half in [1, 0] {
        machine.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
        offered = offered << 32 | u64::from(machine.read(VIRTIO_MMIO_DEVICE_FEATURES));
    }
    assert_eq!(offered, OFFERED);
}

#[test]
fn spec_02_features_ok_stays_clear_for_what_cannot_be_served() {
    let mut machine = Machine::new();
    for bad in [0, EDID, OFFERED & !VERSION_1, OFFERED | 1 << 35, OFFERED & !VIRGL, VERSION_1 | CONTEXT_INIT] {
        assert_eq!(machine.choose(bad), DRIVER, "features {bad:#x}");
    }
    for good in [OFFERED, VERSION_1, VERSION_1 | VIRGL | CONTEXT_INIT, OFFERED, OFFERED] {
        assert_eq!(machine.choose(good), FEATURES_OK, "features {good:#x}");
    }
    // Whoever goes on without FEATURES_OK has a device that needs a reset.
    assert_eq!(machine.choose(OFFERED | 1 << 50), DRIVER);
    machine.write(VIRTIO_MMIO_STATUS, DRIVER | VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(machine.status() & VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_CONFIG_S_NEEDS_RESET);
    machine.start();
}

#[test]
fn spec_04_the_configuration_space_is_read_by_bytes_and_words_at_any_status() {
    let mut machine = Machine::new();
    let expected = [0u32, 0, 2, 1, 4096];
    for step in 0..3 {
        match step {
            0 => {}
            1 => drop(machine.choose(OFFERED)),
            _ => machine.start(),
        }
        for (index, word) in (0..).zip(expected) {
            assert_eq!(machine.read(CONFIG + 4 * index), word);
            for (at, byte) in (0..).zip(word.to_le_bytes()) {
                let mut one = [0xee];
                machine.transport.read(CONFIG + 4 * index + at, &mut one);
                assert_eq!(one, [byte]);
            }
        }
        assert_eq!(machine.read(CONFIG + 20), 0);
    }
}

#[test]
fn spec_07_events_clear_is_written_through_the_registers() {
    let mut machine = Machine::new();
    machine.start();
    machine.device.change_monitor(0, Monitor::new(800, 600)).wait().expect("a device").expect("a monitor");
    assert_eq!(machine.read(CONFIG), 1);
    for (offset, value) in [(0, 0), (0, 1), (4, 0), (4, 2), (8, 1), (12, 1), (16, 1)] {
        machine.write(CONFIG + offset, value);
        assert_eq!(machine.read(CONFIG), 1, "{value} at {offset}");
    }
    machine.transport.write(CONFIG + 4, &[1]);
    assert_eq!(machine.read(CONFIG), 0);
    assert_eq!((machine.read(CONFIG + 4), machine.read(CONFIG + 8)), (0, 2));
}

#[test]
fn spec_08_a_display_change_is_an_interrupt_and_another_generation() {
    let mut machine = Machine::new();
    machine.start();
    let (generation, raised) = (machine.read(VIRTIO_MMIO_CONFIG_GENERATION), machine.line.0.load(SeqCst));
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    machine.device.change_monitor(0, Monitor::new(800, 600)).wait().expect("a device").expect("a monitor");
    assert_eq!(machine.line.0.load(SeqCst), raised + 1);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_ne!(machine.read(VIRTIO_MMIO_CONFIG_GENERATION), generation, "ConfigGeneration");
    machine.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn spec_12_a_region_that_does_not_exist_has_a_length_of_all_ones() {
    let mut machine = Machine::new();
    let wide = |machine: &Machine, low| u64::from(machine.read(low)) | u64::from(machine.read(low + 4)) << 32;
    for region in (0..=257).chain([u32::MAX]) {
        machine.write(VIRTIO_MMIO_SHM_SEL, region);
        let place = (wide(&machine, VIRTIO_MMIO_SHM_BASE_LOW), wide(&machine, VIRTIO_MMIO_SHM_LEN_LOW));
        let expected = if region == 1 { (WINDOW_AT, WINDOW) } else { (u64::MAX, u64::MAX) };
        assert_eq!(place, expected, "region {region}");
    }
}

#[test]
fn spec_21_status_is_zero_after_a_reset_and_nothing_is_touched_then() {
    let mut machine = Machine::new();
    for _ in 0..3 {
        machine.start();
        assert_eq!(machine.ask(&Request::display_info())[..4], 0x1101u32.to_le_bytes());
        machine.device.change_monitor(0, Monitor::new(800, 600)).wait().expect("a device").expect("a monitor");
        machine.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(machine.status(), 0);
        assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0, "an interrupt of before");
        assert_eq!(machine.read(CONFIG), 0, "an event of before");
        let quiet = (machine.line.0.load(SeqCst), machine.device.counters());
        let request = Request::display_info();
        let _ = machine.queues[0].add(&request.bytes(), request.room(), &Layout::default()).expect("room");
        let _ = machine.queues[0].publish();
        machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        rustix::io::write(&machine.doorbell, &1u64.to_ne_bytes()).expect("rung");
        machine.device.resume().wait().expect("a device");
        assert_eq!((machine.line.0.load(SeqCst), machine.device.counters()), quiet);
        assert_eq!(machine.queues[0].poll_used(), None);
        for index in [0, 1] {
            machine.write(VIRTIO_MMIO_QUEUE_SEL, index);
            assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 0, "a queue of before");
        }
    }
}

#[test]
fn spec_21_status_is_never_zero_before_the_device_is_quiet() {
    let mut machine = Machine::new();
    for _ in 0..100 {
        machine.start();
        let request = Request::display_info();
        for _ in 0..20 {
            let _ = machine.queues[0].add(&request.bytes(), request.room(), &Layout::default()).expect("room");
        }
        let _ = machine.queues[0].publish();
        machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        machine.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(machine.status(), 0);
        let at_zero = (machine.used_ring(), machine.line.0.load(SeqCst));
        machine.device.resume().wait().expect("a device");
        assert_eq!((machine.used_ring(), machine.line.0.load(SeqCst)), at_zero, "the device was at work");
    }
}

#[test]
fn spec_24_a_broken_queue_is_a_status_bit_and_an_interrupt() {
    let mut machine = Machine::new();
    for _ in 0..2 {
        machine.start();
        let _ = machine.queues[0].publish_raw_head(u16::MAX);
        machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        machine.until("the driver is told", |machine| machine.read(VIRTIO_MMIO_INTERRUPT_STATUS) != 0);
        assert_eq!(machine.status(), DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET);
        assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
        machine.start();
        assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        assert_eq!(machine.ask(&Request::display_info())[..4], 0x1101u32.to_le_bytes());
    }
}
