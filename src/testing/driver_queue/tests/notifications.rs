//! Kicks and interrupts: none without need, and none missing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use super::*;

#[test]
fn the_device_is_kicked_only_when_it_asked() {
    let (_ram, mut driver) = driver(64, FULL);
    let mut device = Mirror::of(&driver);
    let mut add = |count: usize| {
        for _ in 0..count {
            driver.add(b"x", 1, &Layout::default()).expect("room");
        }
        driver.publish()
    };
    assert!(add(1), "a fresh device asks for index 0");
    assert!(!add(1), "it has been kicked and is not back");
    assert!(!add(5));
    while device.serve().is_some() {}
    assert!(!device.enable_kicks());
    assert!(add(3), "it asked again, and one kick is for all three");
    assert!(!add(1));
    assert!(device.enable_kicks(), "chains wait");
    device.serve();
    assert!(device.enable_kicks(), "it asked for the next after its own");
    assert!(!add(1), "that one was published long ago");
}

#[test]
fn without_event_idx_the_used_flags_suppress_kicks() {
    let (_ram, mut driver) = driver(16, PLAIN);
    let mut device = Mirror::of(&driver);
    let mut add = || {
        driver.add(b"x", 1, &Layout::default()).expect("room");
        driver.publish()
    };
    assert!(add());
    assert!(add());
    let memory = device.ram.space();
    device.queue.disable_notification(&*memory).expect("in RAM");
    assert!(!add());
    device.enable_kicks();
    assert!(add());
}

#[test]
fn interrupts_come_only_when_the_driver_asked() {
    let (_ram, mut driver) = driver(64, FULL);
    let mut device = Mirror::of(&driver);
    let mut pass = |driver: &mut DriverQueue, count: usize| {
        for _ in 0..count {
            driver.add(b"x", 1, &Layout::default()).expect("room");
        }
        let _kick = driver.publish();
        while device.serve().is_some() {}
        device.needs_interrupt()
    };
    assert!(pass(&mut driver, 3), "on at first, and one is for all three");
    assert!(!pass(&mut driver, 1), "the driver has not looked yet");
    while driver.poll_used().is_some() {}
    assert!(pass(&mut driver, 1), "polling to the end asks for the next");
    while driver.poll_used().is_some() {}
    // Up to where the used index wraps soon: off must hold across it.
    while driver.next_used.0 < 65_500 {
        assert!(pass(&mut driver, 20));
        while driver.poll_used().is_some() {}
    }
    driver.set_interrupts(false);
    for _ in 0..100 {
        assert!(!pass(&mut driver, 2));
        while driver.poll_used().is_some() {}
    }
    assert!(!pass(&mut driver, 1));
    assert!(driver.enable_interrupts(), "one came while they were off");
    driver.poll_used().expect("an answer");
    assert!(!driver.enable_interrupts());
    assert!(pass(&mut driver, 1));
}

#[test]
fn without_event_idx_the_available_flags_switch_interrupts() {
    let (ram, mut driver) = driver(16, PLAIN);
    let at = GuestAddress(driver.device_queue().avail_ring());
    let flags = || ram.read(at, 2);
    assert_eq!(flags(), [0, 0]);
    driver.set_interrupts(false);
    assert_eq!(flags(), [1, 0]);
    assert!(!driver.enable_interrupts());
    assert_eq!(flags(), [0, 0]);
    driver.set_interrupts(false);
    driver.reset();
    assert_eq!(flags(), [0, 0], "a reset switches them on");
}

/// Sleeps until `woken`, which an interrupt or a kick sets. The deadline only turns a lost
/// wake-up into a failure.
fn sleep_until(woken: &AtomicBool, who: &str) {
    while !woken.swap(false, Ordering::Acquire) {
        let before = Instant::now();
        thread::park_timeout(Duration::from_secs(20));
        assert!(before.elapsed() < Duration::from_secs(20), "the {who} was never woken");
    }
}

fn wake(flag: &AtomicBool, thread: &Thread) {
    flag.store(true, Ordering::Release);
    thread.unpark();
}

#[test]
fn no_wakeup_is_lost_between_two_threads() {
    const CHAINS: u32 = 20_000;
    let (_ram, mut driver) = driver(32, FULL);
    let mut device = Mirror::of(&driver);
    let (kick, interrupt) = (AtomicBool::new(false), AtomicBool::new(false));
    let driver_thread = thread::current();
    thread::scope(|scope| {
        let device_thread = scope.spawn(|| {
            let mut served = 0;
            while served < CHAINS {
                while device.serve().is_some() {
                    served += 1;
                }
                if device.needs_interrupt() {
                    wake(&interrupt, &driver_thread);
                }
                if !device.enable_kicks() && served < CHAINS {
                    sleep_until(&kick, "device");
                }
            }
        });
        let (mut sent, mut answered) = (0, 0);
        while answered < CHAINS {
            let depth = 1 + sent % 5;
            while sent < CHAINS && driver.outstanding() < depth as usize {
                let request = sent.to_le_bytes();
                driver.add(&request, 4, &Layout::default()).expect("room");
                sent += 1;
            }
            if driver.publish() {
                wake(&kick, device_thread.thread());
            }
            driver.set_interrupts(false);
            if driver.enable_interrupts() || driver.outstanding() == 0 {
                while let Some(used) = driver.poll_used() {
                    assert_eq!(used.written, 4);
                    answered += 1;
                }
            } else {
                sleep_until(&interrupt, "driver");
            }
        }
    });
    assert_eq!(driver.outstanding(), 0);
}

/// A device that goes to sleep right after its answer, while the driver publishes right after it
/// saw that answer: the narrowest race there is between the index and the wish. Only an optimised
/// build on idle CPUs is quick enough to meet it, and then sees a missing fence in many runs.
#[test]
fn no_kick_is_lost_when_the_device_falls_asleep() {
    const CHAINS: u32 = if cfg!(debug_assertions) { 20_000 } else { 500_000 };
    let (_ram, mut driver) = driver(4, FULL);
    let mut device = Mirror::of(&driver);
    let prepared = driver.prepare(b"x", 1, &Layout::direct()).expect("room");
    let (kick, done) = (AtomicBool::new(true), AtomicBool::new(false));
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if kick.swap(false, Ordering::Acquire) {
                    while device.serve().is_some() || device.enable_kicks() {}
                } else {
                    thread::yield_now();
                }
            }
        });
        let (mut lost, mut sent) = (false, 0);
        while sent < CHAINS && !lost {
            sent += 1;
            driver.add_prepared(&prepared);
            if driver.publish() {
                kick.store(true, Ordering::Release);
            }
            let mut looks = 0_u32;
            while driver.poll_used_fast().is_none() && !lost {
                looks += 1;
                // Close behind the device if it runs; out of its way if it shares our CPU.
                if looks.is_multiple_of(64) {
                    lost = started.elapsed() > Duration::from_secs(60);
                    thread::yield_now();
                }
                std::hint::spin_loop();
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(!lost, "a chain was published and nobody was kicked");
    });
}
