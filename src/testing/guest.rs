//! The guest itself: memory, two queues, kicks, interrupts, and the device under test as a VMM holds it.
//! Every wait has a deadline and says what it was waiting for.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use zerocopy::FromBytes;

use super::{DriverQueue, GuestRam, Layout, Request, RingFeatures, Token, Used};
use crate::device::{Activation, Builder, Device, QueueSetup};
use crate::pipeline::Paused;
use crate::protocol::features::{EVENT_IDX, INDIRECT_DESC, OFFERED};
use crate::protocol::wire::{Header, response_type};
use crate::seams::Interrupt;

/// How long anything may take before a test gives up.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Which queue a request goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Queue 0.
    Control,
    /// Queue 1.
    Cursor,
}

/// What kind of guest it is.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// The features that its driver acknowledges.
    pub features: u64,
    /// Descriptors of the control queue.
    pub queue_size: u16,
    /// Guest memory in bytes.
    pub ram: usize,
    /// How its driver lays out chains.
    pub layout: Layout,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self { features: OFFERED, queue_size: 256, ram: 32 << 20, layout: Layout::default() }
    }
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its header, zero where the device wrote none.
    pub header: Header,
    /// What follows the header.
    pub payload: Vec<u8>,
    /// Bytes that the device says it has written.
    pub written: u32,
}

impl Answer {
    fn read(used: &Used) -> Self {
        let (header, payload) = match Header::read_from_prefix(&used.response) {
            Ok((header, rest)) => (header, rest.to_vec()),
            Err(_) => (Header::new(0), used.response.clone()),
        };
        Self { header, payload, written: used.written }
    }

    /// The answer's type.
    #[must_use]
    pub fn kind(&self) -> u32 {
        self.header.kind.get()
    }

    /// Asserts that it is a success, and hands out what follows the header.
    ///
    /// # Panics
    /// Where the answer is an error.
    #[track_caller]
    pub fn ok(self) -> Vec<u8> {
        assert!((0x1100..0x1200).contains(&self.kind()), "the device answered {:#x}", self.kind());
        self.payload
    }

    /// Asserts that it is this error.
    ///
    /// # Panics
    /// Where it is not.
    #[track_caller]
    pub fn expect_error(&self, kind: u32) {
        assert_eq!(self.kind(), kind, "the device answered {:#x} where {kind:#x} is due", self.kind());
    }
}

/// Interrupts as eventfds, and a count of the times that the device asked for a reset.
struct Lines {
    queues: [OwnedFd; 2],
    config: OwnedFd,
    resets: Arc<AtomicU64>,
}

impl Interrupt for Lines {
    fn queue(&self, index: u16) {
        let _ = rustix::io::write(&self.queues[usize::from(index)], &1u64.to_ne_bytes());
    }

    fn config_changed(&self) {
        let _ = rustix::io::write(&self.config, &1u64.to_ne_bytes());
    }

    fn needs_reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

/// A queue, its eventfds, and answers that nobody has asked for yet.
struct Port {
    queue: DriverQueue,
    kick: OwnedFd,
    interrupt: OwnedFd,
    arrived: HashMap<Token, Answer>,
}

/// A guest with a driver that works.
pub struct Guest {
    device: Device<Arc<GuestMemoryMmap>>,
    ram: GuestRam,
    control: Port,
    cursor: Port,
    options: GuestOptions,
    config: OwnedFd,
    needs_resets: Arc<AtomicU64>,
}

impl Guest {
    /// A guest of the usual kind on a device with a thread of its own.
    ///
    /// # Panics
    /// Where the device cannot be made or activated; so does everything below.
    #[must_use]
    pub fn start(builder: Builder) -> Self {
        Self::with_options(builder, GuestOptions::default())
    }

    /// A guest of another kind.
    #[must_use]
    pub fn with_options(builder: Builder, options: GuestOptions) -> Self {
        let mut guest = Self::powered_off(builder.spawn().expect("a device"), options);
        guest.activate();
        guest
    }

    /// A guest whose driver has not started, on a device that runs wherever the caller runs it.
    #[must_use]
    pub fn powered_off(device: Device<Arc<GuestMemoryMmap>>, options: GuestOptions) -> Self {
        let ram = GuestRam::new(options.ram);
        let features = RingFeatures {
            event_idx: options.features & EVENT_IDX != 0,
            indirect: options.features & INDIRECT_DESC != 0,
        };
        let port = |size| Port {
            queue: DriverQueue::new(ram.clone(), size, features),
            kick: event(),
            interrupt: event(),
            arrived: HashMap::new(),
        };
        let (control, cursor) = (port(options.queue_size), port(16));
        Self { device, ram, control, cursor, options, config: event(), needs_resets: Arc::default() }
    }

    /// What the guest hands to its device at DRIVER_OK.
    #[must_use]
    pub fn activation(&self) -> Activation<Arc<GuestMemoryMmap>> {
        let setup = |port: &Port| QueueSetup { queue: port.queue.device_queue(), kick: clone(&port.kick) };
        let queues = [clone(&self.control.interrupt), clone(&self.cursor.interrupt)];
        Activation {
            memory: self.ram.space(),
            control: setup(&self.control),
            cursor: setup(&self.cursor),
            interrupt: Box::new(Lines { queues, config: clone(&self.config), resets: Arc::clone(&self.needs_resets) }),
        }
    }

    /// What it hands to a device that has been paused, to go on from there; a queue that was not served is not ready.
    ///
    /// # Panics
    /// Where there are no such queues.
    #[must_use]
    pub fn activation_from(&self, paused: &Paused) -> Activation<Arc<GuestMemoryMmap>> {
        let mut activation = self.activation();
        for (setup, state) in [(&mut activation.control, paused.control), (&mut activation.cursor, paused.cursor)] {
            match state {
                Some(state) => setup.queue = Queue::try_from(state).expect("the device's own state"),
                None => setup.queue.set_ready(false),
            }
        }
        activation
    }

    /// Negotiates features and sets DRIVER_OK.
    pub fn activate(&mut self) {
        self.device.acknowledge(self.options.features).expect("features that can be served");
        self.device.activate(self.activation()).wait().expect("a device").expect("queues that can be served");
    }

    /// Writes status 0 and waits until the device is quiet; the driver's queues start anew then.
    pub fn reset(&mut self) {
        self.device.reset().wait().expect("a device");
        for port in [&mut self.control, &mut self.cursor] {
            port.queue.reset();
            port.arrived.clear();
        }
    }

    /// The device, as its VMM holds it.
    #[must_use]
    pub fn device(&self) -> &Device<Arc<GuestMemoryMmap>> {
        &self.device
    }

    /// Guest memory.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The driver's side of a queue, to misbehave with.
    pub fn queue(&mut self, lane: Lane) -> &mut DriverQueue {
        &mut self.port(lane).queue
    }

    /// How often the device said that it needs a reset.
    #[must_use]
    pub fn needs_resets(&self) -> u64 {
        self.needs_resets.load(Ordering::SeqCst)
    }

    /// How often the device said since the last call that its configuration space has changed.
    pub fn take_config_changes(&mut self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.config, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    fn port(&mut self, lane: Lane) -> &mut Port {
        match lane {
            Lane::Control => &mut self.control,
            Lane::Cursor => &mut self.cursor,
        }
    }

    /// Kicks a queue, needed or not.
    pub fn kick(&mut self, lane: Lane) {
        rustix::io::write(&self.port(lane).kick, &1u64.to_ne_bytes()).expect("kicked");
    }

    /// Makes a request available and kicks the device where that is needed.
    pub fn submit(&mut self, request: &Request) -> Token {
        self.submit_on(Lane::Control, request)
    }

    /// The same on either queue.
    pub fn submit_on(&mut self, lane: Lane, request: &Request) -> Token {
        let token = self.add(lane, request);
        self.publish(lane);
        token
    }

    /// Puts a request into the queue without telling the device.
    pub fn add(&mut self, lane: Lane, request: &Request) -> Token {
        let layout = self.options.layout.clone();
        let started = Instant::now();
        loop {
            match self.port(lane).queue.add(&request.bytes(), request.room(), &layout) {
                Ok(token) => return token,
                Err(full) => {
                    self.publish(lane);
                    let before = self.port(lane).arrived.len();
                    self.collect(lane);
                    if self.port(lane).arrived.len() == before {
                        self.sleep(lane, started, &format!("room in the queue ({full})"));
                    }
                }
            }
        }
    }

    /// Makes what was added available.
    pub fn publish(&mut self, lane: Lane) {
        if self.port(lane).queue.publish() {
            self.kick(lane);
        }
    }

    /// Waits for an answer.
    #[track_caller]
    pub fn wait(&mut self, token: Token) -> Answer {
        self.wait_on(Lane::Control, token)
    }

    /// The same on either queue.
    #[track_caller]
    pub fn wait_on(&mut self, lane: Lane, token: Token) -> Answer {
        let started = Instant::now();
        loop {
            self.collect(lane);
            if let Some(answer) = self.port(lane).arrived.remove(&token) {
                return answer;
            }
            self.sleep(lane, started, &format!("the answer to {token:?}"));
        }
    }

    /// Sends a request and waits for its answer.
    #[track_caller]
    pub fn command(&mut self, request: &Request) -> Answer {
        let token = self.submit(request);
        self.wait(token)
    }

    /// Whether an answer has come. Everything that the device could answer by now is in, if [`settle`](Self::settle) was
    /// called before.
    pub fn has_answer(&mut self, token: &Token) -> bool {
        self.collect(Lane::Control);
        self.control.arrived.contains_key(token)
    }

    /// Waits until the device has served everything before this: a command that touches nothing overtakes whatever waits.
    #[track_caller]
    pub fn settle(&mut self) {
        self.command(&Request::display_info()).ok();
    }

    fn collect(&mut self, lane: Lane) {
        let port = self.port(lane);
        while let Some(used) = port.queue.poll_used() {
            let answer = Answer::read(&used);
            port.arrived.insert(used.token, answer);
        }
    }

    /// Sleeps until the next interrupt.
    #[track_caller]
    fn sleep(&mut self, lane: Lane, started: Instant, what: &str) {
        let left = DEADLINE.saturating_sub(started.elapsed());
        assert!(!left.is_zero(), "waited {DEADLINE:?} for {what}");
        let port = self.port(lane);
        let timeout = Timespec::try_from(left).expect("a short time");
        let mut wanted = [PollFd::new(&port.interrupt, PollFlags::IN)];
        if poll(&mut wanted, Some(&timeout)).is_ok_and(|ready| ready > 0) {
            let _ = rustix::io::read(port.interrupt.as_fd(), &mut [0; 8]);
        }
    }

    /// Memory of the guest's own: `len` bytes, page aligned.
    #[must_use]
    pub fn page_range(&self, len: usize) -> (u64, u32) {
        let address = self.ram.alloc(len, 4096);
        (address.0, u32::try_from(len).expect("a short range"))
    }

    /// The device has lost no request, and none waits.
    pub fn assert_all_answered(&mut self) {
        self.collect(Lane::Control);
        self.collect(Lane::Cursor);
        let open = self.control.queue.outstanding() + self.cursor.queue.outstanding();
        assert_eq!((open, self.device.counters().requests_lost), (0, 0), "requests open, requests lost");
    }

    /// Asserts that a mapping was answered with how it may be cached, and not only with success.
    #[track_caller]
    pub fn map(&mut self, resource: u32, offset: u64) {
        let answer = self.command(&Request::map(resource, offset));
        assert_eq!(answer.kind(), response_type::OK_MAP_INFO, "the device answered {:#x}", answer.kind());
        assert_eq!(answer.ok(), [1, 0, 0, 0, 0, 0, 0, 0]);
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

fn clone(file: &OwnedFd) -> OwnedFd {
    file.try_clone().expect("a duplicate")
}
