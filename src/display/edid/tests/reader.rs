//! A reader of EDIDs for the tests, written apart from the writer: bytes in, modes out, with every rule checked on the way.

/// A mode as a guest reads it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Read {
    pub(super) width: u32,
    pub(super) height: u32,
    /// In Hz.
    pub(super) refresh: f64,
    /// In MHz.
    pub(super) clock: f64,
    pub(super) total: (u32, u32),
    /// By the first descriptor's rule, or by DisplayID's flag.
    pub(super) preferred: bool,
}

impl Read {
    /// Within a hundredth of this refresh.
    pub(super) fn near(&self, refresh: u32) -> bool {
        (self.refresh / f64::from(refresh) - 1.0).abs() < 0.01
    }
}

#[derive(Debug, Default)]
pub(super) struct Edid {
    pub(super) name: String,
    pub(super) serial: u32,
    pub(super) size_cm: (u8, u8),
    /// Of the first descriptor, in millimetres.
    pub(super) size_mm: (u32, u32),
    pub(super) native: bool,
    /// Modes of the base block's descriptors.
    pub(super) descriptors: Vec<Read>,
    /// Sizes and refreshes that it names by bits and standard timings.
    pub(super) named: Vec<(u32, u32, u32)>,
    /// Modes of the extension blocks.
    pub(super) extension: Vec<Read>,
    pub(super) extension_pixels: Option<(u32, u32)>,
}

impl Edid {
    /// # Panics
    /// With a sentence where a rule of the layouts is broken.
    pub(super) fn read(bytes: &[u8]) -> Self {
        assert!(bytes.len() <= 1024, "{} bytes", bytes.len());
        assert_eq!(bytes.len() % 128, 0, "no whole blocks");
        for block in bytes.chunks(128) {
            assert_eq!(sum(block), 0, "a block's checksum");
        }
        let base = &bytes[..128];
        assert_eq!(base[..8], [0, 255, 255, 255, 255, 255, 255, 0], "the header");
        assert_eq!(base[18..20], [1, 4], "version");
        assert_eq!(usize::from(base[126]), bytes.len() / 128 - 1, "count of extension blocks");
        let mut edid = Self {
            serial: u32::from_le_bytes([base[12], base[13], base[14], base[15]]),
            size_cm: (base[21], base[22]),
            native: base[24] & 2 != 0,
            ..Self::default()
        };
        edid.base(base);
        for (index, block) in bytes[128..].chunks(128).enumerate() {
            let following = (index == 0).then_some(usize::from(base[126]) - 1);
            edid.display_id(block, following);
        }
        edid
    }

    /// All modes that the guest is to prefer.
    pub(super) fn preferred(&self) -> Vec<Read> {
        self.descriptors.iter().chain(&self.extension).filter(|mode| mode.preferred).copied().collect()
    }

    /// Whether this mode is offered in any way, its refresh within a hundredth.
    pub(super) fn offers(&self, width: u32, height: u32, refresh: u32) -> bool {
        let mut detailed = self.descriptors.iter().chain(&self.extension);
        detailed.any(|read| (read.width, read.height) == (width, height) && read.near(refresh))
            || self.named.contains(&(width, height, refresh))
    }

    fn base(&mut self, base: &[u8]) {
        let bits = u16::from_be_bytes([base[35], base[36]]);
        #[rustfmt::skip]
        let established = [
            (720, 400, 70), (720, 400, 88), (640, 480, 60), (640, 480, 67), (640, 480, 72), (640, 480, 75), (800, 600, 56),
            (800, 600, 60), (800, 600, 72), (800, 600, 75), (832, 624, 75), (1024, 768, 87), (1024, 768, 60), (1024, 768, 70),
            (1024, 768, 75), (1280, 1024, 75),
        ];
        let set = established.iter().enumerate().filter(|(bit, _)| bits & 0x8000 >> bit != 0);
        self.named.extend(set.map(|(_, mode)| mode));
        for pair in base[38..54].chunks(2).filter(|pair| *pair != [1, 1]) {
            let width = (u32::from(pair[0]) + 31) * 8;
            let height = match pair[1] >> 6 {
                0 => width * 10 / 16,
                1 => width * 3 / 4,
                2 => width * 4 / 5,
                _ => width * 9 / 16,
            };
            self.named.push((width, height, u32::from(pair[1] & 0x3f) + 60));
        }
        let mut text_seen = false;
        for (index, bytes) in base[54..126].chunks(18).enumerate() {
            if bytes[0] == 0 && bytes[1] == 0 {
                text_seen = true;
                assert_ne!(index, 0, "no preferred timing");
                self.text(bytes);
            } else {
                assert!(!text_seen, "a timing after a text");
                self.descriptors.push(descriptor(bytes, index == 0));
            }
        }
        let first = &base[54..72];
        let size = [12, 13].map(|at| u32::from(first[at]));
        self.size_mm = (size[0] | u32::from(first[14] >> 4) << 8, size[1] | u32::from(first[14] & 0xf) << 8);
    }

    fn text(&mut self, bytes: &[u8]) {
        assert_eq!((bytes[2], bytes[4]), (0, 0), "bytes that must be zero");
        if bytes[3] == 0x10 {
            assert_eq!(bytes[5..], [0; 13], "a dummy that says something");
            return;
        }
        assert_eq!(bytes[3], 0xfc, "an unknown descriptor");
        let text: String = bytes[5..].iter().map(|&byte| char::from(byte)).collect();
        let (shown, rest) = text.split_once('\n').unwrap_or((&text, ""));
        assert_eq!(rest.trim_matches(' '), "", "text after the end");
        assert!(!shown.is_empty() && shown.chars().all(|char| (' '..='~').contains(&char)), "{shown:?}");
        assert!(self.name.is_empty(), "two names");
        self.name = shown.to_owned();
    }

    fn display_id(&mut self, block: &[u8], following: Option<usize>) {
        assert_eq!(block[0], 0x70, "an extension of another kind");
        let section = &block[1..];
        let end = 4 + usize::from(section[1]);
        assert!(end <= 125, "a section beyond its block");
        assert_eq!(sum(&section[..=end]), 0, "a section's checksum");
        assert!(section[end + 1..126].iter().all(|byte| *byte == 0), "something after the section");
        assert_eq!(section[0], 0x13, "version");
        let product = following.map_or([0, 0], |following| [3, following as u8]);
        assert_eq!(section[2..4], product, "product and count");
        let mut data = &section[4..end];
        let mut tags = Vec::new();
        while !data.is_empty() {
            let (block, rest) = data.split_at(3 + usize::from(data[2]));
            tags.push(block[0]);
            match block[0] {
                1 => self.extension_pixels = Some((word(block, 7), word(block, 9))),
                3 => {
                    assert_eq!(block[2] % 20, 0, "half a timing");
                    self.extension.extend(block[3..].chunks(20).map(type_1));
                }
                _ => {}
            }
            data = rest;
        }
        assert_eq!(tags, if following.is_some() { vec![0, 1, 0x0f, 3] } else { vec![3] }, "data blocks");
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn descriptor(bytes: &[u8], preferred: bool) -> Read {
    let number = |low: usize, high: u8| u32::from(bytes[low]) | u32::from(high) << 8;
    let width = number(2, bytes[4] >> 4);
    let height = number(5, bytes[7] >> 4);
    let blank = (number(3, bytes[4] & 15), number(6, bytes[7] & 15));
    let front = (number(8, bytes[11] >> 6), u32::from(bytes[10] >> 4) | u32::from(bytes[11] >> 2 & 3) << 4);
    let sync = (number(9, bytes[11] >> 4 & 3), u32::from(bytes[10] & 15) | u32::from(bytes[11] & 3) << 4);
    assert_eq!(bytes[15..], [0, 0, 0x1a], "borders and flags");
    timing(f64::from(word(bytes, 0)) / 100.0, (width, height), blank, front, sync, preferred)
}

fn type_1(bytes: &[u8]) -> Read {
    let clock = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]) + 1;
    let word = |at| word(bytes, at) + 1;
    assert!(word(8) > 0x8000, "horizontal sync is not positive");
    assert!(word(16) <= 0x8000, "vertical sync is not negative");
    assert_eq!(bytes[3] & 0x70, 0, "stereo or interlaced");
    let preferred = bytes[3] & 0x80 != 0;
    let (front, sync) = ((word(8) - 0x8000, word(16)), (word(10), word(18)));
    timing(f64::from(clock) / 100.0, (word(4), word(12)), (word(6), word(14)), front, sync, preferred)
}

fn timing(
    clock: f64,
    (width, height): (u32, u32),
    blank: (u32, u32),
    front: (u32, u32),
    sync: (u32, u32),
    preferred: bool,
) -> Read {
    assert!(
        front.0 > 0 && sync.0 > 0 && blank.0 > front.0 + sync.0,
        "horizontal blanking {blank:?} {front:?} {sync:?}"
    );
    assert!(front.1 > 0 && sync.1 > 0 && blank.1 > front.1 + sync.1, "vertical blanking {blank:?} {front:?} {sync:?}");
    let total = (width + blank.0, height + blank.1);
    assert!(total.0 <= 0xffff && total.1 <= 0xffff, "{total:?} in all");
    let refresh = clock * 1e6 / f64::from(total.0) / f64::from(total.1);
    Read { width, height, refresh, clock, total, preferred }
}
