//! One of those that take part ends at once, in the middle of a stream: all others go on, and nothing is left.

use crate::alone::alone;
use crate::client::Client;
use crate::machine::{Order, Running};
use crate::stage::{Held, Stage};
use crate::witness::{Honesty, Witness};

/// What there was before a guest had its stream.
struct Before {
    witness: Witness,
    held: Held,
}

impl Before {
    /// The window is empty, and this process has as much as before, but for descriptors that have gone for another reason.
    #[track_caller]
    fn assert_nothing_left(self, gone: usize) {
        assert!(self.witness.placed().is_empty());
        assert_eq!(Held::now(), self.held.without_fds(gone));
    }
}

/// A machine whose guest has a client that takes frames without end.
fn streaming(stage: &Stage) -> (Before, Running, Client) {
    let machine = stage.machine(Honesty::Honest);
    let before = Before { witness: machine.witness.clone(), held: Held::now() };
    let (running, guest) = stage.endless_session(machine);
    (before, running, guest)
}

#[test]
fn a_guest_client_that_is_killed_stops_nobody_else() {
    alone("endings::a_guest_client_that_is_killed_stops_nobody_else", || {
        let mut stage = Stage::start();
        let (before, running, mut guest) = streaming(&stage);
        guest.kill();
        drop(guest);
        let (machine, result) = running.ended();
        assert!(result.is_ok(), "the bridge: {result:?}");
        stage.assert_rid_of_the_guest();
        before.assert_nothing_left(0);
        stage.assert_serves(machine);
    });
}

#[test]
fn a_bridge_that_is_gone_stops_nobody_else() {
    alone("endings::a_bridge_that_is_gone_stops_nobody_else", || {
        let mut stage = Stage::start();
        let (before, running, mut guest) = streaming(&stage);
        running.order(Order::Stop);
        // The context was destroyed, and nothing else was done before.
        let (machine, result) = running.ended();
        assert!(result.is_err());
        assert!(!guest.ended().success());
        drop(guest);
        stage.assert_rid_of_the_guest();
        before.assert_nothing_left(0);
        stage.assert_serves(machine);
    });
}

#[test]
fn a_machine_that_is_gone_stops_nobody_else() {
    alone("endings::a_machine_that_is_gone_stops_nobody_else", || {
        let mut stage = Stage::start();
        let before = Held::now();
        let (running, mut guest) = stage.endless_session(stage.machine(Honesty::Honest));
        // With its device, whose channel is open and whose window is full.
        running.cut_off();
        assert!(!guest.ended().success());
        drop(guest);
        stage.assert_rid_of_the_guest();
        assert_eq!(Held::now(), before);
    });
}

#[test]
fn a_daemon_that_is_killed_ends_its_clients_and_never_the_machine() {
    alone("endings::a_daemon_that_is_killed_ends_its_clients_and_never_the_machine", || {
        let mut stage = Stage::start();
        let (before, running, mut guest) = streaming(&stage);
        stage.daemon.kill();
        let (mut machine, result) = running.ended();
        assert!(result.is_ok(), "the bridge: {result:?}");
        assert!(!guest.ended().success() && !stage.host.ended().success());
        drop(guest);
        // The native client's two streams have ended, too.
        before.assert_nothing_left(2);
        machine.guest.settle();
        let counters = machine.guest.device().counters();
        assert_eq!((counters.channels_opened, counters.channels_closed, counters.requests_lost), (1, 1, 0));
    });
}

#[test]
fn a_guest_that_starts_anew_stops_nobody_else() {
    alone("endings::a_guest_that_starts_anew_stops_nobody_else", || {
        let mut stage = Stage::start();
        let (before, running, mut guest) = streaming(&stage);
        running.order(Order::Reset);
        let (machine, result) = running.ended();
        assert!(result.is_err() && !guest.ended().success());
        drop(guest);
        stage.assert_rid_of_the_guest();
        before.assert_nothing_left(0);
        stage.assert_serves(machine);
    });
}

/// A daemon of PipeWire 0.3 waits for every client at every frame, so one that stands still stops its camera; 1.4 goes on
/// without it. Either has to be rid of it.
#[test]
fn a_guest_that_stands_still_stops_nobody_else_once_its_channels_are_hung_up() {
    alone("endings::a_guest_that_stands_still_stops_nobody_else_once_its_channels_are_hung_up", || {
        let mut stage = Stage::start();
        let (before, running, mut guest) = streaming(&stage);
        running.order(Order::Freeze);
        let moving = stage.host.is_moving();
        println!("lab: pipewire frozen guest, host still has frames: {moving}");
        running.order(Order::HangUp);
        stage.assert_rid_of_the_guest();
        // The guest finds itself without a daemon when it goes on.
        running.order(Order::None);
        let (machine, result) = running.ended();
        assert!(result.is_ok(), "the bridge: {result:?}");
        assert!(!guest.ended().success());
        drop(guest);
        before.assert_nothing_left(0);
        stage.assert_serves(machine);
    });
}

#[test]
fn a_pause_loses_no_wake_up() {
    alone("endings::a_pause_loses_no_wake_up", || {
        let mut stage = Stage::start();
        let (running, mut guest) = stage.endless_session(stage.machine(Honesty::Honest));
        // Not for long: the source of test pictures does not survive a client that stands still, whoever the client is.
        for _ in 0..20 {
            running.pause();
            guest.wait_for(guest.frames().len() + 2);
        }
        guest.kill();
        assert!(running.ended().1.is_ok());
        stage.assert_rid_of_the_guest();
    });
}
