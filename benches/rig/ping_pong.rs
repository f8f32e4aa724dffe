//! The floor of whatever wakes a thread and is woken by it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::rig::{event, signal, wait};

/// Two threads that wake each other by eventfds: what any device with a thread of its own costs at least.
pub(crate) struct PingPong {
    ping: OwnedFd,
    pong: OwnedFd,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PingPong {
    pub(crate) fn start() -> Self {
        let (ping, pong, over) = (event(), event(), Arc::new(AtomicBool::new(false)));
        let (theirs, back, ended) =
            (ping.try_clone().expect("a duplicate"), pong.try_clone().expect("a duplicate"), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                wait(&theirs);
                signal(&back);
            }
        });
        Self { ping, pong, over, thread: Some(thread) }
    }

    pub(crate) fn round_trip(&self) {
        signal(&self.ping);
        wait(&self.pong);
    }
}

impl Drop for PingPong {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        signal(&self.ping);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
