//! Resources with rows of pixels: an image in host memory, which the guest fills from its own by transfers, and what a
//! renderer draws.

use smallvec::SmallVec;

use super::Backing;
use crate::buffer::HeldBuffer;
use crate::limits::Charge;
use crate::protocol::format::{Format, PIXEL};
use crate::seams::Plane;
use crate::sys::pages::Pages;

/// An image, its rows one after the other.
pub(crate) struct Image {
    pub(crate) format: Format,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) pixels: Pages,
    pub(crate) backing: Option<Backing>,
    /// For the pixels; it outlives them.
    pub(crate) charge: Charge,
}

impl Image {
    /// Bytes that an image takes.
    pub(crate) fn size(width: u32, height: u32) -> u64 {
        u64::from(width) * u64::from(height) * u64::from(PIXEL)
    }

    /// Bytes from row to row.
    pub(crate) fn stride(&self) -> u64 {
        u64::from(self.width) * u64::from(PIXEL)
    }
}

/// Something that the renderer has made and alone knows, and the guest memory that it copies from and to.
pub(crate) struct Rendered {
    pub(crate) id: u32,
    /// The renderer's number of a format; those that can be shown are the wire's.
    pub(crate) format: u32,
    /// 0 for what has no sides.
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Bytes that must stand behind it: a shadowed blob's size.
    pub(crate) least: u64,
    pub(crate) backing: Option<Backing>,
    /// The dma-buf that its picture lies in, where the renderer has one; unknown until a scanout shows it.
    pub(crate) picture: Option<Option<ExportedPicture>>,
}

/// A picture of the renderer's in a dma-buf of its own.
pub(crate) struct ExportedPicture {
    pub(crate) buffer: HeldBuffer,
    pub(crate) planes: SmallVec<[Plane; 4]>,
    pub(crate) modifier: Option<u64>,
}
