//! The model of 2D: images as byte strings, backing as a list of places in an arena, displays as canvases; nothing in it
//! knows how the device goes about it.

use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_INVALID_SCANOUT_ID, ERR_OUT_OF_MEMORY, OK_NODATA,
};
use virtio_gpu_uring::testing::{Request, Shown};
use virtio_gpu_uring::{Area, Format};

/// Resources that programs speak of, 0 among them.
pub(crate) const RESOURCES: u32 = 5;
pub(crate) const SCANOUTS: u32 = 3;
/// Guest memory that backing lies in.
pub(crate) const ARENA: usize = 4096;
/// Bytes that all images together may take: less than the largest of each would.
pub(crate) const IMAGE_BYTES: u64 = 1700;
/// Longest side of images that are no mistake.
pub(crate) const SIDE: u32 = 12;

/// A rectangle: somewhere in the resource, or anything.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Where {
    All,
    Inside([u32; 4]),
    /// The same, but for one row or column behind the edge.
    Beyond([u32; 4], bool),
    Raw([u32; 4]),
}

impl Where {
    pub(crate) fn rect(self, (width, height): (u32, u32)) -> [u32; 4] {
        match self {
            Self::All => [0, 0, width, height],
            Self::Raw(rect) => rect,
            Self::Beyond([x, y, ..], across) => {
                let (x, y) = (x % width, y % height);
                [x, y, width - x + u32::from(across), height - y + u32::from(!across)]
            }
            Self::Inside([x, y, w, h]) => {
                let (x, y) = (x % width, y % height);
                [x, y, 1 + w % (width - x), 1 + h % (height - y)]
            }
        }
    }
}

/// Where a transfer begins in the backing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From {
    /// Where Linux says: at the rectangle's own place in a whole picture.
    Linux,
    Raw(u64),
    /// So that the last byte lies so far behind the backing's end, or before it.
    End(i64),
}

/// A piece of backing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Entry {
    Arena(usize, u32),
    /// Right behind the piece before it.
    Next(u32),
    Empty,
    /// So many bytes behind the end of RAM.
    Outside(u32),
    Wraps,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Create { resource: u32, format: u32, size: (u32, u32) },
    Attach { resource: u32, entries: Vec<Entry> },
    Detach { resource: u32 },
    Transfer { resource: u32, place: Where, from: From },
    SetScanout { scanout: u32, resource: u32, place: Where },
    Flush { resource: u32, place: Where },
    Unref { resource: u32 },
    Draw { at: usize, len: usize, seed: u8 },
}

/// An image of the model.
#[derive(Debug)]
pub(crate) struct Image {
    format: Format,
    pub(crate) size: (u32, u32),
    pixels: Vec<u8>,
    /// Which bytes of the arena are behind it, one by one.
    backing: Option<Vec<usize>>,
}

/// What a display shows.
#[derive(Debug, Default)]
pub(crate) struct Panel {
    showing: Option<(u32, [u32; 4])>,
    pub(crate) size: (u32, u32),
    format: Option<Format>,
    pub(crate) canvas: Vec<u8>,
    /// What it has been told, but for pixels.
    pub(crate) told: Vec<Shown>,
}

pub(crate) struct Model {
    pub(crate) arena: Vec<u8>,
    pub(crate) base: u64,
    ram_end: u64,
    images: [Option<Image>; RESOURCES as usize],
    pub(crate) panels: [Panel; SCANOUTS as usize],
}

pub(crate) fn inside([x, y, w, h]: [u32; 4], (width, height): (u32, u32)) -> bool {
    let fits = |start: u32, len: u32, all: u32| len > 0 && u64::from(start) + u64::from(len) <= u64::from(all);
    fits(x, w, width) && fits(y, h, height)
}

/// Codes of the faults that are there.
pub(crate) fn codes(faults: &[(bool, u32)]) -> Vec<u32> {
    faults.iter().filter(|(is, _)| *is).map(|(_, code)| *code).collect()
}

/// Bytes of the pixels of a rectangle, row by row, as offsets in a picture of this width.
pub(crate) fn rows([x, y, w, h]: [u32; 4], width: u32) -> impl Iterator<Item = std::ops::Range<usize>> {
    (y..y + h).map(move |row| {
        let start = (row as usize * width as usize + x as usize) * 4;
        start..start + w as usize * 4
    })
}

impl Model {
    pub(crate) fn new(base: u64, ram_end: u64) -> Self {
        // No piece of it looks like another.
        let arena = (0..ARENA).map(|at| (at % 251 + at / 251) as u8).collect();
        Self { arena, base, ram_end, images: Default::default(), panels: Default::default() }
    }

    pub(crate) fn size(&self, resource: u32) -> (u32, u32) {
        self.images[resource as usize].as_ref().map_or((SIDE, SIDE), |image| image.size)
    }

    /// What a step asks of the device; nothing where the guest only draws.
    pub(crate) fn request(&self, step: &Step) -> Option<Request> {
        Some(match *step {
            Step::Create { resource, format, size } => Request::create_2d(resource, format, size.0, size.1),
            Step::Attach { resource, ref entries } => Request::attach_backing(resource, &self.list(entries)),
            Step::Detach { resource } => Request::detach_backing(resource),
            Step::Transfer { resource, place, from } => {
                let rect = place.rect(self.size(resource));
                Request::transfer_2d(resource, rect, self.offset(resource, rect, from))
            }
            Step::SetScanout { scanout, resource, place } => {
                Request::set_scanout(scanout, resource, place.rect(self.size(resource)))
            }
            Step::Flush { resource, place } => Request::flush(resource, place.rect(self.size(resource))),
            Step::Unref { resource } => Request::unref(resource),
            Step::Draw { .. } => return None,
        })
    }

    pub(crate) fn offset(&self, resource: u32, rect: [u32; 4], from: From) -> u64 {
        let stride = u64::from(self.size(resource).0) * 4;
        match from {
            From::Raw(offset) => offset,
            From::Linux => u64::from(rect[1]) * stride + u64::from(rect[0]) * 4,
            From::End(behind) => {
                let image = self.images[resource as usize].as_ref();
                let have = image.and_then(|image| image.backing.as_ref()).map_or(0, Vec::len) as u64;
                let taken = u64::from(rect[3]).saturating_sub(1) * stride + u64::from(rect[2]) * 4;
                have.wrapping_sub(taken).wrapping_add_signed(behind)
            }
        }
    }

    pub(crate) fn list(&self, entries: &[Entry]) -> Vec<(u64, u32)> {
        let mut end = self.base;
        let entry = |entry: &Entry| {
            let (address, len) = match *entry {
                Entry::Arena(at, len) => (self.base + at as u64, len),
                // Starts anew where the arena ends.
                Entry::Next(len) if end + u64::from(len) <= self.base + ARENA as u64 => (end, len),
                Entry::Next(len) => (self.base, len),
                Entry::Empty => (self.base, 0),
                Entry::Outside(len) => (self.ram_end - 1, len + 1),
                Entry::Wraps => (u64::MAX - 3, 8),
            };
            end = address.wrapping_add(u64::from(len));
            (address, len)
        };
        entries.iter().map(entry).collect()
    }

    /// Does a step; the codes that are right.
    pub(crate) fn step(&mut self, step: &Step) -> Vec<u32> {
        let faults = match *step {
            Step::Create { resource, format, size } => self.create(resource, format, size),
            Step::Attach { resource, ref entries } => self.attach(resource, entries),
            Step::Detach { resource } => {
                match self.images[resource as usize].as_mut().map(|image| image.backing.take()) {
                    None => vec![ERR_INVALID_RESOURCE_ID],
                    Some(backing) => codes(&[(backing.is_none(), ERR_INVALID_PARAMETER)]),
                }
            }
            Step::Transfer { resource, place, from } => self.transfer(resource, place, from),
            Step::SetScanout { scanout, resource, place } => self.set_scanout(scanout, resource, place),
            Step::Flush { resource, place } => self.flush(resource, place),
            Step::Unref { resource } => self.unref(resource),
            Step::Draw { at, len, seed } => {
                (0..len).for_each(|byte| self.arena[at + byte] = seed.wrapping_add((byte * 7) as u8));
                Vec::new()
            }
        };
        if faults.is_empty() { vec![OK_NODATA] } else { faults }
    }

    pub(crate) fn create(&mut self, resource: u32, format: u32, (width, height): (u32, u32)) -> Vec<u32> {
        let used: usize = self.images.iter().flatten().map(|image| image.pixels.len()).sum();
        let bytes = (u64::from(width) * u64::from(height)).saturating_mul(4);
        let sides = 1..=32_768;
        let faults = codes(&[
            (resource == 0 || self.images[resource as usize].is_some(), ERR_INVALID_RESOURCE_ID),
            (Format::from_wire(format).is_none(), ERR_INVALID_PARAMETER),
            (!sides.contains(&width) || !sides.contains(&height), ERR_INVALID_PARAMETER),
            ((used as u64).saturating_add(bytes) > IMAGE_BYTES, ERR_OUT_OF_MEMORY),
        ]);
        if let (true, Some(format)) = (faults.is_empty(), Format::from_wire(format)) {
            let pixels = vec![0; bytes as usize];
            self.images[resource as usize] = Some(Image { format, size: (width, height), pixels, backing: None });
        }
        faults
    }

    pub(crate) fn attach(&mut self, resource: u32, entries: &[Entry]) -> Vec<u32> {
        let list = self.list(entries);
        let base = self.base;
        let Some(image) = &mut self.images[resource as usize] else { return vec![ERR_INVALID_RESOURCE_ID] };
        let bad = |entry: &Entry| matches!(entry, Entry::Empty | Entry::Outside(_) | Entry::Wraps);
        let faults = codes(&[
            (image.backing.is_some(), ERR_INVALID_PARAMETER),
            (list.is_empty() || entries.iter().any(bad), ERR_INVALID_PARAMETER),
        ]);
        if faults.is_empty() {
            let bytes = list.into_iter().flat_map(|(address, len)| {
                let start = (address - base) as usize;
                start..start + len as usize
            });
            image.backing = Some(bytes.collect());
        }
        faults
    }

    pub(crate) fn transfer(&mut self, resource: u32, place: Where, from: From) -> Vec<u32> {
        let rect = place.rect(self.size(resource));
        let offset = self.offset(resource, rect, from);
        let Some(image) = &mut self.images[resource as usize] else { return vec![ERR_INVALID_RESOURCE_ID] };
        let (width, height) = image.size;
        if !inside(rect, (width, height)) {
            return vec![ERR_INVALID_PARAMETER];
        }
        let stride = u128::from(width) * 4;
        let end = u128::from(offset) + u128::from(rect[3] - 1) * stride + u128::from(rect[2]) * 4;
        let Some(backing) = image.backing.as_ref().filter(|backing| end <= backing.len() as u128) else {
            return vec![ERR_INVALID_PARAMETER];
        };
        for (row, out) in rows(rect, width).enumerate() {
            let from = &backing[offset as usize + row * stride as usize..];
            image.pixels[out].iter_mut().zip(from).for_each(|(pixel, at)| *pixel = self.arena[*at]);
        }
        Vec::new()
    }

    pub(crate) fn set_scanout(&mut self, scanout: u32, resource: u32, place: Where) -> Vec<u32> {
        let rect = place.rect(self.size(resource));
        let Some(panel) = self.panels.get_mut(scanout as usize) else { return vec![ERR_INVALID_SCANOUT_ID] };
        if resource == 0 {
            panel.hide();
            return Vec::new();
        }
        let Some(image) = &self.images[resource as usize] else { return vec![ERR_INVALID_RESOURCE_ID] };
        if !inside(rect, image.size) {
            return vec![ERR_INVALID_PARAMETER];
        }
        let [_, _, width, height] = rect;
        panel.showing = Some((resource, rect));
        // A display keeps what it shows where the next picture is like the one before.
        if (panel.size, panel.format) != ((width, height), Some(image.format)) {
            (panel.size, panel.format) = ((width, height), Some(image.format));
            panel.canvas = vec![0; width as usize * height as usize * 4];
        }
        panel.told.push(Shown::Attached { width, height, format: image.format, by_buffer: false });
        Vec::new()
    }

    pub(crate) fn flush(&mut self, resource: u32, place: Where) -> Vec<u32> {
        let rect = place.rect(self.size(resource));
        let Some(image) = &self.images[resource as usize] else { return vec![ERR_INVALID_RESOURCE_ID] };
        if !inside(rect, image.size) {
            return vec![ERR_INVALID_PARAMETER];
        }
        for panel in &mut self.panels {
            let Some((_, shown)) = panel.showing.filter(|(showing, _)| *showing == resource) else { continue };
            let cut = |axis: usize| {
                let start = rect[axis].max(shown[axis]);
                let end = (rect[axis] + rect[axis + 2]).min(shown[axis] + shown[axis + 2]);
                (start < end).then(|| (start, end - start))
            };
            let (Some((x, width)), Some((y, height))) = (cut(0), cut(1)) else { continue };
            let area = Area { x: x - shown[0], y: y - shown[1], width, height };
            let to = rows([area.x, area.y, width, height], panel.size.0);
            for (to, from) in to.zip(rows([x, y, width, height], image.size.0)) {
                panel.canvas[to].copy_from_slice(&image.pixels[from]);
            }
            panel.told.push(Shown::Frame(area));
        }
        Vec::new()
    }

    pub(crate) fn unref(&mut self, resource: u32) -> Vec<u32> {
        if self.images[resource as usize].take().is_none() {
            return vec![ERR_INVALID_RESOURCE_ID];
        }
        let shows = |panel: &&mut Panel| panel.showing.is_some_and(|(showing, _)| showing == resource);
        self.panels.iter_mut().filter(shows).for_each(Panel::hide);
        Vec::new()
    }
}

impl Panel {
    pub(crate) fn hide(&mut self) {
        if self.showing.take().is_some() {
            self.told.push(Shown::Detached);
        }
    }
}
