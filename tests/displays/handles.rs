//! Who holds what: a handle to the displays keeps no device alive, and a display may hold the device's own.

use std::sync::{Arc, Mutex};

use virtio_gpu_uring::testing::{Guest, Screen, Shown};
use virtio_gpu_uring::{
    Area, Builder, ConnectError, Cursor, Device, DeviceGone, Display, Monitor, Picture, Pixels, Work,
};
use vm_memory::GuestMemoryMmap;

/// What a display finds when it is dropped.
type Slot = Arc<Mutex<Option<Device<Arc<GuestMemoryMmap>>>>>;

/// A display that drops the handle in its slot when it is dropped itself.
struct Owner(Slot);

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.0.lock().expect("no panic").take());
    }
}

impl Display for Owner {
    fn attach(&mut self, _picture: &Picture<'_>) {}
    fn draw(&mut self, _area: Area, _pixels: Pixels<'_>) {}
    fn frame(&mut self, _damage: Area) -> Work<()> {
        Work::Done(())
    }
    fn cursor(&mut self, _cursor: Option<&Cursor<'_>>, _position: (i32, i32)) {}
    fn move_cursor(&mut self, _position: (i32, i32)) {}
    fn detach(&mut self) {}
}

#[test]
fn a_handle_to_the_displays_never_keeps_the_device_alive() {
    let mut builder = Builder::new().scanouts(2);
    let displays = builder.displays();
    let (screen, viewer) = Screen::new();
    let early = displays.connect(1, Monitor::new(64, 64), screen);
    let guest = Guest::start(builder);
    early.wait().expect("a device").expect("connected before there was one");
    displays.resize(1, 80, 60).wait().expect("a device").expect("resized");
    let refused = displays.resize(0, 80, 60).wait().expect("a device");
    assert_eq!(refused, Err(ConnectError::NotConnected { scanout: 0 }));
    drop(guest);
    assert_eq!(viewer.take().last(), Some(&Shown::Dropped));
    assert_eq!(displays.resize(1, 64, 64).wait(), Err(DeviceGone));
}

#[test]
fn a_display_that_drops_the_last_handle_never_waits_for_itself() {
    let slot = Slot::default();
    let display: Box<dyn Display> = Box::new(Owner(Arc::clone(&slot)));
    let device = Builder::new().display(0, Monitor::new(64, 64), display).spawn().expect("a device");
    let displays = device.displays();
    let stopped = {
        let mut slot = slot.lock().expect("no panic");
        slot.insert(device).stop()
    };
    stopped.wait().expect("an answer");
    // The device's thread drops the display, and with it the device's handle.
    while displays.disconnect(0).wait().is_ok() {}
    while Arc::strong_count(&slot) > 1 {
        std::thread::yield_now();
    }
    assert!(slot.lock().expect("the display did not panic").is_none());
}
