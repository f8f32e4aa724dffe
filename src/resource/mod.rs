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
pub use backing::{GuestBacking, HostPiece, NotBacked, PinnedBacking};
pub(crate) use blob::{GuestBlob, HostBlob, MapState, Mappable, WrongState};
pub(crate) use image::{ExportedPicture, Image, Rendered};
pub(crate) use table::Table;

use crate::buffer::HeldBuffer;
use crate::limits::Charge;
use crate::seams::{LocalFuture, Work};
use crate::sys::ring;
use crate::window::{Cleared, Placed};

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
    /// A blob whose memory the renderer alone can reach, and maps by itself.
    Own(Mappable),
    /// Something that the renderer alone knows.
    Rendered(Rendered),
}

impl Memory {
    /// Whether the renderer has made it.
    pub(crate) fn is_rendered(&self) -> bool {
        matches!(self, Self::Rendered(_) | Self::Own(_) | Self::Host(HostBlob { rendered: true, .. }))
    }

    /// What the window knows of it; `None` where it is no blob of host memory.
    pub(crate) fn window_mut(&mut self) -> Option<&mut Mappable> {
        match self {
            Self::Host(HostBlob { window, .. }) | Self::Own(window) => Some(window),
            Self::Image(_) | Self::Guest(_) | Self::Rendered(_) => None,
        }
    }

    /// The guest memory behind it, to attach and to detach; `None` where it can have none.
    pub(crate) fn backing_mut(&mut self) -> Option<&mut Option<Backing>> {
        match self {
            Self::Image(Image { backing, .. })
            | Self::Guest(GuestBlob { backing, .. })
            | Self::Rendered(Rendered { backing, .. }) => Some(backing),
            Self::Host(_) | Self::Own(_) => None,
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
    /// For what the renderer keeps of it: bytes, descriptors.
    pub(crate) rendering: Option<[Charge; 2]>,
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
        let mut memory = match self.memory {
            Memory::Image(image) => return image.free(charge),
            memory => memory,
        };
        let placed = memory.window_mut().and_then(|window| window.mapping.begin_unmap().ok());
        let buffer = match memory {
            Memory::Host(blob) => Some(blob.buffer),
            Memory::Rendered(Rendered { picture: Some(Some(picture)), .. }) => Some(Rc::new(picture.buffer)),
            _ => None,
        };
        match placed.map_or(Work::Done(Cleared::Filled), Placed::clear) {
            Work::Done(cleared) => close(buffer, charge, cleared),
            Work::Later(clearing) => Work::later(async move {
                let cleared = clearing.await;
                close(buffer, charge, cleared).result().await
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

/// Closes a blob's descriptor, unless whoever is stuck with the mapping still needs it.
fn close(buffer: Option<Rc<HeldBuffer>>, charge: Charge, cleared: Cleared) -> Work<Retired> {
    let (quarantined, rest) = match cleared {
        Cleared::Filled => (false, None),
        Cleared::Quarantined(rest) => (true, rest),
    };
    let retired = Retired { quarantined, rest };
    match buffer.and_then(|buffer| Rc::try_unwrap(buffer).ok()).and_then(HeldBuffer::close) {
        None => Work::Done(retired),
        Some(closing) => Work::later(async move {
            closing.await;
            drop(charge);
            retired
        }),
    }
}
