//! Images that a guest asks the host to lay out and to allocate: linear ones, in shared memory.

use crate::protocol::cross_domain::ImageRequirements;
use crate::protocol::wire::MAP_CACHE_CACHED;

/// Longest side of an image in pixels, as of any picture.
const LONGEST_SIDE: u32 = 32_768;

/// What rows begin at a multiple of, in bytes: what GPUs want of a linear image.
const ROW: u32 = 64;

/// The one flag that shared memory cannot keep: no CPU may see the image (rutabaga_gfx's `USE_PROTECTED`).
const PROTECTED: u32 = 1 << 8;

/// A plane: bytes of a sample, and by how much it is smaller than the image in each direction.
type Plane = (u32, [u32; 2]);

const fn plane(bytes: u32) -> Plane {
    (bytes, [1, 1])
}

const fn halved(bytes: u32) -> Plane {
    (bytes, [2, 2])
}

/// Formats of `drm_fourcc.h`, and the planes of each.
const FORMATS: &[(&[&[u8; 4]], &[Plane])] = &[
    (&[b"R8  "], &[plane(1)]),
    (&[b"GR88", b"RG16", b"BG16", b"YUYV", b"YVYU", b"UYVY", b"VYUY"], &[plane(2)]),
    (&[b"RG24", b"BG24"], &[plane(3)]),
    (&[b"XR24", b"AR24", b"XB24", b"AB24", b"RX24", b"RA24", b"BX24", b"BA24"], &[plane(4)]),
    (&[b"XR30", b"AR30", b"XB30", b"AB30"], &[plane(4)]),
    (&[b"XR4H", b"AR4H", b"XB4H", b"AB4H"], &[plane(8)]),
    (&[b"NV12", b"NV21"], &[plane(1), halved(2)]),
    (&[b"P010"], &[plane(2), halved(4)]),
    (&[b"YU12", b"YV12"], &[plane(1), halved(1), halved(1)]),
];

/// Why there can be no such image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("{width}x{height} is no size, or more than {LONGEST_SIDE} on a side")]
    Size { width: u32, height: u32 },
    #[error("format {fourcc:#x} is not served")]
    Format { fourcc: u32 },
    #[error("an image that no CPU may see cannot lie in shared memory")]
    Protected,
}

/// How an image lies in its blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    strides: [u32; 4],
    offsets: [u32; 4],
    /// Of the blob, in bytes.
    pub(crate) size: u64,
}

impl Layout {
    /// Lays an image out in a blob whose size is a multiple of `alignment`.
    ///
    /// # Errors
    /// No such format, a size that is none, or what shared memory is not.
    pub(crate) fn new(width: u32, height: u32, fourcc: u32, flags: u32, alignment: u64) -> Result<Self, ImageError> {
        let sides = 1..=LONGEST_SIDE;
        if !sides.contains(&width) || !sides.contains(&height) {
            return Err(ImageError::Size { width, height });
        }
        if flags & PROTECTED != 0 {
            return Err(ImageError::Protected);
        }
        let code = fourcc.to_le_bytes();
        let format = FORMATS.iter().find(|(codes, _)| codes.contains(&&code));
        let (_, planes) = format.ok_or(ImageError::Format { fourcc })?;
        let mut layout = Self { strides: [0; 4], offsets: [0; 4], size: 0 };
        for (index, (bytes, [across, down])) in planes.iter().enumerate() {
            // The longest side bounds it below 2^19.
            let stride = (width.div_ceil(*across) * bytes).next_multiple_of(ROW);
            let too_large = ImageError::Size { width, height };
            (layout.strides[index], layout.offsets[index]) =
                (stride, u32::try_from(layout.size).map_err(|_| too_large)?);
            layout.size += u64::from(stride) * u64::from(height.div_ceil(*down));
        }
        layout.size = layout.size.next_multiple_of(alignment);
        Ok(layout)
    }

    /// What the guest is told of it.
    pub(crate) fn requirements(&self, blob_id: u32) -> ImageRequirements {
        ImageRequirements {
            strides: self.strides.map(Into::into),
            offsets: self.offsets.map(Into::into),
            modifier: 0.into(),
            size: self.size.into(),
            blob_id: blob_id.into(),
            map_info: MAP_CACHE_CACHED.into(),
            memory_idx: (-1).into(),
            physical_device_idx: (-1).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn layout(width: u32, height: u32, code: &[u8; 4]) -> Result<Layout, ImageError> {
        Layout::new(width, height, u32::from_le_bytes(*code), 0, PAGE)
    }

    #[test]
    fn planes_never_overlap_nor_lie_outside_the_blob() {
        for (codes, planes) in FORMATS {
            for (width, height) in [(1, 1), (17, 33), (1920, 1080), (LONGEST_SIDE, 2)] {
                let layout = layout(width, height, codes[0]).expect("a layout");
                let mut end = 0;
                for (index, (bytes, [across, down])) in planes.iter().enumerate() {
                    assert!(layout.strides[index] >= width.div_ceil(*across) * bytes);
                    assert_eq!((layout.strides[index] % ROW, layout.offsets[index]), (0, end));
                    end += layout.strides[index] * height.div_ceil(*down);
                }
                let end = u64::from(end);
                assert!(layout.size >= end && layout.size < end + PAGE && layout.size.is_multiple_of(PAGE));
            }
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for (width, height) in [(0, 1), (1, 0), (LONGEST_SIDE + 1, 1), (u32::MAX, u32::MAX)] {
            assert_eq!(layout(width, height, b"XR24"), Err(ImageError::Size { width, height }));
        }
        assert!(matches!(layout(1, 1, b"ABCD"), Err(ImageError::Format { .. })));
        assert_eq!(Layout::new(1, 1, u32::from_le_bytes(*b"XR24"), PROTECTED, PAGE), Err(ImageError::Protected));
    }
}
