//! What one device may take of its host, and the ledger that knows how much of it is taken.
//! A charge is a value: it is given back when it is dropped, so that no error path can forget it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Limits of one device. Whatever would pass one is answered `ERR_OUT_OF_MEMORY` or waits in the guest's ring; a descriptor
/// of a channel is announced as unsupported, and a channel whose service does not read is closed. All are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Resources at a time.
    pub resources: u64,
    /// Contexts at a time.
    pub contexts: u64,
    /// Bytes of the window that blobs may cover at a time.
    pub mapped_bytes: u64,
    /// Bytes of host memory that a guest may cause to be copied: read-only buffers, each in full while it is mapped, what
    /// host services and readers of pipes have not taken yet, and lists and streams of commands that wait for earlier ones.
    pub host_bytes: u64,
    /// Bytes of 2D resources' own pixels, and of images that a cross-domain context has made (GET_IMAGE_REQUIREMENTS); those
    /// that nobody has touched cost the host nothing yet.
    pub image_bytes: u64,
    /// Bytes of the renderer's resources, as far as the device can tell: a blob's size; four bytes for each pixel of any other
    /// resource, of each layer, level and sample, though some formats take sixteen. What contexts make by their streams alone
    /// (shaders, samplers, queries) is not seen.
    pub rendered_bytes: u64,
    /// File descriptors of blobs, offers, received items and pipes at a time, those that the renderer keeps for its own,
    /// one for each cross-domain context, and one for each read of a host buffer that the VMM, a display or a cursor waits for
    /// (two for a dma-buf). The process's own limit must lie above it.
    pub fds: u64,
    /// Entries of guest memory lists, of one command and of all resources together.
    pub backing_entries: u64,
    /// Longest command stream of one SUBMIT_3D, in bytes.
    pub submit_bytes: u64,
    /// Commands that have been popped and not yet answered, at least 1. At the limit the device stops popping.
    pub commands_in_flight: usize,
    /// What a context has beside resources: received descriptors that it has not yet made blobs of, eventfds, pipes.
    pub items_per_context: usize,
    /// Bytes that a channel keeps for a host service that does not read; and as many again for the readers of all its pipes. At
    /// the limit the channel is closed; pipes go on, and what does not fit is answered `ERR_OUT_OF_MEMORY`.
    pub channel_backlog: usize,
    /// How long a placement, the taking back of one, a read, a reset, a pause or the renderer's end may last before what is
    /// stuck is set aside, and how long a display may take over a frame.
    pub deadline: Duration,
    /// How long one call of the renderer may last, at least, before the renderer is given up. Shaders that are compiled and
    /// waits for a GPU happen within calls.
    pub renderer_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            resources: 16_384,
            contexts: 256,
            mapped_bytes: 8 << 30,
            host_bytes: 256 << 20,
            image_bytes: 1 << 30,
            rendered_bytes: 8 << 30,
            fds: 512,
            backing_entries: 1 << 20,
            submit_bytes: 1 << 20,
            commands_in_flight: 1024,
            items_per_context: 512,
            channel_backlog: 4 << 20,
            deadline: Duration::from_secs(5),
            renderer_deadline: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// What a driver can ask of a renderer before it is answered, and what its end asks: a command and its fence, as many
    /// cursors as their queue holds, the end of each resource and context; and as much again for a driver that came while the
    /// renderer was at it. One more is its own.
    pub(crate) fn requests_of_renderer(&self, cursors: u16) -> usize {
        let commands = (self.commands_in_flight as u64).saturating_mul(2).saturating_add(cursors.into());
        let all =
            self.resources.saturating_add(self.contexts).saturating_add(commands).saturating_mul(2).saturating_add(1);
        usize::try_from(all).unwrap_or(usize::MAX)
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quota {
    Resources,
    Contexts,
    MappedBytes,
    HostBytes,
    ImageBytes,
    RenderedBytes,
    Fds,
    BackingEntries,
}

const QUOTAS: usize = 8;

/// A limit that has been reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("limit reached: {quota:?}, {used} of {limit} in use, {wanted} more wanted")]
pub(crate) struct LimitReached {
    pub(crate) quota: Quota,
    pub(crate) used: u64,
    pub(crate) limit: u64,
    pub(crate) wanted: u64,
}

/// How much of each quota is taken.
#[derive(Debug)]
pub(crate) struct Ledger {
    limits: [u64; QUOTAS],
    used: [Cell<u64>; QUOTAS],
}

impl Ledger {
    pub(crate) fn new(limits: &Limits) -> Rc<Self> {
        let Limits { resources, contexts, mapped_bytes, host_bytes, .. } = *limits;
        let Limits { image_bytes, rendered_bytes, fds, backing_entries, .. } = *limits;
        Rc::new(Self {
            limits: [resources, contexts, mapped_bytes, host_bytes, image_bytes, rendered_bytes, fds, backing_entries],
            used: Default::default(),
        })
    }

    /// Takes `amount` of a quota for as long as the returned charge lives.
    ///
    /// # Errors
    /// [`LimitReached`] where less than that is left; nothing is taken then.
    pub(crate) fn charge(self: &Rc<Self>, quota: Quota, amount: u64) -> Result<Charge, LimitReached> {
        let (used, limit) = (self.used(quota), self.limits[quota as usize]);
        match used.checked_add(amount) {
            Some(sum) if sum <= limit => {
                self.used[quota as usize].set(sum);
                Ok(Charge { ledger: Rc::clone(self), quota, amount })
            }
            _ => Err(LimitReached { quota, used, limit, wanted: amount }),
        }
    }

    pub(crate) fn used(&self, quota: Quota) -> u64 {
        self.used[quota as usize].get()
    }
}

/// A part of a quota, given back on drop.
#[derive(Debug)]
#[must_use = "a charge is given back when it is dropped"]
pub(crate) struct Charge {
    ledger: Rc<Ledger>,
    quota: Quota,
    amount: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let used = &self.ledger.used[self.quota as usize];
        used.set(used.get() - self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_never_passed_and_a_dropped_charge_never_stays_booked() {
        let ledger = Ledger::new(&Limits { fds: 2, ..Limits::default() });
        let first = ledger.charge(Quota::Fds, 1).expect("room");
        let second = ledger.charge(Quota::Fds, 1).expect("room");
        let refused = ledger.charge(Quota::Fds, 1).expect_err("full");
        assert_eq!((refused.used, refused.limit), (2, 2));
        assert!(ledger.charge(Quota::Fds, u64::MAX).is_err());
        drop(first);
        assert_eq!(ledger.used(Quota::Fds), 1);
        drop(second);
        assert_eq!(ledger.used(Quota::Fds), 0);
    }
}
