//! Activations that cannot be served are refused, and change nothing.

use virtio_gpu_uring::protocol::features::OFFERED;
use virtio_gpu_uring::testing::{Guest, GuestOptions, Lane, Request};
use virtio_gpu_uring::{ActivateError, Activation, Builder};
use virtio_queue::{Queue, QueueT};

type Ram = std::sync::Arc<vm_memory::GuestMemoryMmap>;

/// Breaks a queue; the number is where guest memory ends.
type Sabotage = fn(&mut Queue, u64);

fn powered_off() -> Guest {
    Guest::powered_off(Builder::new().spawn().expect("a device"), GuestOptions::default())
}

fn refusal(guest: &Guest, activation: Activation<Ram>) -> ActivateError {
    guest.device().activate(activation).wait().expect("a device").expect_err("an activation that cannot be served")
}

#[test]
fn a_second_activation_never_replaces_the_first() {
    let mut guest = Guest::start(Builder::new());
    assert!(matches!(refusal(&guest, guest.activation()), ActivateError::Active));
    guest.settle();
    guest.assert_all_answered();
}

#[test]
fn a_driver_that_chose_no_features_is_never_served() {
    let mut guest = powered_off();
    assert!(matches!(refusal(&guest, guest.activation()), ActivateError::NoFeatures));
    guest.device().acknowledge(0).expect_err("no features");
    assert!(matches!(refusal(&guest, guest.activation()), ActivateError::NoFeatures));
    guest.activate();
    guest.settle();
    // They do not outlive a reset.
    guest.reset();
    assert!(matches!(refusal(&guest, guest.activation()), ActivateError::NoFeatures));
    guest.activate();
    guest.settle();
}

#[test]
fn queues_that_cannot_be_served_are_never_touched() {
    let mut guest = powered_off();
    guest.device().acknowledge(OFFERED).expect("features");
    let end = guest.ram().end().0;
    let broken: [(&str, Sabotage); 6] = [
        ("not ready", |queue, _| queue.set_ready(false)),
        ("never set up", |queue, _| *queue = Queue::new(256).expect("a size")),
        ("descriptors outside RAM", |queue, end| queue.set_desc_table_address(Some(end as u32), Some(0))),
        ("available ring outside RAM", |queue, end| queue.set_avail_ring_address(Some(end as u32), Some(0))),
        ("used ring outside RAM", |queue, end| queue.set_used_ring_address(Some(end as u32), Some(0))),
        ("used ring past RAM's end", |queue, end| queue.set_used_ring_address(Some(end as u32 - 64), Some(0))),
    ];
    for (what, break_it) in broken {
        for index in [0, 1] {
            let mut activation = guest.activation();
            let setup = if index == 0 { &mut activation.control } else { &mut activation.cursor };
            break_it(&mut setup.queue, end);
            if index == 1 && !setup.queue.ready() {
                // Drivers may do without cursors.
                continue;
            }
            match refusal(&guest, activation) {
                ActivateError::Queue { index: named, .. } => assert_eq!(named, index, "{what}"),
                other => panic!("{what}: {other}"),
            }
        }
    }
    let token = guest.submit(&Request::display_info());
    assert_eq!(guest.device().counters().commands, 0);
    guest.activate();
    guest.wait(token).ok();
}

#[test]
fn a_driver_without_a_cursor_queue_is_never_refused() {
    let mut guest = powered_off();
    for _ in 0..3 {
        guest.device().acknowledge(OFFERED).expect("features");
        let mut activation = guest.activation();
        activation.cursor.queue.set_ready(false);
        guest.device().activate(activation).wait().expect("a device").expect("one queue is enough");
        guest.kick(Lane::Cursor);
        for _ in 0..5 {
            guest.command(&Request::display_info()).ok();
        }
        assert_eq!(guest.needs_resets(), 0);
        guest.reset();
    }
    guest.activate();
    guest.settle();
}

#[test]
fn a_refused_choice_of_features_never_leaves_an_earlier_one_in_force() {
    let guest = powered_off();
    guest.device().acknowledge(OFFERED).expect("features");
    guest.device().acknowledge(OFFERED | 1 << 63).expect_err("a feature that was not offered");
    assert!(matches!(refusal(&guest, guest.activation()), ActivateError::NoFeatures));
}
