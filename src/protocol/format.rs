//! Pixel formats (virtio 1.4, section 5.7.6.8, `enum virtio_gpu_formats`): four bytes a pixel, in eight orders.
//! A name spells the bytes as they lie in memory.

/// Bytes of a pixel, in every format.
pub const PIXEL: u32 = 4;

/// A cursor's sides in pixels (virtio 1.4, section 5.7.6.8).
pub const CURSOR_SIDE: u32 = 64;

/// A pixel format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Format {
    /// Blue first, then green, red, alpha.
    B8G8R8A8 = 1,
    /// Blue, green, red, nothing.
    B8G8R8X8 = 2,
    /// Alpha, red, green, blue.
    A8R8G8B8 = 3,
    /// Nothing, red, green, blue.
    X8R8G8B8 = 4,
    /// Red, green, blue, alpha.
    R8G8B8A8 = 67,
    /// Nothing, blue, green, red.
    X8B8G8R8 = 68,
    /// Alpha, blue, green, red.
    A8B8G8R8 = 121,
    /// Red, green, blue, nothing.
    R8G8B8X8 = 134,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::B8G8R8A8,
        Self::B8G8R8X8,
        Self::A8R8G8B8,
        Self::X8R8G8B8,
        Self::R8G8B8A8,
        Self::X8B8G8R8,
        Self::A8B8G8R8,
        Self::R8G8B8X8,
    ];

    /// The format that a request names.
    #[must_use]
    pub fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| *format as u32 == number)
    }

    /// Its number in requests.
    #[must_use]
    pub fn wire(self) -> u32 {
        self as u32
    }

    /// The kernel's name for it (`drm_fourcc.h`), whose letters go from the highest byte of a little-endian word down.
    #[must_use]
    pub fn fourcc(self) -> u32 {
        u32::from_le_bytes(*match self {
            Self::B8G8R8A8 => b"AR24",
            Self::B8G8R8X8 => b"XR24",
            Self::A8R8G8B8 => b"BA24",
            Self::X8R8G8B8 => b"BX24",
            Self::R8G8B8A8 => b"AB24",
            Self::X8B8G8R8 => b"RX24",
            Self::A8B8G8R8 => b"RA24",
            Self::R8G8B8X8 => b"XB24",
        })
    }

    /// Whether a pixel says how opaque it is.
    #[must_use]
    pub fn has_alpha(self) -> bool {
        matches!(self, Self::B8G8R8A8 | Self::A8R8G8B8 | Self::R8G8B8A8 | Self::A8B8G8R8)
    }

    /// The format whose fourth byte is alpha, where it was nothing.
    #[must_use]
    pub fn with_alpha(self) -> Self {
        match self {
            Self::B8G8R8X8 => Self::B8G8R8A8,
            Self::X8R8G8B8 => Self::A8R8G8B8,
            Self::X8B8G8R8 => Self::A8B8G8R8,
            Self::R8G8B8X8 => Self::R8G8B8A8,
            with_alpha => with_alpha,
        }
    }

    /// A pixel's red, green, blue and alpha; one without alpha is opaque.
    #[must_use]
    pub fn rgba(self, pixel: [u8; 4]) -> [u8; 4] {
        let [a, b, c, d] = pixel;
        match self {
            Self::B8G8R8A8 => [c, b, a, d],
            Self::B8G8R8X8 => [c, b, a, 0xff],
            Self::A8R8G8B8 => [b, c, d, a],
            Self::X8R8G8B8 => [b, c, d, 0xff],
            Self::R8G8B8A8 => [a, b, c, d],
            Self::X8B8G8R8 => [d, c, b, 0xff],
            Self::A8B8G8R8 => [d, c, b, a],
            Self::R8G8B8X8 => [a, b, c, 0xff],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_never_mixes_up_its_channels() {
        for format in Format::ALL {
            let name = format!("{format:?}");
            let order: Vec<char> = name.chars().filter(char::is_ascii_alphabetic).collect();
            let pixel = [10, 20, 30, 40];
            let of = |channel| order.iter().position(|letter| *letter == channel).map_or(0xff, |at| pixel[at]);
            assert_eq!(format.rgba(pixel), ['R', 'G', 'B', 'A'].map(of), "{name}");
            assert_eq!(format.has_alpha(), order.contains(&'A'), "{name}");
            assert_eq!(format!("{:?}", format.with_alpha()), name.replace('X', "A"));
            assert_eq!(Format::from_wire(format.wire()), Some(format));
            let little_endian: String = order.iter().rev().collect();
            let fourcc = match little_endian.as_str() {
                "ARGB" => b"AR24",
                "XRGB" => b"XR24",
                "ABGR" => b"AB24",
                "XBGR" => b"XB24",
                "RGBA" => b"RA24",
                "RGBX" => b"RX24",
                "BGRA" => b"BA24",
                _ => b"BX24",
            };
            assert_eq!(format.fourcc(), u32::from_le_bytes(*fourcc), "{name}");
        }
        for number in [0, 5, 66, 69, 120, 122, 133, 135, u32::MAX] {
            assert_eq!(Format::from_wire(number), None);
        }
    }
}
