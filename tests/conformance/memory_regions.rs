//! Items 9 to 12: the shared memory regions, of which this device has the host-visible one or none.

use virtio_gpu_uring::protocol::features::OFFERED;
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_UNSPEC, OK_MAP_INFO,
};
use virtio_gpu_uring::testing::{Guest, Lane, Request};
use virtio_gpu_uring::{Builder, HostWindow, SHM_ID_HOST_VISIBLE, SharedMemory};
use vm_memory::GuestAddress;

use crate::kit::{self, PAGE, WINDOW};

fn seen(window: &HostWindow, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    window.read(at, &mut bytes).expect("a range of the window");
    bytes
}

/// Makes host blob `resource` of context 1 from a file that holds `bytes`.
#[track_caller]
fn host_blob(guest: &mut Guest, resource: u32, bytes: &[u8]) {
    let blob = kit::offer(guest, kit::memfd("region", bytes));
    kit::done(guest, &Request::host_blob(1, resource, blob, bytes.len() as u64));
}

fn with_context() -> (Guest, HostWindow) {
    let (mut guest, window) = kit::with_window();
    kit::done(&mut guest, &Request::ctx_create(1, 5));
    (guest, window)
}

#[test]
fn spec_09_the_only_region_is_the_host_visible_one() {
    assert_eq!(SHM_ID_HOST_VISIBLE, 1);
    // A device has one window at most, whatever is stated, and the seam has no id: there is no way to another region.
    let (_, window) = kit::with_window();
    assert_eq!(SharedMemory::len(&window), WINDOW);
}

#[test]
fn spec_10_with_a_region_map_and_unmap_work() {
    let (mut guest, window) = with_context();
    let bytes = kit::pattern(2 * PAGE as usize, 10);
    host_blob(&mut guest, 5, &bytes);
    let mapped = guest.command(&Request::map(5, 0x3000));
    assert_eq!((mapped.kind(), mapped.written), (OK_MAP_INFO, 32));
    // map_info: cached, in the low four bits, and nothing else.
    assert_eq!(mapped.payload, [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(seen(&window, 0x3000, bytes.len()), bytes);
    kit::done(&mut guest, &Request::unmap(5));
    assert_eq!(seen(&window, 0x3000, bytes.len()), vec![0; bytes.len()]);
    kit::done(&mut guest, &Request::unref(5));
}

#[test]
fn spec_10_the_region_serves_from_its_first_byte_to_its_last() {
    let (mut guest, window) = with_context();
    let last = WINDOW - PAGE;
    for (resource, at) in [(5, 0), (6, last)] {
        host_blob(&mut guest, resource, &kit::pattern(PAGE as usize, resource));
        guest.map(resource, at);
        assert_eq!(seen(&window, at, PAGE as usize), kit::pattern(PAGE as usize, resource));
    }
    host_blob(&mut guest, 7, &[7; 2 * PAGE as usize]);
    for outside in [last, WINDOW, WINDOW + PAGE, 0u64.wrapping_sub(PAGE)] {
        kit::refused(&mut guest, &Request::map(7, outside), ERR_INVALID_PARAMETER);
    }
    guest.map(7, PAGE);
    host_blob(&mut guest, 8, &vec![8; WINDOW as usize - 4 * PAGE as usize]);
    guest.map(8, 3 * PAGE);
    assert_eq!(seen(&window, WINDOW - PAGE - 1, 2), [8, kit::pattern(1, 6)[0]]);
}

#[test]
fn spec_10_without_a_region_nothing_is_mapped_and_nothing_harmed() {
    let mut guest = Guest::start(Builder::new());
    kit::done(&mut guest, &Request::ctx_create(1, 5));
    host_blob(&mut guest, 5, &[5; 4096]);
    for _ in 0..2 {
        kit::refused(&mut guest, &Request::map(5, 0), ERR_UNSPEC);
        assert_eq!(guest.command(&Request::unmap(5)).kind() & 0xff00, 0x1200);
    }
    kit::refused(&mut guest, &Request::unmap(6), ERR_INVALID_RESOURCE_ID);
    let read = guest.device().read_blob(5, ..).wait().expect("a device").expect("the blob is there as before");
    assert_eq!(read, [5; 4096]);
}

#[test]
fn spec_11_the_region_shows_nothing_but_what_was_mapped() {
    let (mut guest, window) = with_context();
    let secret = kit::pattern(4 * PAGE as usize, 11);
    let backing = guest.page_range(secret.len());
    guest.ram().write(GuestAddress(backing.0), &secret);
    // Resources of every other kind, and a stream.
    kit::done(&mut guest, &Request::create_2d(1, 1, 64, 64));
    kit::done(&mut guest, &Request::attach_backing(1, &[backing]));
    kit::done(&mut guest, &Request::transfer_2d(1, [0, 0, 64, 64], 0));
    kit::done(&mut guest, &Request::guest_blob(2, secret.len() as u64, &[backing]));
    host_blob(&mut guest, 3, &secret);
    kit::done(&mut guest, &Request::submit(1, &[]));
    assert_eq!(seen(&window, 0, WINDOW as usize), vec![0; WINDOW as usize]);
    guest.map(3, 0x8000);
    let mut expected = vec![0; WINDOW as usize];
    expected[0x8000..0x8000 + secret.len()].copy_from_slice(&secret);
    assert_eq!(seen(&window, 0, WINDOW as usize), expected);
    // What a guest stores in a gap is no command of the device's.
    let header = Request::unref(3).bytes();
    window.write(0, &header).expect("in the window");
    guest.kick(Lane::Control);
    guest.settle();
    kit::refused(&mut guest, &Request::create_2d(3, 1, 1, 1), ERR_INVALID_RESOURCE_ID);
}

#[test]
fn spec_11_places_in_the_region_are_offsets_from_its_start() {
    // Two regions at two addresses: the same request places a blob equally.
    let (mut first, one) = with_context();
    let (mut second, two) = with_context();
    assert_ne!(one.host_address(), two.host_address());
    for (guest, window) in [(&mut first, &one), (&mut second, &two)] {
        host_blob(guest, 5, &[0x55; 4096]);
        guest.map(5, 0x5000);
        assert_eq!(seen(window, 0x4fff, 4098), [&[0][..], &[0x55; 4096], &[0]].concat());
    }
}

#[test]
fn spec_11_the_region_is_empty_after_a_reset() {
    let (mut guest, window) = with_context();
    host_blob(&mut guest, 5, &[0x55; 4096]);
    guest.map(5, 0x5000);
    guest.reset();
    assert_eq!(seen(&window, 0, WINDOW as usize), vec![0; WINDOW as usize]);
}

#[test]
fn spec_12_the_region_has_an_id_that_no_other_capability_of_the_device_has() {
    // `cap.id` of VIRTIO_PCI_CAP_SHARED_MEMORY_CFG, and what a driver writes to SHMSel: one byte, and never 0.
    let id: u8 = SHM_ID_HOST_VISIBLE;
    assert_eq!(id, 1);
    // Its length is the VMM's to state, and the device never changes it: a driver reads it once.
    let (mut guest, window) = with_context();
    let len = SharedMemory::len(&window);
    host_blob(&mut guest, 5, &[0x55; 4096]);
    guest.map(5, 0);
    guest.reset();
    guest.device().acknowledge(OFFERED).expect("features");
    assert_eq!(SharedMemory::len(&window), len);
    assert_eq!(window.len(), WINDOW);
}
