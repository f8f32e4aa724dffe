//! The queues as a front-end sets them up, message by message, until there is enough to serve them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::calls::expect_eventfd;
use super::memory::Regions;
use crate::device::{QUEUE_SIZES, QueueSetup};

/// Control and cursor.
pub(super) const QUEUES: usize = QUEUE_SIZES.len();

/// What is wrong with a queue.
#[derive(Debug, thiserror::Error)]
pub(super) enum RingError {
    #[error("queue {index}, where there are {QUEUES}")]
    Index { index: u32 },
    #[error("queue {index} of {size} descriptors, where a power of two up to {most} is possible")]
    Size { index: usize, size: u32, most: u16 },
    #[error("queue {index} begins at {base}")]
    Base { index: usize, base: u32 },
    #[error("queue {index} has no eventfd for its kicks; it would have to be polled")]
    NoKick { index: usize },
    #[error("queue {index} is started without {what}")]
    Incomplete { index: usize, what: &'static str },
    #[error("queue {index}: {address:#x} in the front-end is no guest memory")]
    Address { index: usize, address: u64 },
    #[error("queue {index}: {source}")]
    Queue { index: usize, source: virtio_queue::Error },
    #[error("queue {index}: its used ring cannot be read: {source}")]
    Used { index: usize, source: vm_memory::GuestMemoryError },
    #[error("queue {index}: {source}")]
    Io { index: usize, source: io::Error },
}

/// Where a ring's parts lie in the front-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// One queue.
#[derive(Default)]
pub(super) struct Ring {
    size: u16,
    addresses: Option<Addresses>,
    base: u16,
    /// The front-end has stated the base since the queue was stopped.
    base_stated: bool,
    /// Where the queue was stopped last.
    stopped_at: Option<u16>,
    /// There while the queue is started.
    kick: Option<File>,
    enabled: bool,
}

/// What a queue that is served looks like; one that looks different has to be taken up anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    size: u16,
    addresses: Addresses,
}

impl Ring {
    pub(super) fn set_size(&mut self, index: usize, size: u32) -> Result<(), RingError> {
        let most = QUEUE_SIZES[index];
        let sound = u16::try_from(size).ok().filter(|size| size.is_power_of_two() && *size <= most);
        self.size = sound.ok_or(RingError::Size { index, size, most })?;
        Ok(())
    }

    pub(super) fn set_addresses(&mut self, addresses: Addresses) {
        self.addresses = Some(addresses);
    }

    pub(super) fn set_base(&mut self, index: usize, base: u32) -> Result<(), RingError> {
        self.base = u16::try_from(base).map_err(|_| RingError::Base { index, base })?;
        self.base_stated = true;
        Ok(())
    }

    /// Starts the queue.
    pub(super) fn set_kick(&mut self, index: usize, kick: Option<File>) -> Result<(), RingError> {
        let kick = kick.ok_or(RingError::NoKick { index })?;
        expect_eventfd(&kick).map_err(|source| RingError::Io { index, source })?;
        self.kick = Some(kick);
        Ok(())
    }

    pub(super) fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// The queue has come to here; it goes on from here unless the front-end says otherwise.
    pub(super) fn halted(&mut self, at: u16) {
        (self.base, self.base_stated, self.stopped_at) = (at, false, Some(at));
    }

    /// The front-end stops the queue, and hears where it has come to.
    pub(super) fn stop(&mut self) -> u16 {
        self.kick = None;
        self.base
    }

    /// Whether the driver that goes on with this queue is the one of before: another one begins at 0, where that one may stand, too,
    /// and reads the configuration first, which the guest of a machine that stands still does not.
    pub(super) fn goes_on(&self, config_read: bool) -> bool {
        !self.base_stated || self.stopped_at == Some(self.base) && !(self.base == 0 && config_read)
    }

    /// What is to be served, where the queue is started and enabled.
    ///
    /// # Errors
    /// It was started too early.
    pub(super) fn wanted(&self, index: usize) -> Result<Option<Shape>, RingError> {
        if self.kick.is_none() || !self.enabled {
            return Ok(None);
        }
        let incomplete = |what| RingError::Incomplete { index, what };
        let addresses = self.addresses.ok_or_else(|| incomplete("addresses"))?;
        if self.size == 0 {
            return Err(incomplete("a size"));
        }
        Ok(Some(Shape { size: self.size, addresses }))
    }

    /// The queue for the device; one that is not ready where it is not to be served.
    ///
    /// # Errors
    /// It does not lie in guest memory.
    pub(super) fn setup(&self, index: usize, shape: Option<Shape>, regions: &Regions) -> Result<QueueSetup, RingError> {
        let wrong = |source| RingError::Queue { index, source };
        let io = |source| RingError::Io { index, source };
        let (Some(shape), Some(kick)) = (shape, &self.kick) else {
            let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| io(error.into()))?;
            return Ok(QueueSetup { queue: Queue::new(QUEUE_SIZES[index]).map_err(wrong)?, kick });
        };
        let guest = |address| regions.guest_address(address).ok_or(RingError::Address { index, address });
        let used_ring = guest(shape.addresses.used)?;
        let memory = regions.memory().memory();
        // `struct virtq_used`: flags, then the index (virtio 1.4, section 2.7.8).
        let used = used_ring.checked_add(2).ok_or(RingError::Address { index, address: used_ring })?;
        let next_used =
            memory.read_obj::<u16>(GuestAddress(used)).map_err(|source| RingError::Used { index, source })?;
        let state = QueueState {
            max_size: QUEUE_SIZES[index],
            size: shape.size,
            ready: true,
            desc_table: guest(shape.addresses.descriptors)?,
            avail_ring: guest(shape.addresses.available)?,
            used_ring,
            next_avail: self.base,
            next_used: u16::from_le(next_used),
            event_idx_enabled: false,
        };
        let kick = OwnedFd::from(kick.try_clone().map_err(io)?);
        Ok(QueueSetup { queue: Queue::try_from(state).map_err(wrong)?, kick })
    }
}
