//! A machine with the device in this process and a guest that runs the bridge: real queues, a real window.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use virtio_gpu_uring::testing::{Guest, GuestOptions};
use virtio_gpu_uring::{Builder, ChannelType, HostWindow, Interrupt};

use crate::channel::GuestSide;
use crate::daemon::{DEADLINE, Folder, until};
use crate::witness::{Honesty, Witness};

/// Length of the window: room for the buffers of a client.
const WINDOW: usize = 32 << 20;

/// What a guest's thread is told from outside, and what wakes it up.
#[derive(Debug, Clone)]
pub(crate) struct Bell {
    pub(crate) rung: Arc<OwnedFd>,
    order: Arc<AtomicU8>,
    /// How often the guest has stood still.
    stops: Arc<AtomicUsize>,
}

/// What a guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    None,
    /// The bridge ends, and its kernel clears up.
    Stop,
    /// The guest's processors stand still, and the device is paused.
    Freeze,
    /// The VMM closes the channels of a guest that stands still.
    HangUp,
    /// The guest's driver starts anew.
    Reset,
    /// All is over.
    CutOff,
}

impl Bell {
    fn new() -> Self {
        let rung = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
        Self { rung: Arc::new(rung), order: Arc::default(), stops: Arc::default() }
    }

    pub(crate) fn order(&self) -> Order {
        let all = [Order::None, Order::Stop, Order::Freeze, Order::HangUp, Order::Reset, Order::CutOff];
        all[usize::from(self.order.load(Ordering::SeqCst))]
    }

    /// Waits for another order than this one.
    fn wait(&self, last: Order) -> Order {
        while self.order() == last {
            poll(&mut [PollFd::new(&*self.rung, PollFlags::IN)], None).expect("polled");
            let _ = rustix::io::read(&*self.rung, &mut [0; 8]);
        }
        self.order()
    }

    fn give(&self, order: Order) {
        self.order.store(order as u8, Ordering::SeqCst);
        self.ring();
    }

    fn ring(&self) {
        // A full counter rings all the same.
        let _ = rustix::io::write(&*self.rung, &1u64.to_ne_bytes());
    }
}

/// Interrupts that also ring the bell.
struct Ringing {
    inner: Box<dyn Interrupt>,
    bell: Bell,
}

impl Interrupt for Ringing {
    fn queue(&self, index: u16) {
        self.inner.queue(index);
        self.bell.ring();
    }

    fn config_changed(&self) {
        self.inner.config_changed();
    }

    fn needs_reset(&self) {
        self.inner.needs_reset();
    }
}

pub(crate) struct Machine {
    pub(crate) guest: Guest,
    pub(crate) witness: Witness,
    pub(crate) bell: Bell,
    /// The number of the next context.
    next: u32,
}

impl Machine {
    /// A machine that offers the daemon with this socket to its guest.
    pub(crate) fn new(daemon: &Path, honesty: Honesty) -> Self {
        let witness = Witness::new(HostWindow::with_scratch(WINDOW, 1 << 20).expect("a window"), honesty);
        let builder = Builder::new().window(witness.clone()).host_socket(ChannelType::PIPEWIRE, daemon);
        let options = GuestOptions::default();
        let guest = Guest::powered_off(builder.spawn().expect("a device"), options);
        let machine = Self { guest, witness, bell: Bell::new(), next: 1 };
        machine.activate();
        machine
    }

    fn activate(&self) {
        let device = self.guest.device();
        let mut activation = self.guest.activation();
        activation.interrupt = Box::new(Ringing { inner: activation.interrupt, bell: self.bell.clone() });
        device.acknowledge(GuestOptions::default().features).expect("features that can be served");
        device.activate(activation).wait().expect("a device").expect("queues that can be served");
    }

    /// Stands still until it is told to go on; its channels are hung up meanwhile, where that is ordered.
    pub(crate) fn freeze(&self) {
        let device = self.guest.device();
        device.pause().wait().expect("a device").expect("a device that works");
        self.bell.stops.fetch_add(1, Ordering::SeqCst);
        if self.bell.wait(Order::Freeze) == Order::HangUp {
            assert_eq!(device.hang_up(ChannelType::PIPEWIRE).wait().expect("a device"), 1);
            self.bell.wait(Order::HangUp);
        }
        device.resume().wait().expect("a device");
    }

    /// Waits for a client in the guest, and carries its session to the end.
    fn serve(&mut self, listener: &UnixListener) -> io::Result<()> {
        let timeout = Timespec::try_from(DEADLINE).expect("a short time");
        let ready = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&timeout))?;
        assert_eq!(ready, 1, "no client came within {DEADLINE:?}");
        let (client, _) = listener.accept()?;
        let (bell, context) = (self.bell.clone(), self.next);
        self.next += 1;
        let mut channel = GuestSide::open(self, context);
        let result = pipewire_bridge::serve(client, &mut channel);
        match bell.order() {
            Order::None if result.is_ok() => channel.close(),
            Order::CutOff => drop(channel),
            Order::Reset => {
                drop(channel);
                self.guest.reset();
                self.activate();
            }
            _ => channel.abandon(),
        }
        result
    }

    /// Runs the bridge for one client, which finds it in the folder.
    pub(crate) fn run(mut self, folder: &Folder) -> Running {
        let socket = folder.socket();
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("a socket in the folder");
        let bell = self.bell.clone();
        bell.give(Order::None);
        let thread = std::thread::spawn(move || {
            let result = self.serve(&listener);
            (self, result)
        });
        Running { bell, thread }
    }
}

/// A machine whose guest runs the bridge.
pub(crate) struct Running {
    bell: Bell,
    thread: JoinHandle<(Machine, io::Result<()>)>,
}

impl Running {
    /// Gives the guest an order, whatever it is doing.
    pub(crate) fn order(&self, order: Order) {
        self.bell.give(order);
    }

    /// Has the guest stand still until the device is paused, and go on.
    #[track_caller]
    pub(crate) fn pause(&self) {
        let before = self.bell.stops.load(Ordering::SeqCst);
        self.order(Order::Freeze);
        until("the device's pause", || self.bell.stops.load(Ordering::SeqCst) > before);
        self.order(Order::None);
    }

    /// Ends the machine as it stands: the device is dropped, and nobody has told it anything before.
    #[track_caller]
    pub(crate) fn cut_off(self) {
        self.order(Order::CutOff);
        drop(self.ended());
    }

    /// Waits for the end of the session.
    #[track_caller]
    pub(crate) fn ended(self) -> (Machine, io::Result<()>) {
        self.thread.join().expect("the guest did not panic")
    }
}
