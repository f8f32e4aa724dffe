//! Blobs: guest memory, or memory of the host's with the state machine of its mapping.
//! A lease on the window exists only inside [`MapState::Mapped`] or inside the future that is placing or clearing it.

use std::rc::Rc;

use super::Backing;
use crate::buffer::HeldBuffer;
use crate::seams::Caching;
use crate::window::Placed;

/// A blob in guest memory, with or without the list that says where.
pub(crate) struct GuestBlob {
    pub(crate) size: u64,
    pub(crate) backing: Option<Backing>,
}

impl GuestBlob {
    /// How much of it is guest memory that the device may write.
    pub(crate) fn len(&self) -> u64 {
        self.backing.as_ref().map_or(0, |backing| backing.len().min(self.size))
    }
}

/// A blob of host memory, as the window knows it.
pub(crate) struct Mappable {
    pub(crate) size: u64,
    pub(crate) mappable: bool,
    pub(crate) caching: Caching,
    pub(crate) mapping: MapState,
}

/// A blob that is a host buffer.
pub(crate) struct HostBlob {
    pub(crate) window: Mappable,
    /// The renderer knows it too.
    pub(crate) rendered: bool,
    /// The one descriptor, shared with nothing but work under way on this blob.
    pub(crate) buffer: Rc<HeldBuffer>,
}

/// Where a host blob's mapping stands.
pub(crate) enum MapState {
    Unmapped,
    /// A future is placing it and owns the lease.
    Mapping,
    Mapped(Placed),
    /// A future is clearing it and owns the lease.
    Unmapping,
    /// It could not be taken out of the window, and is never mapped again.
    Quarantined,
}

/// A step that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the blob is {state}")]
pub(crate) struct WrongState {
    pub(crate) state: &'static str,
}

impl MapState {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Unmapped => "unmapped",
            Self::Mapping => "being mapped",
            Self::Mapped(_) => "mapped",
            Self::Unmapping => "being unmapped",
            Self::Quarantined => "quarantined",
        }
    }

    /// Unmapped → Mapping.
    ///
    /// # Errors
    /// Any other state.
    pub(crate) fn begin_map(&mut self) -> Result<(), WrongState> {
        match self {
            Self::Unmapped => {
                *self = Self::Mapping;
                Ok(())
            }
            other => Err(WrongState { state: other.name() }),
        }
    }

    /// Mapping → Mapped, or back to Unmapped.
    pub(crate) fn end_map(&mut self, placed: Option<Placed>) {
        *self = placed.map_or(Self::Unmapped, Self::Mapped);
    }

    /// Mapped → Unmapping; the placed range goes to the caller.
    ///
    /// # Errors
    /// Any other state.
    pub(crate) fn begin_unmap(&mut self) -> Result<Placed, WrongState> {
        match std::mem::replace(self, Self::Unmapping) {
            Self::Mapped(placed) => Ok(placed),
            other => {
                let state = other.name();
                *self = other;
                Err(WrongState { state })
            }
        }
    }

    /// Unmapping → Unmapped, or Quarantined where the range could not be taken back.
    pub(crate) fn end_unmap(&mut self, filled: bool) {
        *self = if filled { Self::Unmapped } else { Self::Quarantined };
    }
}
