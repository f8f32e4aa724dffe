//! The driver against the device side of `virtio_queue`: what it lays out arrives, what comes
//! back is checked, and neither side sleeps through the other's wish.

mod faults;
mod notifications;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use super::*;

const PLAIN: RingFeatures = RingFeatures { event_idx: false, indirect: false };
const FULL: RingFeatures = RingFeatures { event_idx: true, indirect: true };

/// A device that answers a request with its bytes in reverse, as many as there is room for.
struct Mirror {
    ram: GuestRam,
    queue: Queue,
}

impl Mirror {
    fn of(driver: &DriverQueue) -> Self {
        let queue = driver.device_queue();
        assert!(queue.is_valid(driver.ram.memory()));
        Self { ram: driver.ram.clone(), queue }
    }

    /// Takes one chain: its head and its request, and answers in its room. Not yet used.
    fn pop(&mut self) -> Option<(u16, Vec<u8>, u32)> {
        let memory = self.ram.memory();
        let chain = self.queue.iter(memory).expect("a sound ring").next()?;
        let head = chain.head_index();
        let mut request = Vec::new();
        for buffer in chain.clone().readable() {
            request.extend(self.ram.read(buffer.addr(), buffer.len() as usize));
        }
        let answer: Vec<u8> = request.iter().rev().copied().collect();
        let mut rest = &answer[..];
        for buffer in chain.writable() {
            let (piece, after) = rest.split_at(rest.len().min(buffer.len() as usize));
            self.ram.write(buffer.addr(), piece);
            rest = after;
        }
        let written = answer.len() - rest.len();
        Some((head, request, written as u32))
    }

    fn give_back(&mut self, head: u16, written: u32) {
        self.queue.add_used(self.ram.memory(), head, written).expect("a head of the ring");
    }

    /// Answers one chain and tells its request.
    fn serve(&mut self) -> Option<Vec<u8>> {
        let (head, request, written) = self.pop()?;
        self.give_back(head, written);
        Some(request)
    }

    fn needs_interrupt(&mut self) -> bool {
        self.queue.needs_notification(self.ram.memory()).expect("rings in RAM")
    }

    /// Asks to be kicked; true if chains are waiting already.
    fn enable_kicks(&mut self) -> bool {
        self.queue.enable_notification(self.ram.memory()).expect("rings in RAM")
    }
}

fn driver(size: u16, features: RingFeatures) -> (GuestRam, DriverQueue) {
    let ram = GuestRam::new(1 << 20);
    let queue = DriverQueue::new(ram.clone(), size, features);
    (ram, queue)
}

fn reversed(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().rev().copied().collect()
}

#[test]
fn every_layout_carries_the_same_bytes() {
    let (ram, mut driver) = driver(128, FULL);
    let mut device = Mirror::of(&driver);
    let free = ram.free_bytes();
    let request: Vec<u8> = (0..56).collect();
    let cuts = Pieces::Cut(vec![7, 1, 30]);
    let layouts = [
        Layout::default(),
        Layout::direct(),
        Layout::direct().readable(cuts.clone()),
        Layout::direct().writable(cuts.clone()),
        Layout::bytewise(),
        Layout::indirect(),
        Layout::indirect().readable(Pieces::Each(3)).writable(cuts),
        Layout::mixed(0),
        Layout::mixed(1),
        Layout::mixed(5).readable(Pieces::Each(8)),
        Layout::mixed(99),
    ];
    // As much room as the answer needs, less, more, and none.
    for (layout, room) in layouts.iter().flat_map(|layout| [56, 13, 57].map(|r| (layout, r))).chain([
        (&layouts[0], 0),
        (&layouts[1], 0),
        (&layouts[5], 0),
    ]) {
        let token = driver.add(&request, room, layout).expect("room");
        assert!(driver.publish(), "{layout:?}");
        assert_eq!(device.serve().as_ref(), Some(&request), "{layout:?}");
        assert!(!device.enable_kicks());
        let used = driver.poll_used().expect("an answer");
        assert_eq!(used.token, token);
        assert_eq!(used.response, reversed(&request)[..room.min(56)]);
        assert_eq!(driver.poll_used(), None);
    }
    assert_eq!(ram.free_bytes(), free, "guest memory leaked");
    assert_eq!(driver.free.len(), 128, "descriptors leaked");
}

#[test]
fn a_chain_lies_where_its_layout_says() {
    let (_ram, mut driver) = driver(16, FULL);
    let mut in_ring = |layout: &Layout| {
        let before = driver.free.len();
        driver.add(b"ask", 3, layout).expect("room");
        before - driver.free.len()
    };
    assert_eq!(in_ring(&Layout::default()), 1, "as Linux does");
    assert_eq!(in_ring(&Layout::direct()), 2);
    assert_eq!(in_ring(&Layout::indirect()), 1);
    assert_eq!(in_ring(&Layout::mixed(1)), 2);
    assert_eq!(in_ring(&Layout::mixed(2)), 2, "one is left for the table");
    assert_eq!(in_ring(&Layout::bytewise()), 6);
}

#[test]
fn bytes_the_device_only_claims_show_as_unwritten() {
    let (_ram, mut driver) = driver(4, PLAIN);
    let mut device = Mirror::of(&driver);
    driver.add(b"ab", 4, &Layout::default()).expect("room");
    assert!(driver.publish());
    let (head, ..) = device.pop().expect("a chain");
    device.give_back(head, 4);
    let used = driver.poll_used().expect("an answer");
    assert_eq!(used.response, [b'b', b'a', UNWRITTEN, UNWRITTEN]);
}

#[test]
fn the_callers_own_buffers_are_used_in_place_and_kept() {
    let (ram, mut driver) = driver(8, FULL);
    let mut device = Mirror::of(&driver);
    let (ask, answer) = (ram.alloc(8, 1), ram.alloc(64, 1));
    let free = ram.free_bytes();
    ram.write(ask, b"12345678");
    let segments =
        [Segment::readable(GuestAddress(ask.0 + 4), 4), Segment::readable(ask, 4), Segment::writable(answer, 64)];
    for table in [Table::Direct, Table::Indirect, Table::Mixed { direct: 2 }] {
        driver.add_scattered(&segments, table).expect("room");
        assert!(driver.publish());
        assert_eq!(device.serve().expect("a chain"), b"56781234");
        device.enable_kicks();
        assert_eq!(driver.poll_used().expect("an answer").response, b"43218765");
        assert_eq!(ram.read(answer, 8), b"43218765");
    }
    assert_eq!(ram.free_bytes(), free);
}

#[test]
fn nothing_is_visible_before_publish() {
    let (_ram, mut driver) = driver(8, PLAIN);
    let mut device = Mirror::of(&driver);
    assert!(!driver.publish(), "nothing to kick for");
    driver.add(b"one", 3, &Layout::default()).expect("room");
    driver.add(b"two", 3, &Layout::default()).expect("room");
    assert_eq!((driver.outstanding(), device.serve()), (2, None));
    assert!(driver.publish());
    assert_eq!(device.serve().expect("a chain"), b"one");
    assert_eq!(device.serve().expect("a chain"), b"two");
    assert_eq!(driver.outstanding(), 2);
    driver.poll_used().expect("an answer");
    driver.poll_used().expect("an answer");
    assert_eq!(driver.outstanding(), 0);
}

#[test]
fn a_full_ring_takes_nothing() {
    let (ram, mut driver) = driver(4, PLAIN);
    let mut device = Mirror::of(&driver);
    driver.add(b"x", 2, &Layout::default()).expect("room");
    driver.add(b"x", 0, &Layout::default()).expect("room");
    let free = ram.free_bytes();
    let full = Err(QueueFull { needed: 2, free: 1 });
    assert_eq!(driver.add(b"x", 2, &Layout::default()), full);
    assert_eq!(driver.add_misbehaving(Misbehaviour::Loop, b"x", 2), Err(QueueFull { needed: 2, free: 1 }));
    assert_eq!(ram.free_bytes(), free);
    assert!(driver.publish());
    device.serve().expect("a chain");
    driver.poll_used().expect("an answer");
    driver.add(b"x", 2, &Layout::default()).expect("room again");
}

#[test]
fn indices_wrap_and_answers_come_in_any_order() {
    for features in [PLAIN, FULL] {
        let (ram, mut driver) = driver(16, features);
        let mut device = Mirror::of(&driver);
        let free = ram.free_bytes();
        let layouts = [Layout::direct(), Layout::default()];
        let mut sent = 0_u32;
        while sent < 70_000 {
            let mut tokens = Vec::new();
            for _ in 0..=sent % 7 {
                let layout = &layouts[sent as usize % 2];
                let token = driver.add(&sent.to_le_bytes(), 4, layout).expect("room");
                tokens.push((token, reversed(&sent.to_le_bytes())));
                sent += 1;
            }
            let _kick = driver.publish();
            let mut popped: Vec<_> = std::iter::from_fn(|| device.pop()).collect();
            if sent.is_multiple_of(3) {
                popped.reverse();
                tokens.reverse();
            }
            for (head, _, written) in popped {
                device.give_back(head, written);
            }
            for (token, response) in tokens {
                let used = driver.poll_used().expect("an answer");
                assert_eq!((used.token, used.response), (token, response));
            }
            assert_eq!((driver.poll_used(), driver.outstanding()), (None, 0));
        }
        assert_eq!(ram.free_bytes(), free);
    }
}

#[test]
fn a_reset_starts_anew_and_leaks_nothing() {
    let (ram, mut driver) = driver(8, FULL);
    let free = ram.free_bytes();
    for round in 0..5 {
        let mut device = Mirror::of(&driver);
        for _ in 0..3 {
            driver.add(b"lost", 9, &Layout::mixed(1)).expect("room");
        }
        assert!(driver.publish(), "round {round}");
        device.serve().expect("a chain");
        driver.poll_used().expect("an answer");
        driver.add(b"never", 9, &Layout::default()).expect("room");
        driver.reset();
        assert_eq!((driver.outstanding(), driver.poll_used()), (0, None));
        assert_eq!((ram.free_bytes(), driver.free.len()), (free, 8));
    }
}

#[test]
fn a_prepared_chain_is_given_again_and_again() {
    let (ram, mut driver) = driver(8, FULL);
    let free = ram.free_bytes();
    let layout = Layout::direct().readable(Pieces::Each(2));
    let fixed = driver.prepare(b"fixed", 8, &layout).expect("room");
    let other = driver.prepare(b"0000", 4, &Layout::default()).expect("room");
    let taken = ram.free_bytes();
    let mut device = Mirror::of(&driver);
    for round in 0..10_000_u32 {
        driver.rewrite(&other, &round.to_le_bytes());
        driver.add_prepared(&fixed);
        driver.add_prepared(&other);
        let _kick = driver.publish();
        assert_eq!(device.serve().expect("a chain"), b"fixed");
        assert_eq!(device.serve().expect("a chain"), round.to_le_bytes());
        assert_eq!(driver.poll_used_fast(), Some((fixed.head(), 5)));
        assert_eq!(driver.prepared_response(&fixed, 5), b"dexif");
        let used = driver.poll_used().expect("an answer");
        assert_eq!(used.response, reversed(&round.to_le_bytes()));
        assert_eq!(driver.poll_used_fast(), None);
        if round % 1_000 == 0 {
            driver.reset();
            device = Mirror::of(&driver);
        }
    }
    assert_eq!(ram.free_bytes(), taken);
    driver.add(b"plain", 5, &Layout::default()).expect("room");
    let _kick = driver.publish();
    device.serve().expect("a chain");
    assert_eq!(driver.poll_used_fast().map(|(_, written)| written), Some(5));
    driver.retire(fixed);
    driver.retire(other);
    assert_eq!((ram.free_bytes(), driver.free.len()), (free, 8));
}

#[test]
#[should_panic(expected = "has not come back yet")]
fn a_prepared_chain_is_outstanding_once_at_most() {
    let (_ram, mut driver) = driver(8, PLAIN);
    let prepared = driver.prepare(b"x", 1, &Layout::default()).expect("room");
    driver.add_prepared(&prepared);
    driver.add_prepared(&prepared);
}
