//! What the guest hears of its displays: the event in the configuration space, its notification, and the generation.

use virtio_gpu_uring::testing::{Guest, Request, Screen};
use virtio_gpu_uring::{Builder, Monitor};

use crate::{connect, events, info, soon, with_screen};

/// Clears the event as a driver does.
fn clear(guest: &Guest) {
    guest.device().write_config(4, &1u32.to_le_bytes());
    // What the VMM asks is answered in order: a notification that this was to cause has been sent by then.
    soon(guest.device().exported([0; 16])).expect("an answer");
}

/// Something that a VMM does to a display.
type Change = fn(&Guest);

const CHANGES: [(&str, Change); 4] = [
    ("connect", |guest| connect(guest, 1, Monitor::new(64, 48), Screen::new().0)),
    ("resize", |guest| soon(guest.device().change_monitor(1, Monitor::new(800, 600))).expect("changed")),
    ("replace", |guest| connect(guest, 1, Monitor::new(64, 48), Screen::new().0)),
    ("disconnect", |guest| assert!(soon(guest.device().disconnect(1)).expect("a scanout"))),
];

#[test]
fn no_change_of_a_display_is_ever_kept_from_the_guest() {
    let mut guest = Guest::start(Builder::new().scanouts(2));
    let mut generations = vec![guest.device().config_generation()];
    for (name, change) in CHANGES {
        assert_eq!((events(&guest), guest.take_config_changes()), (0, 0), "before {name}");
        change(&guest);
        assert_eq!((events(&guest), guest.take_config_changes()), (1, 1), "after {name}");
        generations.push(guest.device().config_generation());
        guest.settle();
        assert_eq!(events(&guest), 1, "asking clears nothing");
        clear(&guest);
        assert_eq!(events(&guest), 0, "after {name} was cleared");
        generations.push(guest.device().config_generation());
        guest.settle();
    }
    let changed = generations.windows(2).all(|pair| pair[0] != pair[1]);
    assert!(changed, "the space has changed without its generation: {generations:?}");
    // Nothing happens, and nothing is said.
    let generation = guest.device().config_generation();
    clear(&guest);
    guest.settle();
    assert_eq!((guest.device().config_generation(), guest.take_config_changes()), (generation, 0));
}

#[test]
fn a_change_between_the_question_and_the_clearing_is_never_lost() {
    let mut guest = Guest::start(Builder::new().scanouts(2));
    connect(&guest, 1, Monitor::new(64, 48), Screen::new().0);
    assert_eq!(info(&mut guest, 1), [0, 0, 64, 48, 1, 0]);
    soon(guest.device().change_monitor(1, Monitor::new(800, 600))).expect("changed");
    assert_eq!(guest.take_config_changes(), 2);
    clear(&guest);
    guest.settle();
    assert_eq!((events(&guest), guest.take_config_changes()), (1, 1), "the guest believes in 64x48 for good");
    assert_eq!(info(&mut guest, 1), [0, 0, 800, 600, 1, 0]);
    clear(&guest);
    guest.settle();
    assert_eq!((events(&guest), guest.take_config_changes()), (0, 0));
}

#[test]
fn an_event_never_outlives_a_reset() {
    let mut guest = Guest::start(Builder::new().scanouts(2));
    connect(&guest, 1, Monitor::new(64, 48), Screen::new().0);
    assert_eq!(guest.take_config_changes(), 1);
    guest.reset();
    assert_eq!(events(&guest), 0);
    connect(&guest, 0, Monitor::new(64, 48), Screen::new().0);
    guest.activate();
    guest.settle();
    assert_eq!((events(&guest), guest.take_config_changes()), (0, 0));
}

#[test]
fn the_edid_is_never_that_of_an_earlier_display() {
    let (mut guest, _viewer) = with_screen(Builder::new().scanouts(2));
    let edid = |guest: &mut Guest, scanout| {
        let answer = guest.command(&Request::get_edid(scanout)).ok();
        let size = u32::from_le_bytes(answer[..4].try_into().expect("four bytes")) as usize;
        answer[8..8 + size].to_vec()
    };
    let first = edid(&mut guest, 0);
    assert!(first.len() >= 128 && first.len().is_multiple_of(128));
    let named = Monitor { name: "Another".into(), ..Monitor::new(64, 48) };
    soon(guest.device().change_monitor(0, named)).expect("changed");
    let second = edid(&mut guest, 0);
    assert_ne!(first, second);
    assert!(second.windows(7).any(|bytes| bytes == b"Another"));
    assert!(edid(&mut guest, 1).is_empty());
    connect(&guest, 0, Monitor::new(64, 48), Screen::new().0);
    assert_eq!(edid(&mut guest, 0), first);
    soon(guest.device().disconnect(0)).expect("a scanout");
    assert!(edid(&mut guest, 0).is_empty());
}
