//! What a guest's resource ids mean: images, blobs, their backing, and the state of their mapping.
//! Keys carry a generation, so that a late completion never touches an id that has been given away again.

mod backing;
mod blob;
mod image;
mod table;

use std::rc::Rc;

use slotmap::Key;
use smallvec::SmallVec;

pub(crate) use backing::{Backing, BackingError, GuestRam, Lease};
pub use backing::{GuestBacking, NotBacked};
pub(crate) use blob::{GuestBlob, HostBlob, MapState, WrongState};
pub(crate) use image::{Image, Rendered};
pub(crate) use table::Table;

use crate::buffer::HeldBuffer;
use crate::limits::Charge;
use crate::seams::{LocalFuture, Work};
use crate::sys::ring;
use crate::window::Cleared;

slotmap::new_key_type! {
    /// Names one life of a resource.
    pub(crate) struct ResourceKey;
}

/// What a resource is made of.
pub(crate) enum Memory {
    /// An image of the host's, for 2D.
    Image(Image),
    /// A blob in guest memory.
    Guest(GuestBlob),
    /// A blob that is a host buffer.
    Host(HostBlob),
    /// Something that the renderer alone knows.
    Rendered(Rendered),
}

impl Memory {
    /// Whether the renderer has made it.
    pub(crate) fn is_rendered(&self) -> bool {
        matches!(self, Self::Rendered(_) | Self::Host(HostBlob { rendered: true, .. }))
    }

    /// The guest memory behind it, to attach and to detach; `None` where it can have none.
    pub(crate) fn backing_mut(&mut self) -> Option<&mut Option<Backing>> {
        match self {
            Self::Image(Image { backing, .. })
            | Self::Guest(GuestBlob { backing, .. })
            | Self::Rendered(Rendered { backing, .. }) => Some(backing),
            Self::Host(_) => None,
        }
    }
}

/// A resource of the guest. `C` names a context.
pub(crate) struct Resource<C: Key> {
    pub(crate) memory: Memory,
    /// The contexts that it is attached to.
    pub(crate) contexts: SmallVec<[C; 2]>,
    /// The name that it is exported under.
    pub(crate) uuid: Option<[u8; 16]>,
    pub(crate) charge: Charge,
}

/// From this size on pages are freed by the ring's workers: that takes the kernel about 0.2 ms a MiB, and a turn may end
/// many images.
const FREE_ELSEWHERE: usize = 64 << 10;

/// What became of a resource that was given up.
#[derive(Default)]
pub(crate) struct Retired {
    /// Its range of the window could not be taken back; the rest, where there is one, may still do it.
    pub(crate) quarantined: bool,
    pub(crate) rest: Option<LocalFuture<()>>,
}

impl<C: Key> Resource<C> {
    /// Gives the resource up: out of the window first, and the descriptor closed last.
    pub(crate) fn retire(self) -> Work<Retired> {
        let charge = self.charge;
        let mut blob = match self.memory {
            Memory::Host(blob) => blob,
            Memory::Image(image) => return image.free(charge),
            Memory::Guest(_) | Memory::Rendered(_) => return Work::Done(Retired::default()),
        };
        let Ok(placed) = blob.mapping.begin_unmap() else { return blob.close(charge, Cleared::Filled) };
        match placed.clear() {
            Work::Done(cleared) => blob.close(charge, cleared),
            Work::Later(clearing) => Work::later(async move {
                let cleared = clearing.await;
                blob.close(charge, cleared).result().await
            }),
        }
    }
}

impl Image {
    /// Frees the pixels, where there are many on a worker of the ring.
    fn free(self, charge: Charge) -> Work<Retired> {
        if self.pixels.len() < FREE_ELSEWHERE {
            return Work::Done(Retired::default());
        }
        let Self { pixels, charge: bytes, .. } = self;
        let freeing = ring::free(pixels);
        Work::later(async move {
            // Memory that cannot be freed early is freed when it is unmapped.
            let _ = freeing.await;
            drop((bytes, charge));
            Retired::default()
        })
    }
}

impl HostBlob {
    /// Closes the descriptor, unless whoever is stuck with the mapping still needs it.
    fn close(self, charge: Charge, cleared: Cleared) -> Work<Retired> {
        let (quarantined, rest) = match cleared {
            Cleared::Filled => (false, None),
            Cleared::Quarantined(rest) => (true, rest),
        };
        let retired = Retired { quarantined, rest };
        match Rc::try_unwrap(self.buffer).ok().and_then(HeldBuffer::close) {
            None => Work::Done(retired),
            Some(closing) => Work::later(async move {
                closing.await;
                drop(charge);
                retired
            }),
        }
    }
}
