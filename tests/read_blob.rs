//! What the VMM reads of a blob is what the host sees in it: live, in range, and at nobody's expense.
#![cfg(feature = "testing")]

use std::ops::RangeBounds;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rustix::fs::{SealFlags, fcntl_add_seals, ftruncate};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Request, census};
use virtio_gpu_uring::{Builder, HostWindow, Limits, ReadError, Reply};

#[path = "read_blob/pending.rs"]
mod pending;
#[path = "blobs/setup.rs"]
mod setup;

use setup::{CONTEXT, PAGE, Setup, memfd, put, read_only};

/// What a read answers.
type Answer = Result<Vec<u8>, ReadError>;

#[track_caller]
fn read(guest: &Guest, resource: u32, range: impl RangeBounds<u64>) -> Answer {
    guest.device().read_blob(resource, range).wait().expect("a device")
}

/// The first byte of every page that a read has brought.
#[track_caller]
fn pages(answer: Answer) -> Vec<u8> {
    let bytes = answer.expect("read");
    assert!(bytes.len().is_multiple_of(PAGE as usize), "{} bytes", bytes.len());
    bytes.iter().step_by(PAGE as usize).copied().collect()
}

/// Asserts that a range is refused, and as one of how many readable bytes.
#[track_caller]
fn out_of_range(answer: Answer, readable_bytes: u64) {
    match answer {
        Err(ReadError::OutOfRange { readable, .. }) => assert_eq!(readable, readable_bytes),
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
}

#[test]
fn what_is_read_is_never_stale() {
    let mut setup = Setup::new();
    let file = memfd("read-live", 3 * PAGE);
    setup.blob(7, &file, 3 * PAGE);
    assert_eq!(pages(read(&setup.guest, 7, ..)), [1, 2, 3]);
    put(&file, PAGE, 0x77);
    assert_eq!(pages(read(&setup.guest, 7, ..)), [1, 0x77, 3]);
    setup.guest.map(7, 0);
    setup.window.write(2 * PAGE, &[0x99]).expect("a guest write");
    assert_eq!(pages(read(&setup.guest, 7, ..)), [1, 0x77, 0x99]);
}

#[test]
fn a_range_is_read_exactly_or_not_at_all() {
    let mut setup = Setup::new();
    setup.blob(7, &memfd("read-ranges", 4 * PAGE), 3 * PAGE);
    let size = 3 * PAGE;
    let guest = &setup.guest;
    assert_eq!(read(guest, 7, PAGE..PAGE + 2).expect("read"), [2, 0]);
    assert_eq!(read(guest, 7, PAGE - 1..=PAGE).expect("read"), [0, 2]);
    assert_eq!(read(guest, 7, 2 * PAGE..).expect("read").len(), PAGE as usize);
    assert_eq!(read(guest, 7, ..5).expect("read"), [1, 0, 0, 0, 0]);
    for nothing in [0, PAGE, size] {
        assert_eq!(read(guest, 7, nothing..nothing).expect("read"), [0; 0]);
    }
    #[expect(clippy::reversed_empty_ranges, reason = "a range that is none")]
    let backward = 5..4;
    for bad in [0..size + 1, size..size + 1, size + 1..size + 1, 0..u64::MAX, u64::MAX..u64::MAX, backward] {
        out_of_range(read(guest, 7, bad), size);
    }
    out_of_range(read(guest, 7, 0..=u64::MAX), size);
    out_of_range(read(guest, 7, u64::MAX..), size);
}

#[test]
fn what_is_not_there_is_never_read() {
    let mut setup = Setup::new();
    let unknown = |guest: &Guest, id| {
        let answer = read(guest, id, ..);
        assert!(matches!(answer, Err(ReadError::UnknownResource { resource }) if resource == id), "{answer:?}");
    };
    unknown(&setup.guest, 0);
    unknown(&setup.guest, 7);
    let file = memfd("read-unknown", PAGE);
    let offer = setup.offer(&file);
    unknown(&setup.guest, 7);
    setup.ok(&Request::host_blob(CONTEXT, 7, offer, PAGE));
    assert_eq!(pages(read(&setup.guest, 7, ..)), [1]);
    setup.ok(&Request::unref(7));
    unknown(&setup.guest, 7);
    setup.blob(7, &file, PAGE);
    setup.guest.reset();
    unknown(&setup.guest, 7);
    setup.guest.activate();
    unknown(&setup.guest, 7);
}

#[test]
fn a_blob_in_guest_memory_is_never_read_out_of_order_or_beyond_its_backing() {
    let mut setup = Setup::new();
    let list = [(); 3].map(|()| setup.guest.page_range(2 * PAGE as usize));
    // Neighbours in another order, and a blob that ends within the last piece.
    let list = [list[1], list[0], list[2]];
    let whole: Vec<u8> = (0..6 * PAGE).map(|at| (at % 251) as u8).collect();
    for ((address, len), bytes) in list.into_iter().zip(whole.chunks(2 * PAGE as usize)) {
        assert_eq!(len as usize, bytes.len());
        setup.guest.ram().write(vm_memory::GuestAddress(address), bytes);
    }
    setup.ok(&Request::guest_blob(7, 5 * PAGE, &list));
    let guest = &setup.guest;
    for (start, end) in
        [(0, 5 * PAGE), (2 * PAGE - 2, 2 * PAGE + 2), (PAGE + 7, 4 * PAGE + 1), (4 * PAGE + 5, 5 * PAGE)]
    {
        let bytes = read(guest, 7, start..end).expect("read");
        assert!(bytes == whole[start as usize..end as usize], "bytes {start:#x}..{end:#x}");
    }
    out_of_range(read(guest, 7, 0..5 * PAGE + 1), 5 * PAGE);
    setup.guest.ram().write(vm_memory::GuestAddress(list[2].0), &[0x33]);
    let after = whole[4 * PAGE as usize + 1];
    assert_eq!(read(&setup.guest, 7, 4 * PAGE..4 * PAGE + 2).expect("read"), [0x33, after]);
    setup.ok(&Request::detach_backing(7));
    out_of_range(read(&setup.guest, 7, 0..1), 0);
    assert_eq!(read(&setup.guest, 7, ..).expect("read"), [0; 0]);
}

#[test]
fn a_truncated_file_is_an_error_and_never_a_signal() {
    let mut setup = Setup::new();
    let file = memfd("read-truncated", 4 * PAGE);
    setup.blob(7, &file, 4 * PAGE);
    setup.guest.map(7, 0);
    ftruncate(&file, PAGE + 10).expect("truncated");
    let guest = &setup.guest;
    out_of_range(read(guest, 7, 0..4 * PAGE), 2 * PAGE);
    out_of_range(read(guest, 7, 3 * PAGE..4 * PAGE), 2 * PAGE);
    // The rest of the last page is zero, as it is in a mapping.
    put(&file, PAGE + 9, 0x55);
    let rest = read(guest, 7, PAGE..2 * PAGE).expect("read");
    assert_eq!((rest[0], rest[9], rest.len()), (2, 0x55, PAGE as usize));
    assert!(rest[10..].iter().all(|byte| *byte == 0));
    assert_eq!(read(guest, 7, PAGE + 100..PAGE + 103).expect("read"), [0; 3]);
    assert_eq!(pages(read(guest, 7, ..)), [1, 2]);
    ftruncate(&file, 0).expect("truncated");
    out_of_range(read(guest, 7, 0..1), 0);
    ftruncate(&file, 4 * PAGE).expect("grown");
    assert_eq!(pages(read(guest, 7, ..)), [0; 4]);
}

#[test]
fn a_file_that_is_truncated_while_it_is_read_is_never_a_signal() {
    let mut setup = Setup::new();
    let len = 64 * PAGE;
    let file = memfd("read-race", len);
    setup.blob(7, &file, len);
    for round in 0..50 {
        // The last of them wait for the first, and find another file than when they began.
        let replies: Vec<_> = (0..12).map(|_| setup.guest.device().read_blob(7, 0..len)).collect();
        setup.guest.settle();
        ftruncate(&file, (round % 3) * PAGE).expect("truncated");
        for reply in replies {
            match reply.wait().expect("a device") {
                Ok(bytes) => assert_eq!(bytes.len() as u64, len),
                Err(error) => assert!(matches!(error, ReadError::OutOfRange { .. }), "{error}"),
            }
        }
        ftruncate(&file, len).expect("grown");
    }
}

#[test]
fn a_buffer_that_must_not_be_written_is_read_all_the_same_and_without_the_guests_copies() {
    let mut setup = Setup::new();
    let sealed = memfd("read-sealed", PAGE);
    fcntl_add_seals(&sealed, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW).expect("sealed");
    let writable = memfd("read-only", PAGE);
    setup.blob(7, &sealed, PAGE);
    setup.blob(8, &read_only(&writable), PAGE);
    setup.guest.map(7, 0);
    setup.guest.map(8, PAGE);
    for page in [0, PAGE] {
        setup.window.write(page, &[0xee]).expect("a guest write");
    }
    assert_eq!([setup.byte(0), setup.byte(PAGE)], [0xee; 2]);
    assert_eq!((pages(read(&setup.guest, 7, ..)), pages(read(&setup.guest, 8, ..))), (vec![1], vec![1]));
    put(&writable, 0, 0x44);
    assert_eq!(pages(read(&setup.guest, 8, ..)), [0x44]);
}

#[test]
fn a_blob_larger_than_its_file_is_never_read_beyond_the_files_last_page() {
    let mut setup = Setup::with(Builder::new().blob_alignment(4 * PAGE));
    let file = memfd("read-short", PAGE + 100);
    setup.blob(7, &file, 4 * PAGE);
    assert_eq!(pages(read(&setup.guest, 7, ..)), [1, 2]);
    out_of_range(read(&setup.guest, 7, 0..4 * PAGE), 2 * PAGE);
}

/// Sends commands one after another until the reply is there; how many were answered before it.
fn commands_beside(guest: &mut Guest, mut reply: Reply<Answer>) -> (u64, Answer) {
    for answered in 0.. {
        if let Some(answer) = (&mut reply).now_or_never() {
            return (answered, answer.expect("a device"));
        }
        guest.settle();
    }
    unreachable!("nobody counts so far")
}

#[test]
fn a_large_read_never_holds_up_the_guests_commands() {
    let len = 64 << 20;
    let patient = Limits { deadline: Duration::from_secs(60), ..Limits::default() };
    let mut setup = Setup::on(HostWindow::new(len).expect("a window"), Builder::new().limits(patient));
    let file: OwnedFd = memfd("read-large", PAGE);
    ftruncate(&file, len as u64).expect("grown");
    put(&file, len as u64 - 1, 0x42);
    setup.blob(7, &file, len as u64);
    let reply = setup.guest.device().read_blob(7, ..);
    let (answered, bytes) = commands_beside(&mut setup.guest, reply);
    let bytes = bytes.expect("read");
    assert_eq!((bytes.len(), bytes[0], bytes[len - 1]), (len, 1, 0x42));
    assert!(answered >= 20, "{answered} commands were answered beside a read of 64 MiB");
}

#[test]
fn a_large_read_of_guest_memory_never_holds_up_the_guests_commands() {
    let len = 32 << 20;
    let window = HostWindow::new(1 << 20).expect("a window");
    let builder = Builder::new().window(window.clone());
    let options = GuestOptions { ram: 64 << 20, ..GuestOptions::default() };
    let mut guest = Guest::with_options(builder, options);
    let (address, piece) = guest.page_range(len);
    guest.ram().write(vm_memory::GuestAddress(address + len as u64 - 1), &[0x42]);
    guest.command(&Request::guest_blob(7, len as u64, &[(address, piece)])).ok();
    let reply = guest.device().read_blob(7, ..);
    let (answered, bytes) = commands_beside(&mut guest, reply);
    let bytes = bytes.expect("read");
    assert_eq!((bytes.len(), bytes[0], bytes[len - 1]), (len, 0, 0x42));
    assert!(answered >= 20, "{answered} commands were answered beside a read of 32 MiB");
}

#[test]
fn a_reset_never_leaves_a_read_in_guest_memory() {
    let options = GuestOptions { ram: 64 << 20, ..GuestOptions::default() };
    let mut guest = Guest::powered_off(Builder::new().spawn().expect("a device"), options);
    let owners = Arc::strong_count(&guest.ram().space());
    for _ in 0..5 {
        guest.activate();
        let range = guest.page_range(32 << 20);
        guest.command(&Request::guest_blob(7, 32 << 20, &[range])).ok();
        let reply = guest.device().read_blob(7, ..);
        guest.reset();
        assert_eq!(Arc::strong_count(&guest.ram().space()), owners, "guest memory is held after a reset");
        let answer = reply.wait().expect("a device");
        assert!(matches!(&answer, Ok(_) | Err(ReadError::Reset)), "{answer:?}");
        guest.ram().free(vm_memory::GuestAddress(range.0), range.1 as usize);
    }
}

#[test]
fn many_reads_at_once_never_mix_up_their_blobs_and_leave_nothing_open() {
    const NAME: &str = "read-many";
    let mut setup = Setup::new();
    let blobs = 1..=16u32;
    for blob in blobs.clone() {
        let file = memfd(NAME, PAGE);
        put(&file, 0, blob as u8);
        setup.blob(blob, &file, PAGE);
    }
    let read = |blob| (blob, setup.guest.device().read_blob(blob, 0..1));
    let replies: Vec<_> = (0..16).flat_map(|_| blobs.clone().map(read)).collect();
    for (blob, reply) in replies {
        assert_eq!(reply.wait().expect("a device").expect("read"), [blob as u8]);
    }
    assert_eq!(census::fds_named(NAME), 16);
}

#[test]
fn reads_never_hold_more_descriptors_than_the_limit_and_give_them_back() {
    // The context has one, the blob another.
    let mut setup = Setup::with(Builder::new().limits(Limits { fds: 3, ..Limits::default() }));
    let file = memfd("read-limit", PAGE);
    setup.blob(7, &file, PAGE);
    for _ in 0..5 {
        assert_eq!(pages(read(&setup.guest, 7, ..)), [1]);
    }
    let _last = setup.offer(&file);
    let refused = read(&setup.guest, 7, ..);
    assert!(matches!(refused, Err(ReadError::Limit { limit: 3 })), "{refused:?}");
}
