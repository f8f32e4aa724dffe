//! The scenario that the crate is for: a client in the guest takes frames of the host's camera, and they are the host's. And that
//! the test would see it if they were not.

use crate::alone::alone;
use crate::daemon::until;
use crate::judge::judge;
use crate::stage::{Held, Stage};
use crate::witness::Honesty;

#[test]
fn a_guest_never_sees_other_frames_than_the_host_and_leaves_nothing() {
    alone("frames::a_guest_never_sees_other_frames_than_the_host_and_leaves_nothing", || {
        let mut stage = Stage::start();
        let without_device = Held::now();
        let mut machine = stage.machine(Honesty::Honest);
        let witness = machine.witness.clone();
        let before = Held::now();
        for _ in 0..2 {
            let (running, mut guest) = stage.session(machine);
            guest.wait_for(3);
            let buffers = stage.assert_placed(&witness);
            assert!(guest.ended().success(), "{:?}", guest.lines());
            // Frames that the guest had last are on their way to the native client, too.
            stage.host.goes_on();
            let (after, result) = running.ended();
            assert!(result.is_ok(), "the bridge: {result:?}");
            machine = after;
            match judge(&guest.frames(), &stage.host.frames()) {
                Ok(verdict) => {
                    let (frames, equal, distinct) = (verdict.frames, verdict.equal, verdict.distinct);
                    println!("lab: pipewire frames={frames} equal={equal} distinct={distinct} buffers={buffers}");
                }
                Err(wrong) => panic!("{wrong}"),
            }
            drop(guest);
            stage.assert_rid_of_the_guest();
            assert!(witness.placed().is_empty(), "{:?}", witness.placed());
            assert_eq!(Held::now(), before);
        }
        let counters = machine.guest.device().counters();
        assert_eq!((counters.channels_opened, counters.channels_closed), (2, 2));
        assert_eq!((counters.answers_error, counters.requests_lost), (0, 0));
        drop((machine, witness));
        assert_eq!(Held::now(), without_device);
    });
}

#[test]
fn frames_that_are_not_there_are_never_taken_for_frames() {
    alone("frames::frames_that_are_not_there_are_never_taken_for_frames", || {
        let mut stage = Stage::start();
        let (running, mut guest) = stage.session(stage.machine(Honesty::Hollow));
        until("the guest's stream", || guest.lines().iter().any(|line| line == "state streaming"));
        // Where not even a frame's size is there, a client's library may hand it out or not.
        for _ in 0..3 {
            stage.host.goes_on();
        }
        guest.kill();
        let verdict = judge(&guest.frames(), &stage.host.frames());
        assert!(verdict.is_err(), "{verdict:?}");
        assert!(guest.frames().iter().all(|frame| frame.nonzero == 0), "{:?}", guest.frames());
        assert!(running.ended().1.is_ok());
        stage.assert_rid_of_the_guest();
    });
}
