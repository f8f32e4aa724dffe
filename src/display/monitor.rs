//! What a display says of itself: the shape that a VMM fills in, and from which EDID and display info are made.

use std::{fmt, iter};

use thiserror::Error;

use super::edid;

/// Widest and highest mode in pixels: twice 8K and a little more, beyond what guests' drivers take. With the blanking of any
/// refresh it fits the 16 bits that DisplayID and Linux count in.
const MAX_SIZE: u32 = 16384;
/// Fastest mode in Hz: the vertical blanking takes 460 µs of every frame, nearly half of it at this refresh.
const MAX_REFRESH: u32 = 1000;

/// How pictures of the default list are sized, the largest first.
const DEFAULT_SIZES: [(u32, u32); 22] = [
    (7680, 4320),
    (5120, 2880),
    (5120, 1440),
    (3840, 2160),
    (3840, 1600),
    (3440, 1440),
    (2560, 1600),
    (2560, 1440),
    (2560, 1080),
    (1920, 1200),
    (1920, 1080),
    (1680, 1050),
    (1600, 1200),
    (1600, 900),
    (1440, 900),
    (1366, 768),
    (1280, 1024),
    (1280, 800),
    (1280, 720),
    (1024, 768),
    (800, 600),
    (640, 480),
];

/// A mode that a display offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Pixels of a line, 1 to 16384.
    pub width: u32,
    /// Lines, 1 to 16384.
    pub height: u32,
    /// Frames a second, 1 to 1000 Hz.
    pub refresh: u32,
}

impl Mode {
    /// A mode of this size at 60 Hz.
    #[must_use]
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height, refresh: 60 }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { width, height, refresh } = self;
        write!(f, "{width}x{height}@{refresh}")
    }
}

/// What a display tells the guest about itself. [`Monitor::new`] makes one of a size; its fields may then be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    /// The name that the guest shows: of this, the first 13 characters, where any but printable ASCII becomes `?`. A
    /// blank one reads `virtio-gpu`, which is the default.
    pub name: String,
    /// The serial number, for a guest to tell monitors apart that are alike otherwise; 0, the default, says there is none.
    pub serial: u32,
    /// The mode that the guest is to use, and the display's size in `GET_DISPLAY_INFO`.
    pub preferred: Mode,
    /// What else the guest may choose, the most welcome first: modes that come twice, or are the preferred one, count once.
    /// By default the usual sizes from 640x480 to 7680x4320 at 60 Hz, also those larger than the preferred one: a display
    /// scales what the guest then shows. An EDID holds 32 that need a description of their own, and besides up to two
    /// that fit its base block and those that this names in a word: the usual sizes up to 1920x1200.
    pub modes: Vec<Mode>,
    /// Where on the guest's desktop its upper left corner is, in pixels: part of `GET_DISPLAY_INFO`, not of the EDID.
    pub position: (u32, u32),
    /// Width and height of the screen in millimetres. The EDID leaves the size open, as for a projector, where one is below
    /// 5 mm or above 2554 mm. `None` takes the preferred mode's size at 96 pixels an inch, open where that is below 10 cm.
    pub size_mm: Option<(u32, u32)>,
    /// An EDID that is told as it is, in place of one made of the other fields, for who shows the guest somebody else's monitor:
    /// one to eight blocks of 128 bytes, each with its checksum. `GET_DISPLAY_INFO` is answered from the fields above.
    pub edid: Option<Vec<u8>>,
}

/// Why a [`Monitor`] cannot be described to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// A mode without pixels, or with too many.
    #[error("a mode of {width}x{height} pixels: 1 to {MAX_SIZE} each way can be told")]
    Size {
        /// The mode's width.
        width: u32,
        /// The mode's height.
        height: u32,
    },
    /// A mode without frames, or with too many.
    #[error("a mode of {refresh} Hz: 1 to {MAX_REFRESH} can be told")]
    Refresh {
        /// The mode's frames a second.
        refresh: u32,
    },
    /// A mode of a pixel clock beyond the 16.8 GHz that DisplayID can tell.
    #[error("{mode} takes a pixel clock of {clock_khz} kHz: {} can be told", edid::MAX_CLOCK_KHZ)]
    PixelClock {
        /// The mode.
        mode: Mode,
        /// Its pixel clock with reduced blanking.
        clock_khz: u64,
    },
    /// More modes than 1024 bytes of EDID hold.
    #[error("{modes} modes besides the preferred one want a description each: an EDID holds {most}")]
    TooManyModes {
        /// Modes in need of one.
        modes: usize,
        /// As many as there may be.
        most: usize,
    },
    /// An EDID that is none.
    #[error("the EDID of {len} bytes {fault}")]
    Edid {
        /// Its length in bytes.
        len: usize,
        /// What is wrong with it.
        fault: &'static str,
    },
}

impl Monitor {
    /// A monitor of this size in pixels at 60 Hz, at the desktop's origin, with the default's name, modes and size.
    #[must_use]
    pub fn new(width: u32, height: u32) -> Self {
        Self {
            name: edid::DEFAULT_NAME.to_owned(),
            serial: 0,
            preferred: Mode::new(width, height),
            modes: DEFAULT_SIZES.map(|(width, height)| Mode::new(width, height)).to_vec(),
            position: (0, 0),
            size_mm: None,
            edid: None,
        }
    }

    /// Whether an EDID can say all this, and one that is given is one.
    pub(crate) fn check(&self) -> Result<(), MonitorError> {
        for &mode in iter::once(&self.preferred).chain(&self.modes) {
            let Mode { width, height, refresh } = mode;
            if !(1..=MAX_SIZE).contains(&width) || !(1..=MAX_SIZE).contains(&height) {
                return Err(MonitorError::Size { width, height });
            }
            if !(1..=MAX_REFRESH).contains(&refresh) {
                return Err(MonitorError::Refresh { refresh });
            }
            let clock_khz = edid::clock_khz(mode);
            if clock_khz > edid::MAX_CLOCK_KHZ {
                return Err(MonitorError::PixelClock { mode, clock_khz });
            }
        }
        if let Some(edid) = &self.edid {
            return edid::check(edid).map_err(|fault| MonitorError::Edid { len: edid.len(), fault });
        }
        let modes = edid::described(self);
        let most = edid::MAX_DESCRIBED;
        if modes > most { Err(MonitorError::TooManyModes { modes, most }) } else { Ok(()) }
    }
}
