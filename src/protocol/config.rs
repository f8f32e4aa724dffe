//! The device's configuration space (virtio 1.4, section 5.7.4).
//! Five little-endian words; whatever a driver reads beyond them is zero.

use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct virtio_gpu_config`, 20 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Pending events; bit 0 is `VIRTIO_GPU_EVENT_DISPLAY`.
    pub events_read: U32,
    /// Write-1-to-clear register for `events_read`.
    pub events_clear: U32,
    /// Number of scanouts, 1 to 16.
    pub num_scanouts: U32,
    /// Number of capability sets.
    pub num_capsets: U32,
    /// Alignment of a blob's size and of its offset in the window, in bytes, a power of two.
    pub blob_alignment: U32,
}

impl Config {
    /// Reads `out.len()` bytes at `offset`, zero where the structure ends.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let bytes = self.as_bytes();
        let Some(rest) = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)) else { return };
        let len = rest.len().min(out.len());
        out[..len].copy_from_slice(&rest[..len]);
    }
}

/// `VIRTIO_GPU_EVENT_DISPLAY`: a display has come, gone or changed.
pub const EVENT_DISPLAY: u32 = 1 << 0;

/// Where `events_clear` lies.
const EVENTS_CLEAR: u64 = 4;

/// The event is pending.
const PENDING: u32 = 1 << 0;
/// The driver has asked for the displays since.
const READ: u32 = 1 << 1;
/// And then a display has changed again: the event is due once more when the driver clears it.
const AGAIN: u32 = 1 << 2;

/// The configuration space of a device that lives: a VMM's threads read and write it while the device task changes it.
#[derive(Debug)]
pub(crate) struct LiveConfig {
    fixed: Config,
    events: AtomicU32,
    generation: AtomicU32,
}

impl LiveConfig {
    pub(crate) fn new(num_scanouts: u32, num_capsets: u32, blob_alignment: u32) -> Self {
        let fixed = Config {
            events_read: 0.into(),
            events_clear: 0.into(),
            num_scanouts: num_scanouts.into(),
            num_capsets: num_capsets.into(),
            blob_alignment: blob_alignment.into(),
        };
        Self { fixed, events: AtomicU32::new(0), generation: AtomicU32::new(0) }
    }

    /// As [`Config::read`].
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) {
        let pending = self.events.load(Ordering::Acquire) & PENDING != 0;
        let events_read = if pending { EVENT_DISPLAY.into() } else { 0.into() };
        Config { events_read, ..self.fixed }.read(offset, out);
    }

    /// Takes a write; true where the driver is to be told of a change. `events_clear` is the one register that takes
    /// writes: a bit clears the same bit of `events_read`.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> bool {
        let clears = |(at, byte): (usize, &u8)| offset.checked_add(at as u64) == Some(EVENTS_CLEAR) && byte & 1 != 0;
        if !data.iter().enumerate().any(clears) {
            return false;
        }
        let next = |events: u32| if events & AGAIN != 0 { PENDING } else { 0 };
        let before = self.change(next);
        before & AGAIN != 0
    }

    /// A display has come, gone or changed.
    pub(crate) fn displays_changed(&self) {
        let again = PENDING | READ;
        self.change(|events| events | if events & again == again { again | AGAIN } else { PENDING });
    }

    /// The driver has asked for the displays. What changes from now on it does not know yet, so that clearing the event must
    /// not hide it: Linux clears it last.
    pub(crate) fn displays_read(&self) {
        // Not the configuration space, but what is known of its reader.
        let _ = self.events.fetch_update(Ordering::AcqRel, Ordering::Acquire, |events| {
            (events & PENDING != 0).then_some(events | READ)
        });
    }

    /// No event is pending any more, because the device is reset.
    pub(crate) fn reset(&self) {
        self.change(|_| 0);
    }

    /// A number that changes with the configuration space.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    fn change(&self, next: impl Fn(u32) -> u32) -> u32 {
        let before = self.events.fetch_update(Ordering::AcqRel, Ordering::Acquire, |events| Some(next(events)));
        let before = before.unwrap_or_else(|events| events);
        if next(before) & PENDING != before & PENDING {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_of_any_size_and_offset_is_zero_padded_and_never_panics() {
        let config = Config {
            events_read: 0.into(),
            events_clear: 0.into(),
            num_scanouts: 1.into(),
            num_capsets: 2.into(),
            blob_alignment: 4096.into(),
        };
        assert_eq!(size_of::<Config>(), 20);
        let mut out = [0xff; 32];
        config.read(8, &mut out);
        assert_eq!(out[..12], [1, 0, 0, 0, 2, 0, 0, 0, 0, 16, 0, 0]);
        assert_eq!(out[12..], [0; 20]);
        for offset in [19, 20, 21, 256, u64::MAX] {
            let mut out = [0xff; 256];
            config.read(offset, &mut out);
            assert_eq!(out[1..], [0; 255]);
        }
    }

    fn events(config: &LiveConfig) -> u8 {
        let mut out = [0];
        config.read(0, &mut out);
        out[0]
    }

    #[test]
    fn an_event_is_cleared_by_its_own_bit_alone() {
        let config = LiveConfig::new(1, 1, 4096);
        config.displays_changed();
        for (offset, data) in
            [(0, &[1u8, 0, 0, 0][..]), (4, &[2, 0, 0, 0]), (4, &[]), (5, &[1]), (8, &[1; 4]), (u64::MAX, &[1; 8])]
        {
            assert!(!config.write(offset, data));
            assert_eq!(events(&config), 1, "cleared by a write of {data:?} at {offset}");
        }
        let generation = config.generation();
        assert!(!config.write(3, &[0, 1]));
        assert_eq!(events(&config), 0);
        assert_ne!(config.generation(), generation);
    }

    #[test]
    fn a_change_that_comes_after_the_displays_were_read_is_never_lost_by_clearing() {
        let config = LiveConfig::new(1, 1, 4096);
        config.displays_changed();
        config.displays_read();
        config.displays_changed();
        assert!(config.write(4, &[1]), "the driver is not told");
        assert_eq!(events(&config), 1);
        config.displays_read();
        assert!(!config.write(4, &[1]));
        assert_eq!(events(&config), 0);
    }

    #[test]
    fn a_driver_that_clears_first_and_reads_then_never_goes_round_in_circles() {
        let config = LiveConfig::new(1, 1, 4096);
        config.displays_changed();
        config.displays_changed();
        assert!(!config.write(4, &1u32.to_le_bytes()));
        config.displays_read();
        assert_eq!(events(&config), 0);
    }
}
