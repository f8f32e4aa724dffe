//! What a guest's resource ids mean: blobs, their backing, and the state of their mapping.
//! Keys carry a generation, so that a late completion never touches an id that has been given away again.

mod backing;
mod blob;
mod table;

use std::rc::Rc;

use slotmap::Key;
use smallvec::SmallVec;

pub(crate) use backing::{Backing, BackingError, GuestRam};
pub(crate) use blob::{Blob, GuestBlob, HostBlob, MapState, WrongState};
pub(crate) use table::Table;

use crate::buffer::HeldBuffer;
use crate::limits::Charge;
use crate::seams::{LocalFuture, Work};
use crate::window::Cleared;

slotmap::new_key_type! {
    /// Names one life of a resource.
    pub(crate) struct ResourceKey;
}

/// A resource of the guest. `C` names a context.
pub(crate) struct Resource<C: Key> {
    pub(crate) blob: Blob,
    /// The contexts that it is attached to.
    pub(crate) contexts: SmallVec<[C; 2]>,
    pub(crate) charge: Charge,
}

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
        let Blob::Host(mut blob) = self.blob else { return Work::Done(Retired::default()) };
        let charge = self.charge;
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
