//! Devices on a runtime that the VMM has already: one, or several beside each other on one thread.

use std::thread::JoinHandle;

use virtio_gpu_uring::testing::{Guest, GuestOptions, Lane, Request, Token};
use virtio_gpu_uring::{Builder, HostWindow};

use crate::{Runtime, offer, on_runtime, show};

const PAGE: u64 = 4096;

#[test]
fn a_runtime_of_the_vmm_is_never_the_devices_alone() {
    let window = HostWindow::new(1 << 20).expect("window");
    let (mut guest, runtime) = on_runtime(Builder::new().window(window.clone()), GuestOptions::default());
    show(&mut guest, "lifecycle-own", 1, 5, (0, PAGE));
    let mut seen = [0; 2];
    window.read(10, &mut seen).expect("in the window");
    assert_eq!(seen, [0x5a; 2]);
    let tokens: Vec<Token> = (0..100).map(|_| guest.submit(&Request::display_info())).collect();
    runtime.turn();
    tokens.into_iter().for_each(|token| drop(guest.wait(token).ok()));
    guest.reset();
    guest.activate();
    guest.settle();
    guest.device().stop().wait().expect("a device");
    runtime.join();
}

/// A guest that works for itself on a thread of its own, resets included.
fn work(mut guest: Guest, window: HostWindow, rounds: u64) -> JoinHandle<Guest> {
    std::thread::spawn(move || {
        for round in 0..rounds {
            guest.activate();
            show(&mut guest, "lifecycle-several", 1, 5, ((round % 8) * PAGE, PAGE));
            let mut seen = [0; 3];
            window.read((round % 8) * PAGE + 99, &mut seen).expect("in the window");
            assert_eq!(seen, [0x5a; 3]);
            let cursor = guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (10, 20)));
            let tokens: Vec<Token> = (0..40).map(|_| guest.submit(&Request::display_info())).collect();
            tokens.into_iter().for_each(|token| drop(guest.wait(token).ok()));
            guest.wait_on(Lane::Cursor, cursor).ok();
            guest.assert_all_answered();
            guest.reset();
        }
        guest
    })
}

#[test]
fn devices_on_one_thread_never_disturb_each_other_also_when_one_stops() {
    let windows: Vec<HostWindow> = (0..4).map(|_| HostWindow::new(1 << 20).expect("window")).collect();
    let (mut guests, mut tasks) = (Vec::new(), Vec::new());
    for window in &windows {
        let (device, task) = Builder::new().window(window.clone()).build().expect("a device");
        guests.push(Guest::powered_off(device, GuestOptions { ram: 4 << 20, ..GuestOptions::default() }));
        tasks.push(task);
    }
    let runtime = Runtime::start(tasks);
    let working = guests.into_iter().zip(windows).zip([3, 25, 25, 25]);
    let mut working: Vec<JoinHandle<Guest>> =
        working.map(|((guest, window), rounds)| work(guest, window, rounds)).collect();
    let first = working.remove(0).join().expect("a guest that works");
    first.device().stop().wait().expect("a device");
    drop(first);
    let others: Vec<Guest> = working.into_iter().map(|thread| thread.join().expect("a guest that works")).collect();
    assert!(others.iter().all(|guest| guest.device().counters().resets == 25));
    drop(others);
    runtime.join();
}

#[test]
fn an_offer_to_one_device_is_never_known_to_another() {
    let mut guests = [Guest::start(Builder::new()), Guest::start(Builder::new())];
    let offered = offer(&guests[0], "lifecycle-offer-of-one", PAGE, 1);
    guests.iter_mut().for_each(|guest| drop(guest.command(&Request::ctx_create(1, 0)).ok()));
    let error = virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_PARAMETER;
    guests[1].command(&Request::host_blob(1, 5, offered, PAGE)).expect_error(error);
    guests[0].command(&Request::host_blob(1, 5, offered, PAGE)).ok();
}
