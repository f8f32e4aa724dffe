//! The kernel's mode-setting ioctls: what is connected to a card, and pictures on it.
//! Layouts and numbers as in the kernel's `include/uapi/drm/drm_mode.h` and `include/uapi/drm/drm.h`.
#![expect(unsafe_code, reason = "ioctls take pointers")]

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};

use crate::drm::{Mapping, PAGE};
use crate::ioctl::{address, ioctls};

const MODE_PREFERRED: u32 = 1 << 3;
const CONNECTED: u32 = 1;
const FLIP_EVENT: u32 = 1;
const CURSOR_IMAGE: u32 = 1;
const CURSOR_MOVE: u32 = 2;
const XRGB8888: u32 = u32::from_le_bytes(*b"XR24");
const PIXEL: u32 = 4;

ioctls! {
    64 0xa0 read_write GetResources {
        framebuffers: u64, crtcs: u64, connectors: u64, encoders: u64, framebuffer_count: u32, crtc_count: u32,
        connector_count: u32, encoder_count: u32, min_width: u32, max_width: u32, min_height: u32, max_height: u32,
    }
    104 0xa2 read_write SetCrtc {
        connectors: u64, connector_count: u32, crtc: u32, framebuffer: u32, x: u32, y: u32, gamma_size: u32,
        mode_is_valid: u32, mode: Mode,
    }
    80 0xa7 read_write GetConnector {
        encoders: u64, modes: u64, properties: u64, values: u64, mode_count: u32, property_count: u32, encoder_count: u32,
        encoder: u32, connector: u32, kind: u32, kind_number: u32, connection: u32, width_mm: u32, height_mm: u32,
        subpixel: u32, pad: u32,
    }
    4 0xaf read_write RemoveFramebuffer { framebuffer: u32, }
    24 0xb0 read_write PageFlip { crtc: u32, framebuffer: u32, flags: u32, reserved: u32, user_data: u64, }
    24 0xb1 read_write DirtyFramebuffer { framebuffer: u32, flags: u32, color: u32, clip_count: u32, clips: u64, }
    32 0xb2 read_write CreateDumb { height: u32, width: u32, bits: u32, flags: u32, handle: u32, pitch: u32, size: u64, }
    16 0xb3 read_write MapDumb { handle: u32, pad: u32, offset: u64, }
    4 0xb4 read_write DestroyDumb { handle: u32, }
    104 0xb8 read_write AddFramebuffer {
        framebuffer: u32, width: u32, height: u32, format: u32, flags: u32, handles: [u32; 4], pitches: [u32; 4],
        offsets: [u32; 4], modifiers: [u64; 4],
    }
    36 0xbb read_write SetCursor {
        flags: u32, crtc: u32, x: i32, y: i32, width: u32, height: u32, handle: u32, hot_x: i32, hot_y: i32,
    }
}

/// `struct drm_mode_modeinfo`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mode {
    clock: u32,
    pub(crate) width: u16,
    horizontal: [u16; 4],
    pub(crate) height: u16,
    vertical: [u16; 4],
    refresh: u32,
    flags: u32,
    kind: u32,
    name: [u8; 32],
}

const _: () = assert!(size_of::<Mode>() == 68);

impl Mode {
    pub(crate) fn is_preferred(&self) -> bool {
        self.kind & MODE_PREFERRED != 0
    }
}

/// A connector, and the CRTC that belongs to it: the driver makes one of each for a scanout, in the same order.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) id: u32,
    pub(crate) crtc: u32,
    /// It is called `Virtual-` and this.
    pub(crate) number: u32,
    pub(crate) connected: bool,
    pub(crate) modes: Vec<Mode>,
}

/// All connectors, as the kernel finds them now.
pub(crate) fn connectors(card: BorrowedFd<'_>) -> Result<Vec<Connector>> {
    let mut counted = GetResources::default();
    // SAFETY: all counts are 0: the kernel writes to no address.
    unsafe { counted.call(card) }?;
    let mut crtcs = vec![0_u32; counted.crtc_count as usize];
    let mut connectors = vec![0_u32; counted.connector_count as usize];
    let mut request = GetResources {
        crtcs: address(crtcs.as_mut_ptr()),
        connectors: address(connectors.as_mut_ptr()),
        crtc_count: counted.crtc_count,
        connector_count: counted.connector_count,
        ..GetResources::default()
    };
    // SAFETY: the kernel writes at most as many numbers as the lists have, and they outlive the call.
    unsafe { request.call(card) }?;
    connectors.into_iter().zip(crtcs).map(|(id, crtc)| connector(card, id, crtc)).collect()
}

/// Asks twice: with no room for modes the kernel looks what is connected, and counts.
fn connector(card: BorrowedFd<'_>, id: u32, crtc: u32) -> Result<Connector> {
    let mut counted = GetConnector { connector: id, ..GetConnector::default() };
    // SAFETY: all counts are 0: the kernel writes to no address.
    unsafe { counted.call(card) }?;
    let mut modes = vec![Mode::default(); counted.mode_count as usize];
    let mut request = GetConnector {
        connector: id,
        modes: address(modes.as_mut_ptr()),
        mode_count: counted.mode_count,
        ..GetConnector::default()
    };
    if !modes.is_empty() {
        // SAFETY: the kernel writes at most `mode_count` modes, which is all of the list, and it outlives the call.
        unsafe { request.call(card) }?;
        modes.truncate(request.mode_count as usize);
    }
    Ok(Connector { id, crtc, number: counted.kind_number, connected: counted.connection == CONNECTED, modes })
}

/// A picture in memory that the card can show.
pub(crate) struct Framebuffer {
    id: u32,
    handle: u32,
    width: u32,
    height: u32,
    stride: u32,
    mapping: Mapping,
}

impl Framebuffer {
    /// CREATE_DUMB, MAP_DUMB and ADDFB2.
    pub(crate) fn new(card: BorrowedFd<'_>, width: u32, height: u32) -> Result<Self> {
        let mut dumb = CreateDumb { width, height, bits: PIXEL * 8, ..CreateDumb::default() };
        // SAFETY: the structure holds no address.
        unsafe { dumb.call(card) }?;
        let (handle, stride) = (dumb.handle, dumb.pitch);
        let mut place = MapDumb { handle, ..MapDumb::default() };
        // SAFETY: the structure holds no address.
        unsafe { place.call(card) }?;
        let size = usize::try_from(dumb.size).map_err(|_| Errno::NOMEM)?;
        let mapping = Mapping::new(card, place.offset, size.next_multiple_of(PAGE))?;
        let mut added = AddFramebuffer {
            width,
            height,
            format: XRGB8888,
            handles: [handle, 0, 0, 0],
            pitches: [stride, 0, 0, 0],
            ..AddFramebuffer::default()
        };
        // SAFETY: the structure holds no address.
        unsafe { added.call(card) }?;
        Ok(Self { id: added.framebuffer, handle, width, height, stride, mapping })
    }

    /// Sets every pixel.
    pub(crate) fn draw(&self, pixel: impl Fn(u32, u32) -> u32) {
        for y in 0..self.height {
            for x in 0..self.width {
                self.mapping.set_pixel((y * self.stride + x * PIXEL) as usize, pixel(x, y));
            }
        }
    }

    /// DIRTYFB: says that it has been drawn to since it is shown. (The driver of Linux 6.12 hands over the whole of a picture
    /// even where a part of it is named.)
    pub(crate) fn dirty(&self, card: BorrowedFd<'_>) -> Result<()> {
        let mut request = DirtyFramebuffer { framebuffer: self.id, ..DirtyFramebuffer::default() };
        // SAFETY: no rectangles are given.
        unsafe { request.call(card) }
    }

    /// RMFB and DESTROY_DUMB.
    pub(crate) fn close(self, card: BorrowedFd<'_>) -> Result<()> {
        // SAFETY: the structure holds no address.
        unsafe { RemoveFramebuffer { framebuffer: self.id }.call(card) }?;
        drop(self.mapping);
        // SAFETY: the structure holds no address.
        unsafe { DestroyDumb { handle: self.handle }.call(card) }
    }
}

/// SETCRTC: shows a picture in a mode, from this pixel of it on.
pub(crate) fn set_mode(
    card: BorrowedFd<'_>,
    connector: &Connector,
    mode: Mode,
    framebuffer: &Framebuffer,
    (x, y): (u32, u32),
) -> Result<()> {
    let mut request = SetCrtc {
        connectors: address(&raw const connector.id),
        connector_count: 1,
        crtc: connector.crtc,
        framebuffer: framebuffer.id,
        x,
        y,
        mode_is_valid: 1,
        mode,
        ..SetCrtc::default()
    };
    // SAFETY: the kernel reads one number at `connectors`, which outlives the call.
    unsafe { request.call(card) }
}

/// PAGE_FLIP: shows another picture in the same mode. An event of the card's file says when.
pub(crate) fn flip(card: BorrowedFd<'_>, crtc: u32, framebuffer: &Framebuffer) -> Result<()> {
    let mut request = PageFlip { crtc, framebuffer: framebuffer.id, flags: FLIP_EVENT, ..PageFlip::default() };
    // SAFETY: the structure holds no address.
    unsafe { request.call(card) }
}

/// CURSOR2: gives a CRTC a cursor that points with the pixel at `hot`.
pub(crate) fn set_cursor(card: BorrowedFd<'_>, crtc: u32, image: &Framebuffer, hot: (i32, i32)) -> Result<()> {
    let Framebuffer { handle, width, height, .. } = *image;
    let (flags, (hot_x, hot_y)) = (CURSOR_IMAGE, hot);
    let mut request = SetCursor { flags, crtc, width, height, handle, hot_x, hot_y, ..SetCursor::default() };
    // SAFETY: the structure holds no address.
    unsafe { request.call(card) }
}

/// CURSOR2 without a picture.
pub(crate) fn hide_cursor(card: BorrowedFd<'_>, crtc: u32) -> Result<()> {
    // SAFETY: the structure holds no address.
    unsafe { SetCursor { flags: CURSOR_IMAGE, crtc, ..SetCursor::default() }.call(card) }
}

/// CURSOR2: moves the picture's top left corner.
pub(crate) fn move_cursor(card: BorrowedFd<'_>, crtc: u32, (x, y): (i32, i32)) -> Result<()> {
    // SAFETY: the structure holds no address.
    unsafe { SetCursor { flags: CURSOR_MOVE, crtc, x, y, ..SetCursor::default() }.call(card) }
}
