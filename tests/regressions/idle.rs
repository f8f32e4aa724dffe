//! A device with nothing to do sleeps.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use virtio_gpu_uring::testing::{Guest, GuestChannel, GuestOptions, HostService, Lane, Request, Token};
use virtio_gpu_uring::{Builder, ChannelType, Device, DeviceTask, Limits};
use vm_memory::GuestMemoryMmap;

use crate::until;

type Memory = Arc<GuestMemoryMmap>;

/// Runs a device on a thread of the test's, and counts how often its task is polled.
fn counted(builder: Builder) -> (Device<Memory>, Arc<AtomicU64>) {
    let (device, task): (_, DeviceTask<Memory>) = builder.build().expect("a device");
    let polls = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&polls);
    std::thread::spawn(move || {
        tokio_uring::start(async {
            let mut run = pin!(task.run());
            poll_fn(|cx| {
                count.fetch_add(1, Ordering::SeqCst);
                run.as_mut().poll(cx)
            })
            .await
        })
    });
    (device, polls)
}

#[test]
fn a_device_that_was_reset_while_it_was_full_never_goes_on_asking_for_turns() {
    let service = HostService::listen();
    let limits = Limits { commands_in_flight: 2, ..Limits::default() };
    let builder = Builder::new().limits(limits).host_socket(ChannelType::PIPEWIRE, service.path());
    let (device, polls) = counted(builder);
    let mut guest = Guest::powered_off(device, GuestOptions::default());
    guest.activate();
    let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let _peer = service.accept();
    let _waiting: Vec<Token> = (0..2).map(|_| channel.poll(&mut guest)).collect();
    let _ = guest.submit(&Request::display_info());
    // A device that is full asks for no kick; with one it looks at the queue, and finds more there than it takes.
    guest.kick(Lane::Control);
    until("the device stops popping", || guest.device().counters().stalls_full > 0);
    guest.reset();
    let before = polls.load(Ordering::SeqCst);
    // Gives a device that cannot rest the time to show it; one that rests passes however long this takes.
    std::thread::sleep(Duration::from_millis(50));
    let turns = polls.load(Ordering::SeqCst) - before;
    assert!(turns < 8, "an idle device took {turns} turns");
}
