//! Blobs whose pages take the kernel a while: nobody waits behind their teardown, and it is complete when it is answered.

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::testing::{Request, census};
use virtio_gpu_uring::{Builder, HostWindow};

use crate::setup::{PAGE, Setup, memfd, put, read_only};

const MIB: u64 = 1 << 20;
const BLOB: u64 = 32 * MIB;
/// Far apart, so that a byte in each eighth of the blob is looked at.
const STEP: u64 = BLOB / 8;

/// A memfd of which every page is there.
fn full(name: &str, len: u64) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, len).expect("size");
    let chunk = vec![0x5a; MIB as usize];
    for at in (0..len).step_by(MIB as usize) {
        assert_eq!(rustix::io::pwrite(&file, &chunk, at).expect("a host write"), chunk.len());
    }
    file
}

fn large_window(populated: bool) -> Setup {
    let window = HostWindow::with_scratch((2 * BLOB) as usize, MIB as usize).expect("a window");
    Setup::on(window.populated(populated), Builder::new())
}

/// The bytes at every eighth of a range, and at its end.
fn probes(setup: &Setup, offset: u64) -> Vec<u8> {
    let starts = (0..8).map(|eighth| offset + eighth * STEP);
    starts.chain([offset + BLOB - 1]).map(|at| setup.byte(at)).collect()
}

#[test]
fn nobody_waits_for_good_behind_the_teardown_of_a_large_blob() {
    for populated in [false, true] {
        let mut setup = large_window(populated);
        let file = full("large", BLOB);
        setup.blob(7, &file, BLOB);
        setup.blob(8, &memfd("beside", PAGE), PAGE);
        for _ in 0..3 {
            setup.guest.map(7, MIB);
            assert_eq!(probes(&setup, MIB), [0x5a; 9]);
            let unmap = setup.guest.submit(&Request::unmap(7));
            let nothing = setup.guest.submit(&Request::display_info());
            let map = setup.guest.submit(&Request::map(8, 0));
            setup.guest.wait(nothing).ok();
            setup.guest.wait(map).ok();
            assert_eq!(setup.byte(0), 1);
            setup.guest.wait(unmap).ok();
            assert_eq!(probes(&setup, MIB), [0; 9]);
            setup.ok(&Request::unmap(8));
        }
    }
}

#[test]
fn an_answered_unref_of_a_large_blob_never_has_anything_left_to_do() {
    let name = "large-and-last";
    let mut setup = large_window(false);
    setup.blob(7, &full(name, BLOB), BLOB);
    setup.guest.map(7, 0);
    assert_eq!((census::fds_named(name), census::maps_named(name)), (1, 1));
    let unref = setup.guest.submit(&Request::unref(7));
    let nothing = setup.guest.submit(&Request::display_info());
    setup.guest.wait(nothing).ok();
    setup.guest.wait(unref).ok();
    assert_eq!((census::fds_named(name), census::maps_named(name)), (0, 0));
    assert_eq!(probes(&setup, 0), [0; 9]);
}

#[test]
fn what_follows_the_teardown_of_the_same_large_blob_never_overtakes_it() {
    let mut setup = large_window(false);
    let file = full("large-and-back", BLOB);
    setup.blob(7, &file, BLOB);
    setup.guest.map(7, 0);
    let program = [
        Request::unmap(7),
        Request::map(7, BLOB),
        Request::unmap(7),
        Request::map(7, 0),
        Request::unmap(7),
        Request::map(7, MIB),
    ];
    let tokens: Vec<_> = program.iter().map(|request| setup.guest.submit(request)).collect();
    for token in tokens {
        setup.guest.wait(token).ok();
    }
    put(&file, 0, 0x11);
    assert_eq!(setup.byte(MIB), 0x11);
    assert_eq!((setup.byte(0), setup.byte(MIB + BLOB)), (0, 0));
}

#[test]
fn a_reset_never_leaves_a_large_blob_behind() {
    let name = "large-and-reset";
    let mut setup = large_window(true);
    let file = full(name, BLOB);
    setup.blob(7, &file, BLOB);
    setup.blob(8, &file, BLOB);
    setup.guest.map(7, 0);
    // One is under way when the reset comes.
    setup.guest.submit(&Request::map(8, BLOB));
    setup.guest.submit(&Request::unmap(7));
    setup.guest.reset();
    assert_eq!((census::fds_named(name), census::maps_named(name)), (1, 0));
    assert_eq!((probes(&setup, 0), probes(&setup, BLOB)), (vec![0; 9], vec![0; 9]));
}

#[test]
fn a_guest_s_copies_of_a_large_read_only_buffer_never_outlive_its_mapping() {
    let mut setup = large_window(false);
    let file = full("large-copies", 2 * MIB);
    let reader = read_only(&file);
    setup.blob(7, &reader, 2 * MIB);
    setup.guest.map(7, 0);
    setup.window.write(MIB, &[1; 64]).expect("in the window");
    assert_eq!(setup.byte(MIB), 1);
    setup.ok(&Request::unmap(7));
    assert_eq!(setup.byte(MIB), 0);
    setup.guest.map(7, 0);
    assert_eq!(setup.byte(MIB), 0x5a, "the copy came back");
}
