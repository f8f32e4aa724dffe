//! Displays that come, change and go while a guest runs: what the guest hears of it, what a display is shown, and that
//! none of them ever keeps the device or its guest waiting.
#![cfg(feature = "testing")]

mod buffers;
mod events;
mod frames;
mod handles;
mod hostile;
mod panics;
mod plugging;
mod replaced;
mod scanouts;

use std::time::Instant;

use futures_util::FutureExt;
use virtio_gpu_uring::testing::{DEADLINE, Guest, Request, Screen, Shown, Viewer};
use virtio_gpu_uring::{Area, Builder, DeviceGone, Display, Format, Monitor, Reply};
use vm_memory::GuestAddress;

/// The wire's number of B8G8R8X8.
const FORMAT: u32 = 2;

/// A display of 64x48 on scanout 0, and a guest.
fn with_screen(builder: Builder) -> (Guest, Viewer) {
    let (screen, viewer) = Screen::new();
    (Guest::start(builder.display(0, Monitor::new(64, 48), screen)), viewer)
}

/// Pixels that are all different from their neighbours, and from those of another seed.
fn pattern(width: u32, height: u32, seed: u32) -> Vec<u8> {
    (0..width * height).flat_map(|pixel| (pixel * 7 + seed * 0x0101_0101 + 1).to_le_bytes()).collect()
}

/// Makes an image of the pattern.
fn image(guest: &mut Guest, resource: u32, [width, height]: [u32; 2], seed: u32) {
    let pixels = pattern(width, height, seed);
    let range = guest.page_range(pixels.len());
    guest.ram().write(GuestAddress(range.0), &pixels);
    guest.command(&Request::create_2d(resource, FORMAT, width, height)).ok();
    guest.command(&Request::attach_backing(resource, &[range])).ok();
    guest.command(&Request::transfer_2d(resource, [0, 0, width, height], 0)).ok();
}

/// Makes an image of the pattern and shows it on a scanout.
fn show(guest: &mut Guest, scanout: u32, resource: u32, size: [u32; 2]) {
    image(guest, resource, size, resource);
    guest.command(&Request::set_scanout(scanout, resource, [0, 0, size[0], size[1]])).ok();
}

fn connect(guest: &Guest, scanout: u32, monitor: Monitor, display: impl Display) {
    soon(guest.device().connect(scanout, monitor, display)).expect("connected");
}

/// The events that are pending.
fn events(guest: &Guest) -> u32 {
    let mut events = [0xff; 4];
    guest.device().read_config(0, &mut events);
    u32::from_le_bytes(events)
}

/// A scanout as GET_DISPLAY_INFO has it: x, y, width, height, enabled, flags.
fn info(guest: &mut Guest, scanout: usize) -> [u32; 6] {
    let info = guest.command(&Request::display_info()).ok();
    assert_eq!(info.len(), 16 * 24);
    let words = info[scanout * 24..][..24].chunks_exact(4);
    let words: Vec<u32> = words.map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect();
    words.try_into().expect("six words")
}

fn area(width: u32, height: u32) -> Area {
    Area { x: 0, y: 0, width, height }
}

fn attached(width: u32, height: u32) -> Shown {
    Shown::Attached { width, height, format: Format::B8G8R8X8, by_buffer: false }
}

/// Waits for a reply, and not for ever.
#[track_caller]
fn soon<T>(reply: Reply<T>) -> T {
    ends(reply).expect("a device")
}

/// The same of a device that may be gone.
#[track_caller]
fn ends<T>(mut reply: Reply<T>) -> Result<T, DeviceGone> {
    let mut answer = None;
    until("the device replies", || {
        answer = (&mut reply).now_or_never();
        answer.is_some()
    });
    answer.expect("a reply")
}

/// Looks again until it is true.
#[track_caller]
fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let started = Instant::now();
    while !true_now() {
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} until {what}");
        std::thread::yield_now();
    }
}
