//! What every test here starts from: a daemon whose camera runs, a native client of it, and what this process holds.

use virtio_gpu_uring::BufferKind;
use virtio_gpu_uring::Protection;
use virtio_gpu_uring::testing::census::{Census, maps_named};

use crate::channel::LARGE;
use crate::client::Client;
use crate::daemon::{Daemon, Folder, Source, until};
use crate::judge::FRAMES;
use crate::machine::{Machine, Running};
use crate::witness::{Honesty, Witness};

/// The guest's client, as the daemon knows it.
const GUEST: &str = "guestcam";
/// Frames without an end.
const ENDLESS: u32 = 1_000_000;

pub(crate) struct Stage {
    pub(crate) source: Source,
    pub(crate) daemon: Daemon,
    /// The native client: it must never notice anything.
    pub(crate) host: Client,
    /// Where the guest's clients look for a daemon.
    guests: Folder,
}

impl Stage {
    pub(crate) fn start() -> Self {
        let source = Source::here();
        let daemon = Daemon::start(&source);
        let mut host = Client::start(&daemon.folder, "hostcam", &source, ENDLESS);
        daemon.link("hostcam");
        host.wait_for(3);
        Self { source, daemon, host, guests: Folder::new() }
    }

    pub(crate) fn machine(&self, honesty: Honesty) -> Machine {
        Machine::new(&self.daemon.folder.socket(), honesty)
    }

    /// Starts the bridge, and a client that it serves; linked to the camera.
    pub(crate) fn session(&self, machine: Machine) -> (Running, Client) {
        self.session_of(machine, FRAMES)
    }

    /// The same with a client that never has enough, when it has had three frames.
    pub(crate) fn endless_session(&self, machine: Machine) -> (Running, Client) {
        let (running, mut client) = self.session_of(machine, ENDLESS);
        client.wait_for(3);
        (running, client)
    }

    fn session_of(&self, machine: Machine, frames: u32) -> (Running, Client) {
        let running = machine.run(&self.guests);
        let client = Client::start(&self.guests, GUEST, &self.source, frames);
        self.daemon.link(GUEST);
        (running, client)
    }

    /// The daemon has let go of the guest's client, and its camera runs for the native one.
    #[track_caller]
    pub(crate) fn assert_rid_of_the_guest(&mut self) {
        until("the daemon to notice that the guest has gone", || !self.daemon.knows(GUEST));
        self.host.goes_on();
    }

    /// The next client in the guest has frames.
    #[track_caller]
    pub(crate) fn assert_serves(&self, machine: Machine) {
        let (running, mut guest) = self.session(machine);
        assert!(guest.ended().success(), "{:?}", guest.lines());
        let (_, result) = running.ended();
        assert!(result.is_ok(), "the bridge: {result:?}");
    }

    /// What is placed is what the source has: dma-bufs that are never written to, or ordinary memory.
    #[track_caller]
    pub(crate) fn assert_placed(&self, witness: &Witness) -> usize {
        let wanted = match self.source.is_dma_buf {
            true => (BufferKind::DmaBuf, Protection::PrivateCopy),
            false => (BufferKind::SharedMemory, Protection::ReadWrite),
        };
        let placed = witness.placed();
        let (frames, small): (Vec<_>, Vec<_>) = placed.values().partition(|placed| placed.len >= LARGE);
        assert!(!frames.is_empty() && !small.is_empty(), "{placed:?}");
        assert!(frames.iter().all(|frame| (frame.kind, frame.protection) == wanted), "{frames:?}");
        let shared = (BufferKind::SharedMemory, Protection::ReadWrite);
        assert!(small.iter().all(|small| (small.kind, small.protection) == shared), "{small:?}");
        frames.len()
    }
}

/// What this process holds: descriptors, and mappings of shared memory and of dma-bufs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held {
    fds: usize,
    buffers: [usize; 2],
}

impl Held {
    pub(crate) fn now() -> Self {
        Self { fds: Census::take().fds, buffers: ["/memfd:", "/dmabuf:"].map(maps_named) }
    }

    /// The same with so many descriptors less.
    pub(crate) fn without_fds(self, less: usize) -> Self {
        Self { fds: self.fds - less, ..self }
    }
}
