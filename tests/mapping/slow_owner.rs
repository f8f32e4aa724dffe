//! The mapping state machine when its region's owner takes his time, or refuses.

use std::time::Duration;

use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_UNSPEC};
use virtio_gpu_uring::testing::{Request, census};
use virtio_gpu_uring::{Builder, Limits, Protection, ReadOnlyPolicy};

use crate::owner::{Asked, Owner};
use crate::setup::{CONTEXT, PAGE, PAGES, gap, get, memfd, read_only};

/// Limits with a deadline short enough to be waited for.
fn impatient() -> Builder {
    Builder::new().limits(Limits { deadline: Duration::from_millis(30), ..Limits::default() })
}

#[test]
fn a_map_is_never_answered_before_the_pages_are_there_and_holds_up_nobody_else() {
    let owner = Owner::slow();
    let mut setup = owner.guest(Builder::new());
    setup.blob(7, &memfd("slow-map", PAGE), PAGE);
    let map = setup.guest.submit(&Request::map(7, 0));
    let unmap = setup.guest.submit(&Request::unmap(7));
    let unref = setup.guest.submit(&Request::unref(7));
    let range = setup.guest.page_range(4096);
    setup.ok(&Request::guest_blob(8, PAGE, &[range]));
    setup.ok(&Request::ctx_attach(CONTEXT, 8));
    setup.guest.settle();
    for token in [&map, &unmap, &unref] {
        assert!(!setup.guest.has_answer(token), "answered while nothing is mapped");
    }
    setup.assert_gap(0..PAGES);
    owner.allow(1);
    setup.guest.wait(map).ok();
    assert_eq!(setup.byte(0), 1);
    setup.guest.settle();
    assert!(!setup.guest.has_answer(&unmap), "answered while it is still mapped");
    owner.allow(1);
    setup.guest.wait(unmap).ok();
    setup.guest.wait(unref).ok();
    setup.assert_gap(0..PAGES);
}

#[test]
fn a_range_is_never_given_away_before_it_is_clear() {
    let owner = Owner::slow();
    let mut setup = owner.guest(Builder::new());
    let file = memfd("slow-unmap", 2 * PAGE);
    setup.blob(7, &file, 2 * PAGE);
    setup.blob(8, &file, PAGE);
    owner.allow(1);
    setup.guest.map(7, 0);
    let unmap = setup.guest.submit(&Request::unmap(7));
    setup.refused(&Request::map(8, PAGE), ERR_INVALID_PARAMETER);
    owner.allow(1);
    setup.guest.wait(unmap).ok();
    owner.allow(1);
    setup.guest.map(8, PAGE);
    setup.assert_gap(0..1);
    assert_eq!(owner.asked().len(), 3);
    owner.allow(1);
    setup.ok(&Request::unref(8));
}

#[test]
fn a_descriptor_is_never_closed_before_its_pages_are_gone() {
    let name = "fd-closes-last";
    let owner = Owner::slow();
    let mut setup = owner.guest(Builder::new());
    setup.blob(7, &memfd(name, PAGE), PAGE);
    owner.allow(1);
    setup.guest.map(7, 0);
    let unref = setup.guest.submit(&Request::unref(7));
    setup.guest.settle();
    assert!(!setup.guest.has_answer(&unref));
    assert_eq!((census::fds_named(name), census::maps_named(name)), (1, 1));
    owner.allow(1);
    setup.guest.wait(unref).ok();
    assert_eq!((census::fds_named(name), census::maps_named(name)), (0, 0));
}

#[test]
fn a_map_that_is_refused_late_never_leaves_a_trace() {
    let owner = Owner::slow().refusing({
        let mut left = 2;
        move |_| {
            left -= i32::from(left > 0);
            left > 0
        }
    });
    let mut setup = owner.guest(Builder::new());
    let file = memfd("late-refusal", 2 * PAGE);
    setup.blob(7, &file, 2 * PAGE);
    setup.blob(8, &file, 2 * PAGE);
    let map = setup.guest.submit(&Request::map(7, 0));
    setup.refused(&Request::map(8, PAGE), ERR_INVALID_PARAMETER);
    owner.allow(1);
    setup.guest.wait(map).expect_error(ERR_UNSPEC);
    setup.assert_gap(0..PAGES);
    setup.refused(&Request::unmap(7), ERR_INVALID_PARAMETER);
    owner.allow(2);
    setup.guest.map(8, PAGE);
    setup.guest.map(7, 3 * PAGE);
    owner.allow(2);
    setup.ok(&Request::unref(7));
    setup.ok(&Request::unref(8));
    setup.assert_gap(0..PAGES);
}

#[test]
fn a_range_that_could_not_be_cleared_is_never_handed_out_again() {
    let owner = Owner::prompt().refusing(|asked| matches!(asked, Asked::Clear(0, _)));
    let mut setup = owner.guest(Builder::new());
    let file = memfd("not-cleared", 2 * PAGE);
    for resource in [7, 8, 9] {
        setup.blob(resource, &file, 2 * PAGE);
    }
    setup.guest.map(7, 0);
    setup.refused(&Request::unmap(7), ERR_UNSPEC);
    for offset in [0, PAGE] {
        setup.refused(&Request::map(8, offset), ERR_INVALID_PARAMETER);
        setup.refused(&Request::map(7, offset + 10 * PAGE), ERR_INVALID_PARAMETER);
    }
    assert_eq!(setup.guest.device().counters().quarantined, 1);
    setup.guest.map(8, 2 * PAGE);
    setup.ok(&Request::unmap(8));
    setup.assert_gap(2..PAGES);
    let answer = setup.guest.command(&Request::unref(7));
    assert!(answer.kind() >= 0x1100, "UNREF of what is quarantined is not answered");
    setup.refused(&Request::map(9, 0), ERR_INVALID_PARAMETER);
}

#[test]
fn an_owner_who_never_answers_a_map_never_keeps_the_guest_waiting_nor_gets_its_range_lost() {
    let owner = Owner::slow();
    let mut setup = owner.guest(impatient());
    let name = "placed-too-late";
    let file = memfd(name, PAGE);
    setup.blob(7, &file, PAGE);
    setup.blob(8, &file, PAGE);
    setup.refused(&Request::map(7, 0), ERR_UNSPEC);
    setup.refused(&Request::map(8, 0), ERR_INVALID_PARAMETER);
    setup.refused(&Request::unmap(7), ERR_INVALID_PARAMETER);
    // Now it comes all the same: nobody wants it any more.
    owner.allow(1);
    let started = std::time::Instant::now();
    while !owner.asked().contains(&Asked::Clear(0, 1)) {
        assert!(started.elapsed() < virtio_gpu_uring::testing::DEADLINE, "the late mapping was left in the window");
        setup.guest.settle();
    }
    setup.refused(&Request::map(8, 0), ERR_INVALID_PARAMETER);
    owner.allow(1);
    while setup.byte(0) != gap(0) {
        assert!(started.elapsed() < virtio_gpu_uring::testing::DEADLINE, "the late mapping was not cleared");
        setup.guest.settle();
    }
    setup.guest.settle();
    setup.assert_gap(0..PAGES);
    owner.allow(1);
    setup.guest.map(8, 0);
    owner.allow(1);
    setup.ok(&Request::unref(8));
}

#[test]
fn an_owner_who_never_answers_an_unmap_never_keeps_a_reset_waiting_for_good() {
    let owner = Owner::slow();
    let mut setup = owner.guest(impatient());
    let file = memfd("never-cleared", PAGE);
    setup.blob(7, &file, PAGE);
    setup.blob(8, &file, PAGE);
    owner.allow(2);
    setup.guest.map(7, 0);
    setup.guest.map(8, PAGE);
    setup.refused(&Request::unmap(7), ERR_UNSPEC);
    setup.guest.reset();
    setup.guest.activate();
    setup.ok(&Request::ctx_create(CONTEXT, CAPSET_CROSS_DOMAIN));
    setup.blob(9, &file, PAGE);
    for offset in [0, PAGE] {
        setup.refused(&Request::map(9, offset), ERR_INVALID_PARAMETER);
    }
    owner.allow(1);
    setup.refused(&Request::unmap(9), ERR_INVALID_PARAMETER);
}

#[test]
fn a_reset_never_answers_while_a_mapping_is_under_way() {
    let owner = Owner::slow();
    let mut setup = owner.guest(Builder::new());
    let name = "mapping-at-reset";
    let file = memfd(name, PAGE);
    setup.blob(7, &file, PAGE);
    setup.blob(8, &file, PAGE);
    setup.guest.submit(&Request::map(7, 0));
    setup.guest.submit(&Request::map(8, PAGE));
    setup.guest.settle();
    assert_eq!(owner.asked().len(), 2);
    // The owner's answers to both maps, and to both ends.
    owner.allow(4);
    setup.guest.reset();
    setup.assert_gap(0..PAGES);
    assert_eq!((census::fds_named(name), census::maps_named(name)), (1, 0));
}

#[test]
fn an_exporter_that_refuses_private_mappings_never_gets_a_writable_one() {
    let refuses = |asked: &Asked| matches!(asked, Asked::Place(_, _, Protection::PrivateCopy));
    for (policy, maps) in [(ReadOnlyPolicy::Allow, true), (ReadOnlyPolicy::Refuse, false)] {
        let owner = Owner::prompt().refusing(refuses);
        let mut setup = owner.guest(Builder::new().read_only(policy));
        let file = memfd("like-udmabuf", PAGE);
        setup.blob(7, &read_only(&file), PAGE);
        let private = Asked::Place(4, 1, Protection::PrivateCopy);
        if maps {
            setup.guest.map(7, 4 * PAGE);
            assert_eq!(owner.asked(), [private, Asked::Place(4, 1, Protection::ReadOnly)]);
            assert_eq!((setup.byte(4 * PAGE), get(&file, 0)), (1, 1));
            setup.ok(&Request::unmap(7));
        } else {
            setup.refused(&Request::map(7, 4 * PAGE), ERR_UNSPEC);
            assert_eq!(owner.asked(), [private]);
        }
        setup.assert_gap(0..PAGES);
    }
}

#[test]
fn a_writable_buffer_that_is_refused_is_never_mapped_in_another_way() {
    let owner = Owner::prompt().refusing(|_| true);
    let mut setup = owner.guest(Builder::new());
    setup.blob(7, &memfd("refused", PAGE), PAGE);
    setup.refused(&Request::map(7, 0), ERR_UNSPEC);
    assert_eq!(owner.asked(), [Asked::Place(0, 1, Protection::ReadWrite)]);
}
