//! The end of a device: stopped, dropped, or never run at all.

use std::time::Duration;

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::testing::{DEADLINE, Guest, GuestChannel, GuestOptions, HostService, Request, census};
use virtio_gpu_uring::{Builder, DeviceGone, HostBuffer, HostWindow, Limits};

use crate::memory::SlowMemory;
use crate::{Runtime, show, until};

const PAGE: u64 = 4096;

/// Nobody replies to anything any more, and nobody waits for ever.
#[track_caller]
fn assert_gone(guest: &Guest) {
    let device = guest.device();
    assert_eq!(device.reset().wait(), Err(DeviceGone));
    assert_eq!(device.stop().wait(), Err(DeviceGone));
    device.activate(guest.activation()).wait().expect_err("the device has stopped");
    let file = rustix::fs::memfd_create("lifecycle-gone", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    rustix::fs::ftruncate(&file, PAGE).expect("size");
    let buffer = HostBuffer::from_fd(file).expect("a buffer");
    device.offer(buffer).wait().expect_err("the device has stopped");
    assert_eq!(census::fds_named("lifecycle-gone"), 0, "a buffer that was not taken is still open");
    device.read_config(0, &mut [0; 20]);
    let _ = device.counters();
}

#[test]
fn a_stopped_device_never_keeps_anything_nor_anybody_waiting() {
    const NAME: &str = "lifecycle-stopped";
    let service = HostService::listen();
    let window = HostWindow::new(1 << 20).expect("window");
    let builder = Builder::new().window(window.clone()).host_socket(ChannelType::PIPEWIRE, service.path());
    let mut guest = Guest::start(builder);
    let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    show(&mut guest, NAME, 2, 20, (0x2000, PAGE));
    let _ = channel.poll(&mut guest);
    guest.device().stop().wait().expect("a device");
    assert_eq!((census::fds_named(NAME), census::maps_named(NAME)), (0, 0));
    let mut seen = [0xff; 4];
    window.read(0x2000, &mut seen).expect("in the window");
    assert_eq!(seen, [0; 4]);
    assert_eq!(peer.receive(1).0, b"");
    assert_gone(&guest);
}

#[test]
fn a_dropped_handle_never_leaves_a_device_behind() {
    const NAME: &str = "lifecycle-dropped";
    let service = HostService::listen();
    let window = HostWindow::new(1 << 20).expect("window");
    let builder = Builder::new().window(window.clone()).host_socket(ChannelType::PIPEWIRE, service.path());
    let mut guest = Guest::start(builder);
    let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    show(&mut guest, NAME, 2, 20, (0x2000, PAGE));
    show(&mut guest, NAME, 3, 21, (0x40000, 512 << 10));
    let _ = channel.poll(&mut guest);
    let _ = guest.submit(&Request::unmap(21));
    drop(guest);
    assert_eq!((census::fds_named(NAME), census::maps_named(NAME)), (0, 0));
    let mut seen = [0xff; 4];
    window.read(0x2000, &mut seen).expect("in the window");
    assert_eq!(seen, [0; 4]);
    assert_eq!(peer.receive(1).0, b"");
}

/// Drops a device whose region is stuck.
fn drop_while_stuck(begin: impl FnOnce(&mut Guest, &SlowMemory)) {
    let memory = SlowMemory::default();
    let limits = Limits { deadline: Duration::from_millis(100), ..Limits::default() };
    let mut guest = Guest::start(Builder::new().limits(limits).window(memory.clone()));
    show(&mut guest, "lifecycle-stuck-drop", 1, 5, (0, PAGE));
    begin(&mut guest, &memory);
    let (done, ended) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        drop(guest);
        done.send(()).expect("the test waits");
    });
    ended.recv_timeout(DEADLINE).expect("the drop ends");
    thread.join().expect("no panic");
    assert!(memory.taken().is_empty(), "the device went and left a buffer in the window");
    memory.assert_sound();
}

#[test]
fn a_dropped_handle_never_waits_for_a_stuck_clear_beyond_the_deadline() {
    drop_while_stuck(|_, memory| {
        memory.clears_later(true);
    });
    drop_while_stuck(|guest, memory| {
        memory.clears_later(true);
        let _ = guest.submit(&Request::unmap(5));
        until("the clear has begun", || memory.pending() == 1);
    });
}

#[test]
fn a_dropped_handle_never_waits_for_a_stuck_place_beyond_the_deadline() {
    drop_while_stuck(|guest, memory| {
        guest.command(&Request::unmap(5)).ok();
        memory.places_later(true);
        let _ = guest.submit(&Request::map(5, 0));
        until("the place has begun", || memory.pending() == 1);
    });
}

#[test]
fn a_device_that_is_never_run_never_keeps_anybody_waiting() {
    let memory = SlowMemory::default();
    let (device, task) = Builder::new().window(memory.clone()).build().expect("a device");
    let guest = Guest::powered_off(device, GuestOptions::default());
    let (reset, stop) = (guest.device().reset(), guest.device().stop());
    drop(task);
    assert_eq!((reset.wait(), stop.wait()), (Err(DeviceGone), Err(DeviceGone)));
    assert_gone(&guest);
    assert_eq!(memory.calls(), (0, 0));
}

#[test]
fn a_task_whose_handle_is_gone_never_runs_on() {
    let (device, task) = Builder::new().build().expect("a device");
    drop(Guest::powered_off(device, GuestOptions::default()));
    Runtime::start(vec![task]).join();
}

#[test]
fn messages_before_the_start_are_never_lost() {
    let (device, task) = Builder::new().build().expect("a device");
    let mut guest = Guest::powered_off(device, GuestOptions::default());
    guest.device().acknowledge(virtio_gpu_uring::protocol::features::OFFERED).expect("features");
    let activated = guest.device().activate(guest.activation());
    let token = guest.submit(&Request::display_info());
    let runtime = Runtime::start(vec![task]);
    activated.wait().expect("a device").expect("queues that can be served");
    guest.wait(token).ok();
    guest.device().stop().wait().expect("a device");
    runtime.join();
    assert_gone(&guest);
}
