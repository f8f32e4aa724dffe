//! Items 46 and 47: what of a blob the guest sees in the window, where, and for how long.

use virtio_gpu_uring::Builder;
use virtio_gpu_uring::HostWindow;
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_UNSPEC, OK_MAP_INFO,
};
use virtio_gpu_uring::protocol::wire::{BLOB_FLAG_SHAREABLE, BLOB_MEM_HOST3D};
use virtio_gpu_uring::testing::{Guest, Request};

use crate::kit::{PAGE, WINDOW, done, memfd, offer, refused, with_window, words};

/// A mappable blob of `len` bytes of `fill`, and its file.
#[track_caller]
fn blob(guest: &mut Guest, id: u32, len: u64, fill: u8) -> std::os::fd::OwnedFd {
    let file = memfd("spec-46", &vec![fill; len as usize]);
    let offered = offer(guest, file.try_clone().expect("a duplicate"));
    done(guest, &Request::host_blob(1, id, offered, len));
    file
}

fn furnished() -> (Guest, HostWindow) {
    let (mut guest, window) = with_window();
    done(&mut guest, &Request::ctx_create(1, 5));
    (guest, window)
}

#[track_caller]
fn seen(window: &HostWindow, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    window.read(offset, &mut bytes).expect("in the window");
    bytes
}

/// The window shows `fill` in these ranges, and nothing anywhere else.
#[track_caller]
fn assert_window(window: &HostWindow, filled: &[(u64, u64, u8)]) {
    let mut expected = vec![0; WINDOW as usize];
    filled.iter().for_each(|&(at, len, fill)| expected[at as usize..][..len as usize].fill(fill));
    assert!(seen(window, 0, WINDOW as usize) == expected, "the window shows something else than {filled:x?}");
}

#[test]
fn spec_46_a_mapped_blob_is_never_elsewhere_nor_a_copy() {
    let (mut guest, window) = furnished();
    let file = blob(&mut guest, 1, 2 * PAGE, 0x11);
    let answer = guest.command(&Request::map(1, 0x6000));
    assert_eq!((answer.kind(), answer.written), (OK_MAP_INFO, 32));
    let info = words(&answer.ok());
    assert!(info[0] <= 3, "map_info {:#x}", info[0]);
    assert_eq!(info[1], 0);
    assert_window(&window, &[(0x6000, 2 * PAGE, 0x11)]);
    rustix::io::pwrite(&file, &[0x22; 8192], 0).expect("written");
    assert_window(&window, &[(0x6000, 2 * PAGE, 0x22)]);
    window.write(0x6000 + 5000, b"back").expect("in the window");
    let mut bytes = [0; 4];
    rustix::io::pread(&file, &mut bytes, 5000).expect("read");
    assert_eq!(&bytes, b"back");
    // The window's two ends.
    blob(&mut guest, 2, PAGE, 0x33);
    blob(&mut guest, 3, PAGE, 0x44);
    guest.map(2, 0);
    guest.map(3, WINDOW - PAGE);
    assert_eq!((seen(&window, 0, 1), seen(&window, WINDOW - 1, 1)), (vec![0x33], vec![0x44]));
}

#[test]
fn spec_46_no_range_is_ever_used_twice_or_left() {
    let (mut guest, window) = furnished();
    blob(&mut guest, 1, 4 * PAGE, 0x11);
    blob(&mut guest, 2, 2 * PAGE, 0x22);
    guest.map(1, 0x8000);
    // Mapped already, at the same place and elsewhere.
    for offset in [0x8000, 0, 0x2_0000] {
        refused(&mut guest, &Request::map(1, offset), ERR_INVALID_PARAMETER);
    }
    // Over its begin, within it, over its end.
    for offset in [0x7000, 0x8000, 0x9000, 0xa000, 0xb000] {
        refused(&mut guest, &Request::map(2, offset), ERR_INVALID_PARAMETER);
    }
    // Over the window's end, behind it, and round to its begin.
    for offset in [WINDOW - PAGE, WINDOW, WINDOW + PAGE, 1 << 32, 1 << 63, u64::MAX - 4095, u64::MAX - 8191] {
        refused(&mut guest, &Request::map(2, offset), ERR_INVALID_PARAMETER);
    }
    for offset in [1, 0x800, 0x2_0001, u64::MAX] {
        refused(&mut guest, &Request::map(2, offset), ERR_INVALID_PARAMETER);
    }
    assert_window(&window, &[(0x8000, 4 * PAGE, 0x11)]);
    // What was refused holds nothing: right before and right after there is room.
    guest.map(2, 0x6000);
    blob(&mut guest, 3, 2 * PAGE, 0x33);
    guest.map(3, 0xc000);
    assert_window(&window, &[(0x6000, 2 * PAGE, 0x22), (0x8000, 4 * PAGE, 0x11), (0xc000, 2 * PAGE, 0x33)]);
}

#[test]
fn spec_46_what_is_no_host_blob_made_for_mapping_is_never_mapped() {
    let (mut guest, window) = furnished();
    let page = guest.page_range(4096);
    done(&mut guest, &Request::create_2d(1, 1, 32, 32));
    done(&mut guest, &Request::create_blob(2, 1, 7, 0, PAGE, &[page]));
    let id = offer(&guest, memfd("spec-46", &[9; 4096]));
    done(&mut guest, &Request::create_blob(3, BLOB_MEM_HOST3D, BLOB_FLAG_SHAREABLE, id, PAGE, &[]).context(1));
    for id in [1, 2, 3] {
        refused(&mut guest, &Request::map(id, 0x1000), ERR_INVALID_PARAMETER);
    }
    for id in [0, 4, u32::MAX] {
        refused(&mut guest, &Request::map(id, 0x1000), ERR_INVALID_RESOURCE_ID);
    }
    assert_window(&window, &[]);
}

#[test]
fn spec_46_a_device_without_a_window_never_maps() {
    let mut guest = Guest::start(Builder::new());
    done(&mut guest, &Request::ctx_create(1, 5));
    blob(&mut guest, 1, PAGE, 1);
    // The specification has no code for it.
    refused(&mut guest, &Request::map(1, 0), ERR_UNSPEC);
    refused(&mut guest, &Request::unmap(1), ERR_INVALID_PARAMETER);
}

#[test]
fn spec_47_old_memory_is_never_reached_after_the_answer() {
    let (mut guest, window) = furnished();
    let file = blob(&mut guest, 1, 2 * PAGE, 0x11);
    for offset in [0x4000, 0, 0x4000, WINDOW - 2 * PAGE] {
        guest.map(1, offset);
        assert_window(&window, &[(offset, 2 * PAGE, 0x11)]);
        done(&mut guest, &Request::unmap(1));
        assert_window(&window, &[]);
    }
    // A store through an old address never reaches the file.
    for offset in [0x4000, 0, WINDOW - 2 * PAGE] {
        let _ = window.write(offset, &[0xee; 8192]);
        let mut bytes = [0; 8192];
        rustix::io::pread(&file, &mut bytes, 0).expect("read");
        assert!(bytes == [0x11; 8192], "the file was written through a range that is not its own any more");
        guest.map(1, offset);
        assert!(seen(&window, offset, 8192) == [0x11; 8192]);
        done(&mut guest, &Request::unmap(1));
    }
}

#[test]
fn spec_47_what_is_not_mapped_is_never_unmapped() {
    let (mut guest, window) = furnished();
    blob(&mut guest, 1, PAGE, 0x11);
    blob(&mut guest, 2, PAGE, 0x22);
    let page = guest.page_range(4096);
    done(&mut guest, &Request::guest_blob(3, PAGE, &[page]));
    done(&mut guest, &Request::create_2d(4, 1, 8, 8));
    guest.map(1, 0x1000);
    for id in [2, 3, 4] {
        refused(&mut guest, &Request::unmap(id), ERR_INVALID_PARAMETER);
    }
    for id in [0, 5, u32::MAX] {
        refused(&mut guest, &Request::unmap(id), ERR_INVALID_RESOURCE_ID);
    }
    assert_window(&window, &[(0x1000, PAGE, 0x11)]);
    done(&mut guest, &Request::unmap(1));
    refused(&mut guest, &Request::unmap(1), ERR_INVALID_PARAMETER);
    // The range is free for another.
    guest.map(2, 0x1000);
    assert_window(&window, &[(0x1000, PAGE, 0x22)]);
}
