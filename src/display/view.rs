//! How the pixels of a picture lie in a resource, checked once so that no later arithmetic can leave it.

use std::ops::Range;

use smallvec::SmallVec;

use crate::protocol::format::{Format, PIXEL};
use crate::protocol::wire::{Rect, SetScanoutBlob};
use crate::seams::{Area, Plane};

/// Most pixels of a side: a row is then 128 KiB at most.
pub(crate) const LONGEST_SIDE: u32 = 32_768;

/// Why a guest's description of a picture is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ViewError {
    #[error("format {format} is none")]
    Format { format: u32 },
    #[error("a picture of {width}x{height}, of sides from 1 to {LONGEST_SIDE}")]
    Size { width: u32, height: u32 },
    #[error("{width}x{height}+{x}+{y} does not lie in {of_width}x{of_height}", width = .area.width, height = .area.height, x = .area.x, y = .area.y)]
    Outside { area: Area, of_width: u32, of_height: u32 },
    #[error("a row of {row} bytes, and {stride} from row to row")]
    Stride { row: u64, stride: u64 },
    #[error("plane {plane} ends at {end:#x} of a blob of {size:#x} bytes")]
    Plane { plane: usize, end: u64, size: u64 },
}

/// A picture in a resource, and the part of it that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) format: Format,
    /// Width of the whole picture.
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) shown: Area,
    planes: [Plane; 4],
}

/// A format and the sides of a picture, as a guest gives them.
///
/// # Errors
/// An unknown format, a side of 0 or beyond [`LONGEST_SIDE`].
pub(crate) fn checked(format: u32, width: u32, height: u32) -> Result<Format, ViewError> {
    let format = Format::from_wire(format).ok_or(ViewError::Format { format })?;
    let sides = 1..=LONGEST_SIDE;
    if sides.contains(&width) && sides.contains(&height) { Ok(format) } else { Err(ViewError::Size { width, height }) }
}

impl View {
    /// All rows one after the other, and nothing else. `format` is the wire's number.
    ///
    /// # Errors
    /// [`ViewError`].
    pub(crate) fn packed(format: u32, width: u32, height: u32, shown: Area) -> Result<Self, ViewError> {
        let format = checked(format, width, height)?;
        inside(shown, width, height)?;
        let mut planes = [Plane { offset: 0, stride: 0 }; 4];
        planes[0].stride = width * PIXEL;
        Ok(Self { format, width, height, shown, planes })
    }

    /// As SET_SCANOUT_BLOB describes a blob of `size` bytes.
    ///
    /// # Errors
    /// [`ViewError`].
    pub(crate) fn of_blob(set: &SetScanoutBlob, size: u64) -> Result<Self, ViewError> {
        let (width, height) = (set.width.get(), set.height.get());
        let format = checked(set.format.get(), width, height)?;
        let shown = area(&set.rect);
        inside(shown, width, height)?;
        let plane = |index: usize| Plane { offset: set.offsets[index].get(), stride: set.strides[index].get() };
        let view = Self { format, width, height, shown, planes: [0, 1, 2, 3].map(plane) };
        let (row, stride) = (u64::from(width * PIXEL), view.stride());
        if stride < row {
            return Err(ViewError::Stride { row, stride });
        }
        for (index, plane) in view.planes.iter().enumerate() {
            // What a further plane holds is not known from the format: it has to begin in the blob, at least.
            let end = match index {
                0 => u64::from(plane.offset) + stride * u64::from(height - 1) + row,
                _ if plane.stride == 0 && plane.offset == 0 => 0,
                _ => u64::from(plane.offset) + 1,
            };
            if end > size {
                return Err(ViewError::Plane { plane: index, end, size });
            }
        }
        Ok(view)
    }

    /// Bytes from row to row.
    pub(crate) fn stride(&self) -> u64 {
        u64::from(self.planes[0].stride)
    }

    /// Its planes, those that are there.
    pub(crate) fn planes(&self) -> SmallVec<[Plane; 4]> {
        let is_there = |(index, plane): &(usize, &Plane)| *index == 0 || plane.stride != 0 || plane.offset != 0;
        self.planes.iter().enumerate().filter(is_there).map(|(_, plane)| *plane).collect()
    }

    /// Whether a CPU can make something of its bytes: those of several planes are compressed in some exporter's way.
    pub(crate) fn is_plain(&self) -> bool {
        self.planes().len() == 1
    }

    /// The bytes from the first pixel of an area of the picture to its last.
    pub(crate) fn bytes_of(&self, area: Area) -> Range<u64> {
        let first = u64::from(self.planes[0].offset) + self.stride() * u64::from(area.y) + u64::from(area.x * PIXEL);
        let rows = u64::from(area.height.saturating_sub(1));
        first..first + self.stride() * rows + u64::from(area.width * PIXEL)
    }
}

/// A rectangle of the wire.
pub(crate) fn area(rect: &Rect) -> Area {
    Area { x: rect.x.get(), y: rect.y.get(), width: rect.width.get(), height: rect.height.get() }
}

/// Whether an area of at least one pixel lies in a picture.
pub(crate) fn is_inside(area: Area, width: u32, height: u32) -> bool {
    let fits = |start: u32, len: u32, all: u32| len > 0 && start.checked_add(len).is_some_and(|end| end <= all);
    fits(area.x, area.width, width) && fits(area.y, area.height, height)
}

/// # Errors
/// [`ViewError::Outside`] where it does not.
pub(crate) fn inside(area: Area, width: u32, height: u32) -> Result<(), ViewError> {
    if is_inside(area, width, height) {
        Ok(())
    } else {
        Err(ViewError::Outside { area, of_width: width, of_height: height })
    }
}

/// What two areas have in common.
pub(crate) fn intersection(a: Area, b: Area) -> Option<Area> {
    let cut = |a: u32, a_len: u32, b: u32, b_len: u32| {
        let (start, end) = (a.max(b), a.saturating_add(a_len).min(b.saturating_add(b_len)));
        (start < end).then(|| (start, end - start))
    };
    let (x, width) = cut(a.x, a.width, b.x, b.width)?;
    let (y, height) = cut(a.y, a.height, b.y, b.height)?;
    Some(Area { x, y, width, height })
}
