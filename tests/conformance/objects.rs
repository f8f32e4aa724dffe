//! Items 35 to 37: capability sets, and resources under names of their own.

use std::collections::HashSet;

use rustix::fs::fstat;
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, OK_CAPSET, OK_CAPSET_INFO, OK_RESOURCE_UUID,
};
use virtio_gpu_uring::testing::{Guest, Request};
use virtio_gpu_uring::{Builder, Exported, ExportedMemory};

use crate::honest::honest;
use crate::kit::{PAGE, done, memfd, offer, refused, words};

/// `num_capsets` of the configuration space.
fn capsets(guest: &Guest) -> u32 {
    let mut count = [0; 4];
    guest.device().read_config(12, &mut count);
    u32::from_le_bytes(count)
}

/// GET_CAPSET_INFO: id, highest version, size, padding.
#[track_caller]
fn info(guest: &mut Guest, index: u32) -> [u32; 4] {
    let answer = guest.command(&Request::capset_info(index));
    assert_eq!((answer.kind(), answer.written), (OK_CAPSET_INFO, 40));
    words(&answer.ok()).try_into().expect("four words")
}

#[test]
fn spec_35_an_index_never_names_a_capset_that_is_not_there_nor_leaves_one_out() {
    let (renderer, _watch) = honest();
    for (builder, expected) in [
        (Builder::new(), vec![[5, 1, 16, 0]]),
        (Builder::new().renderer(renderer), vec![[2, 3, 10, 0], [4, 0, 300, 0], [5, 1, 16, 0]]),
    ] {
        let mut guest = Guest::start(builder);
        let count = capsets(&guest);
        let mut found: Vec<_> = (0..count).map(|index| info(&mut guest, index)).collect();
        assert!(found.iter().all(|[id, ..]| (1..=6).contains(id)), "a capset that the specification does not list");
        found.sort_unstable();
        assert_eq!(found, expected);
        for index in [count, count + 1, 5, 64, 0x8000_0000, u32::MAX] {
            refused(&mut guest, &Request::capset_info(index), ERR_INVALID_PARAMETER);
        }
    }
}

#[test]
fn spec_36_a_capset_is_never_another_one_or_of_another_length_than_was_said() {
    let (renderer, _watch) = honest();
    let mut guest = Guest::start(Builder::new().renderer(renderer));
    for index in 0..capsets(&guest) {
        let [id, max_version, size, _] = info(&mut guest, index);
        for version in 0..=max_version {
            let answer = guest.command(&Request::capset(id, version, size as usize));
            assert_eq!((answer.kind(), answer.written), (OK_CAPSET, 24 + size));
            let data = answer.ok();
            match id {
                2 => assert_eq!(data, b"the second"),
                4 => assert_eq!(data, [4; 300]),
                _ => assert_eq!(words(&data)[0], 1, "cross-domain version 1"),
            }
        }
        for version in [max_version + 1, 1 << 31, u32::MAX] {
            refused(&mut guest, &Request::capset(id, version, 400), ERR_INVALID_PARAMETER);
        }
        // More room than it takes is fine, less is not.
        assert_eq!(guest.command(&Request::capset(id, 0, 400)).written, 24 + size);
        refused(&mut guest, &Request::capset(id, 0, size as usize - 1), ERR_INVALID_PARAMETER);
    }
    for id in [0, 1, 3, 6, 7, 64, 0x105, u32::MAX] {
        refused(&mut guest, &Request::capset(id, 0, 400), ERR_INVALID_PARAMETER);
    }
}

#[track_caller]
fn uuid(guest: &mut Guest, resource: u32) -> [u8; 16] {
    let answer = guest.command(&Request::assign_uuid(resource));
    assert_eq!((answer.kind(), answer.written), (OK_RESOURCE_UUID, 40));
    answer.ok().try_into().expect("16 bytes")
}

#[track_caller]
fn exported(guest: &Guest, uuid: [u8; 16]) -> Option<Exported> {
    guest.device().exported(uuid).wait().expect("a device").expect("descriptors")
}

#[test]
fn spec_37_a_uuid_is_always_one_of_version_4_and_never_given_twice() {
    let mut guest = Guest::start(Builder::new());
    let mut seen = HashSet::new();
    for id in 1..=64 {
        done(&mut guest, &Request::create_2d(id, 1, 1, 1));
        let uuid = uuid(&mut guest, id);
        assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (4, 0b10), "version and variant of {uuid:x?}");
        assert!(seen.insert(uuid), "a UUID was given twice");
        assert!(exported(&guest, uuid).is_some_and(|exported| exported.resource == id));
    }
    // Random bits, and not a number in another dress: of 64, no bit is always the same.
    let ones = seen.iter().fold([0u8; 16], |all, uuid| std::array::from_fn(|at| all[at] | uuid[at]));
    let both = seen.iter().fold([0xff; 16], |all, uuid| std::array::from_fn(|at| all[at] & uuid[at]));
    for at in (0..16).filter(|at| ![6, 8].contains(at)) {
        assert_eq!((ones[at], both[at]), (0xff, 0), "byte {at}");
    }
    // A resource keeps its name.
    let first = uuid(&mut guest, 1);
    assert!(seen.contains(&first));
    assert_eq!(uuid(&mut guest, 1), first);
}

#[test]
fn spec_37_a_name_never_outlives_its_resource_nor_a_reset() {
    let mut guest = Guest::start(Builder::new());
    for id in [0, 1, u32::MAX] {
        refused(&mut guest, &Request::assign_uuid(id), ERR_INVALID_RESOURCE_ID);
    }
    done(&mut guest, &Request::create_2d(1, 1, 1, 1));
    done(&mut guest, &Request::create_2d(2, 1, 1, 1));
    let (first, second) = (uuid(&mut guest, 1), uuid(&mut guest, 2));
    done(&mut guest, &Request::unref(1));
    assert!(exported(&guest, first).is_none());
    done(&mut guest, &Request::create_2d(1, 1, 1, 1));
    assert!(exported(&guest, first).is_none(), "the id's next bearer has its predecessor's name");
    assert_ne!(uuid(&mut guest, 1), first);
    assert!(exported(&guest, second).is_some());
    guest.reset();
    assert!(exported(&guest, second).is_none());
    guest.activate();
    assert!(exported(&guest, second).is_none());
    assert!(exported(&guest, [0; 16]).is_none());
}

#[test]
fn spec_37_a_name_never_leads_to_other_memory_than_its_resource_is_made_of() {
    let mut guest = Guest::start(Builder::new());
    done(&mut guest, &Request::ctx_create(1, 5));
    done(&mut guest, &Request::create_2d(1, 1, 8, 8));
    let (first, second) = (guest.page_range(2 * PAGE as usize), guest.page_range(PAGE as usize));
    done(&mut guest, &Request::guest_blob(2, 2 * PAGE, &[(second.0, 4096), (first.0, 8192)]));
    done(&mut guest, &Request::guest_blob(3, PAGE, &[]));
    let file = memfd("spec-37", &[3; 16]);
    let node = fstat(&file).expect("a file").st_ino;
    let id = offer(&guest, file);
    done(&mut guest, &Request::host_blob(1, 4, id, PAGE));

    let mut memory = |id| {
        let uuid = uuid(&mut guest, id);
        exported(&guest, uuid).expect("an exported resource").memory
    };
    assert!(matches!(memory(1), ExportedMemory::Private));
    let ExportedMemory::Guest(pieces) = memory(2) else { panic!("a blob of guest memory") };
    // Of the list, no more than the blob is long.
    assert_eq!(pieces, [(second.0, 4096), (first.0, 4096)]);
    assert!(matches!(memory(3), ExportedMemory::Guest(pieces) if pieces.is_empty()));
    let ExportedMemory::Host(buffer) = memory(4) else { panic!("a host buffer") };
    assert_eq!(fstat(&buffer).expect("a file").st_ino, node);
    // It is a descriptor of its own.
    done(&mut guest, &Request::unref(4));
    let mut bytes = [0; 16];
    rustix::io::pread(&buffer, &mut bytes, 0).expect("read");
    assert_eq!(bytes, [3; 16]);
}
