//! What must not pass unseen: a device that breaks the exactly-once rule, and misbehaviour of the
//! driver that is not what its name says.

use virtio_queue::desc::split;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::*;

/// A driver with one chain at the device, and that chain's head.
fn one_in_flight() -> (DriverQueue, Mirror, u16) {
    let (_ram, mut driver) = driver(8, FULL);
    let mut device = Mirror::of(&driver);
    driver.add(b"x", 3, &Layout::direct()).expect("room");
    let _kick = driver.publish();
    let (head, ..) = device.pop().expect("a chain");
    (driver, device, head)
}

#[test]
#[should_panic(expected = "head 0 came back twice: chain 1 was its last")]
fn a_head_that_comes_back_twice_is_found() {
    let (mut driver, mut device, head) = one_in_flight();
    device.give_back(head, 1);
    device.give_back(head, 1);
    assert!(driver.poll_used().is_some());
    driver.poll_used();
}

#[test]
#[should_panic(expected = "head 5 came back but was never given")]
fn a_head_that_was_never_given_is_found() {
    let (mut driver, mut device, _head) = one_in_flight();
    device.give_back(5, 1);
    driver.poll_used_fast();
}

#[test]
#[should_panic(expected = "came back but was never given")]
fn the_middle_of_a_chain_is_not_a_head() {
    let (mut driver, mut device, head) = one_in_flight();
    device.give_back(head + 1, 1);
    driver.poll_used();
}

#[test]
#[should_panic(expected = "head 65536 came back but was never given")]
fn an_id_is_not_cut_to_sixteen_bits() {
    let (mut driver, mut device, head) = one_in_flight();
    device.give_back(head, 1);
    let entry = GuestAddress(device.queue.used_ring() + 4);
    let id = 65_536_u32.to_le_bytes();
    device.ram.memory().write_slice(&id, entry).expect("in RAM");
    driver.poll_used();
}

#[test]
#[should_panic(expected = "came back before chain 2 was published")]
fn an_answer_before_the_question_is_found() {
    let (mut driver, mut device, head) = one_in_flight();
    driver.add(b"x", 3, &Layout::direct()).expect("room");
    device.give_back(head + 2, 0);
    driver.poll_used();
}

#[test]
#[should_panic(expected = "it wrote 4 bytes, but there is room for 3")]
fn a_device_that_writes_more_than_there_is_room_is_found() {
    let (mut driver, mut device, head) = one_in_flight();
    device.give_back(head, 4);
    driver.poll_used();
}

#[test]
#[should_panic(expected = "never given")]
fn an_answer_from_before_a_reset_is_found() {
    let (mut driver, mut device, head) = one_in_flight();
    driver.reset();
    device.give_back(head, 1);
    driver.poll_used();
}

/// What a device learns of a buffer: its length, whether it is writable, whether it leaves RAM.
fn told(ram: &GuestRam, buffer: &split::Descriptor) -> (u32, bool, bool) {
    // A few bytes do: no buffer here but the 4 GiB is longer, and that is never seen.
    let mut bytes = vec![0; buffer.len().min(64) as usize];
    let outside = ram.memory().read_slice(&mut bytes, buffer.addr()).is_err();
    (buffer.len(), buffer.is_write_only(), outside)
}

#[test]
fn each_misbehaviour_breaks_the_chain_it_names() {
    let request = *b"request";
    for how in Misbehaviour::ALL {
        let (ram, mut driver) = driver(8, PLAIN);
        let free = ram.free_bytes();
        let mut device = Mirror::of(&driver);
        let token = driver.add_misbehaving(how, &request, 9).expect("room");
        assert!(driver.publish());
        let memory = ram.memory();
        let chain = device.queue.iter(memory).expect("sound").next();
        let buffers: Vec<_> = chain.expect("a chain").collect();
        let seen: Vec<_> = buffers.iter().map(|buffer| told(&ram, buffer)).collect();
        // Where the chain would go on, which `virtio_queue` does not tell from its end.
        let last = buffers.last().filter(|last| last.has_next());
        let goes_on = last.map(|last| last.next());
        let good = [(7, false, false), (9, true, false)];
        match how {
            // Cut off at the table's size, so the two are seen over and over.
            Misbehaviour::Loop => assert_eq!(seen, good.repeat(4)),
            Misbehaviour::NextOutOfRange => assert_eq!((&seen[..], goes_on), (&good[..], Some(8))),
            Misbehaviour::IndirectLoop => assert_eq!((&seen[..], goes_on), (&good[..], Some(0))),
            Misbehaviour::IndirectNextOutOfRange => {
                assert_eq!((&seen[..], goes_on), (&good[..], Some(2)));
            }
            Misbehaviour::IndirectUnnegotiated => assert_eq!(seen, good),
            Misbehaviour::IndirectWithNext => {
                let flags = driver.ring.descriptor_at(token.head()).0 + 12;
                let both = [(F_INDIRECT | F_NEXT) as u8, 0];
                assert_eq!(ram.read(GuestAddress(flags), 2), both);
                assert_eq!(seen, good);
            }
            Misbehaviour::IndirectInsideIndirect => assert_eq!(seen, good[..1]),
            Misbehaviour::IndirectOddLength | Misbehaviour::IndirectEmpty | Misbehaviour::IndirectOutsideRam => {
                assert_eq!(seen, [], "{how:?}")
            }
            Misbehaviour::ZeroLength => {
                let lengths: Vec<_> = seen.iter().map(|&(len, ..)| len).collect();
                assert_eq!(lengths, [0, 7, 0, 9, 0]);
            }
            Misbehaviour::RequestOutsideRam | Misbehaviour::RequestPastRamEnd | Misbehaviour::AddressWraps => {
                assert_eq!(seen, [(7, false, true), good[1]], "{how:?}");
            }
            Misbehaviour::ResponseOutsideRam | Misbehaviour::ResponsePastRamEnd => {
                assert_eq!(seen, [good[0], (9, true, true)], "{how:?}");
            }
            Misbehaviour::ReadableAfterWritable => assert_eq!(seen, [good[1], good[0]]),
            Misbehaviour::LongerThan4Gib => assert_eq!(seen, good[..1], "4 GiB is refused"),
        }
        device.give_back(token.head(), 0);
        assert_eq!(driver.poll_used().expect("an answer").token, token);
        assert_eq!((ram.free_bytes(), driver.free.len()), (free, 8), "{how:?}");
    }
}

#[test]
fn a_raw_head_may_come_back_once() {
    let (mut driver, mut device, head) = one_in_flight();
    let _kick = driver.publish_raw_head(head);
    let _kick = driver.publish_raw_head(9);
    device.give_back(head, 1);
    device.give_back(head, 1);
    assert_eq!(driver.poll_used().expect("the chain").response.len(), 1);
    let stray = driver.poll_used().expect("the stray");
    assert_eq!((stray.token.head(), stray.response.len()), (head, 0));
    let memory = device.ram.space();
    let mut heads = device.queue.iter(&*memory).expect("a sound index");
    assert_eq!(heads.next().expect("the stray").head_index(), head);
    assert_eq!(heads.next().expect("the outlaw").head_index(), 9);
}

#[test]
fn a_broken_index_is_seen_by_the_device_until_reset() {
    let (mut driver, mut device, _head) = one_in_flight();
    let _kick = driver.break_avail_index(9);
    let memory = device.ram.space();
    assert!(device.queue.iter(&*memory).is_err(), "9 of 8 are available");
    device.give_back(3, 0);
    assert!(driver.poll_used().is_some(), "no head is unexpected now");
    driver.reset();
    let mut device = Mirror::of(&driver);
    driver.add(b"x", 1, &Layout::default()).expect("room");
    assert!(driver.publish());
    assert_eq!(device.serve().expect("a chain"), b"x");
    let _kick = driver.break_avail_index(u16::MAX);
    assert!(device.queue.iter(&*memory).is_err(), "the index went back");
}
