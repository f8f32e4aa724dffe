//! The bridge between a scripted channel and a client in the test's hands.

use std::io::Write;

use crate::script::{
    Call, Stage, add_mem, create_object, datum, event, file, int, item_of, memory, packet, raw, set_activation, text,
    wait, wake,
};
use crate::wire::{CLIENT_NODE, Field, Stream};
use crate::{MAX_DATA, Message};

/// The places of the eventfds in TRANSPORT: to wait for, to write to. Some versions have the node's id before them.
fn transport(object: u32, places: [i64; 2], with_node: bool) -> Vec<u8> {
    let node = if with_node { vec![int(42)] } else { vec![] };
    let rest = vec![file(places[0]), file(places[1]), int(0), int(0), int(2312)];
    packet(object, 0, 2, &[node, rest].concat())
}

#[test]
fn no_cut_tears_a_message_or_parts_it_from_its_descriptors() {
    let stage = Stage::with_nodes(&[4]);
    let packets =
        [packet(2, 1, 0, &[text(b"news")]), add_mem(0), transport(4, [1, 0], false), packet(3, 9, 0, &[]), add_mem(1)];
    let all = packets.concat();
    for cut in 0..=all.len() {
        let first = 10 * cut as u32;
        let ids = [memory(first, 2312), event(first + 1), event(first + 2), memory(first + 3, 256)];
        stage.receive(&all[..cut], &ids);
        stage.receive(&all[cut..], &[]);
        let seen = packets.each_ref().map(|packet| {
            let (bytes, files) = stage.message();
            assert_eq!(bytes, *packet, "cut at {cut}");
            files
        });
        assert_eq!(seen.each_ref().map(Vec::len), [0, 1, 2, 0, 1], "cut at {cut}");
        assert_eq!((item_of(&seen[1][0]), item_of(&seen[4][0])), (first, first + 3), "cut at {cut}");
        assert_eq!(stage.call(), Call::Buffer(first, 2312));
        assert_eq!(stage.call(), Call::Watch(first + 2));
        assert_eq!(stage.call(), Call::Buffer(first + 3, 256));
        wake(&seen[2][0], 5);
        assert_eq!(stage.call(), Call::Write(first + 1, 5), "cut at {cut}");
    }
    assert!(stage.client_leaves().is_ok());
}

#[test]
fn seventeen_descriptors_at_once_are_not_mixed_up() {
    let stage = Stage::new();
    let ids: Vec<_> = (100..117).map(|id| memory(id, 4096)).collect();
    let of_buffers: Vec<u8> = (0..17).flat_map(add_mem).collect();
    let mut pieces = of_buffers.chunks(100);
    stage.receive(pieces.next().expect("some"), &ids);
    pieces.for_each(|piece| stage.receive(piece, &[]));
    for id in 100..117 {
        let (_, files) = stage.message();
        assert_eq!(files.iter().map(item_of).collect::<Vec<_>>(), [id]);
    }
    // And in one message, of a kind that nobody knows.
    let unknown = packet(9, 77, 17, &[int(1)]);
    stage.receive(&unknown, &ids);
    let (bytes, files) = stage.message();
    assert_eq!(bytes, unknown);
    assert_eq!(files.iter().map(item_of).collect::<Vec<_>>(), (100..117).collect::<Vec<_>>());
    assert!(stage.client_leaves().is_ok());
}

#[test]
fn an_eventfd_is_not_taken_for_another_in_any_version_of_transport() {
    for (places, with_node) in [([0, 1], false), ([1, 0], false), ([0, 1], true), ([1, 0], true)] {
        let stage = Stage::with_nodes(&[4]);
        stage.receive(&transport(4, places, with_node), &[event(50), event(51)]);
        let (_, files) = stage.message();
        let [to_wait, to_write] = places.map(|place| place as usize);
        assert_eq!(stage.call(), Call::Watch(50 + to_wait as u32));
        wake(&files[to_write], 3);
        assert_eq!(stage.call(), Call::Write(50 + to_write as u32, 3));
        stage.feed(Message::Read { id: 50 + to_wait as u32, count: 2 });
        assert_eq!(wait(&files[to_wait]), 2);
        // Told before the client could look.
        assert_eq!(stage.call(), Call::Wakes);
        // Nobody waits for this one any more.
        stage.feed(Message::Read { id: 999, count: 2 });
        stage.feed(Message::End);
        assert!(stage.ended().is_ok());
    }
}

#[test]
fn an_eventfd_of_a_peer_that_has_gone_is_not_kept() {
    let stage = Stage::with_nodes(&[4, 5]);
    let mut peers = Vec::new();
    for (object, node, id) in [(4, 70, 50), (4, 71, 51), (5, 70, 52)] {
        stage.receive(&set_activation(object, node, 0, 1), &[event(id)]);
        peers.extend(stage.message().1);
    }
    for (place, id) in [(0, 50), (1, 51), (2, 52)] {
        wake(&peers[place], 1);
        assert_eq!(stage.call(), Call::Write(id, 1));
    }
    for none in [-1, 0xffff_ffff] {
        stage.receive(&set_activation(4, 70, none, 0), &[]);
        assert!(stage.message().1.is_empty());
    }
    assert_eq!(stage.call(), Call::Forget(50));
    stage.receive(&set_activation(4, 71, 0, 1), &[event(53)]);
    let (_, files) = stage.message();
    assert_eq!(stage.call(), Call::Forget(51));
    wake(&files[0], 1);
    assert_eq!(stage.call(), Call::Write(53, 1));
    // The daemon says that object 4 is no more: what came for it goes, and 4 is no client node any longer.
    stage.receive(&packet(0, 4, 0, &[int(4)]), &[]);
    stage.message();
    assert_eq!(stage.call(), Call::Forget(53));
    wake(&peers[2], 1);
    assert_eq!(stage.call(), Call::Write(52, 1));
    stage.receive(&transport(4, [0, 1], false), &[event(60), event(61)]);
    let error = stage.ended().expect_err("two eventfds that nobody knows");
    assert!(error.to_string().contains("message 0 of object 4"), "{error}");
}

#[test]
fn a_client_that_reads_late_loses_nothing() {
    let stage = Stage::new();
    let large = raw(9, 1, 1, &datum(9, &(0..3 << 20).map(|at| (at % 251) as u8).collect::<Vec<_>>()));
    let mut identifiers = vec![memory(77, 1)];
    for piece in large.chunks(MAX_DATA) {
        stage.receive(piece, &std::mem::take(&mut identifiers));
    }
    stage.receive(&packet(1, 2, 0, &[]), &[]);
    let (bytes, files) = stage.message();
    assert!(bytes == large, "the message was changed on its way");
    assert_eq!(files.iter().map(item_of).collect::<Vec<_>>(), [77]);
    assert_eq!(stage.message().0, packet(1, 2, 0, &[]));
    assert!(stage.client_leaves().is_ok());
}

#[test]
fn what_waits_for_a_client_that_does_not_read_has_bounds() {
    let mut stage = Stage::new();
    let message = raw(9, 1, 0, &datum(9, &[5; 3000]));
    const SENT: usize = 4000;
    for _ in 0..SENT {
        stage.receive(&message, &[]);
    }
    // Whenever the client's word gets through, the bridge has had a turn in which it could take more.
    let word = packet(0, 2, 0, &[int(1)]);
    let mut taken = usize::MAX;
    while taken != stage.taken() {
        taken = stage.taken();
        for _ in 0..3 {
            stage.client.write_all(&word).expect("sent");
            assert_eq!(stage.call(), Call::Send(word.clone()));
        }
    }
    assert!(taken < SENT, "all {SENT} messages were taken");
    for _ in 0..SENT {
        assert_eq!(stage.message().0, message);
    }
    assert_eq!(stage.taken(), SENT);
    assert!(stage.client_leaves().is_ok());
}

#[test]
fn what_a_client_says_is_sent_whole_however_it_is_cut() {
    let mut stage = Stage::new();
    let long = raw(9, 1, 0, &datum(9, &(0..10_000).map(|at| (at % 251) as u8).collect::<Vec<_>>()));
    for cut in [1, 15, 16, 17, 4000, long.len() - 1] {
        stage.client.write_all(&long[..cut]).expect("sent");
        stage.client.write_all(&long[cut..]).expect("sent");
        let mut seen = Vec::new();
        while seen.len() < long.len() {
            let Call::Send(piece) = stage.call() else { panic!("something else was asked for") };
            assert!(piece.len() <= MAX_DATA);
            seen.extend(piece);
        }
        assert!(seen == long, "cut at {cut}");
    }
    stage.feed(Message::End);
    assert!(stage.ended().is_ok());
}

#[test]
fn a_client_that_leaves_is_no_error_whatever_waits_for_it() {
    assert!(Stage::new().client_leaves().is_ok());
    let stage = Stage::new();
    for _ in 0..1000 {
        stage.receive(&raw(9, 1, 0, &datum(9, &[5; 3000])), &[]);
    }
    assert!(stage.client_leaves().is_ok());
}

#[test]
fn a_descriptor_that_cannot_be_passed_is_never_passed_in_silence() {
    let eventfd_as_memory = (add_mem(0), vec![event(3)], "message 6 of object 0");
    let unsupported = (add_mem(0), vec![crate::Identifier { id: 0, kind: 0, size: 0 }], "type 0");
    let unknown_event = (packet(9, 3, 1, &[file(0)]), vec![event(3)], "message 3 of object 9");
    let not_come = (add_mem(0), vec![], "1 descriptors, and 0 have come");
    let twice = (packet(4, 0, 1, &[file(0), file(0)]), vec![event(3)], "waited for and written to");
    for (bytes, identifiers, word) in [eventfd_as_memory, unsupported, unknown_event, not_come, twice] {
        let stage = Stage::with_nodes(&[4]);
        stage.receive(&bytes, &identifiers);
        let error = stage.ended().expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    }
    let mut stage = Stage::new();
    stage.client.write_all(&packet(4, 6, 1, &[file(0)])).expect("sent");
    let error = stage.ended().expect_err("a client's own descriptor").to_string();
    assert!(error.contains("message 6 of object 4"), "{error}");
}

#[test]
fn an_object_of_another_type_is_not_taken_for_a_client_node() {
    let mut stage = Stage::with_nodes(&[4]);
    let other = create_object(b"PipeWire:Interface:Metadata", 4);
    stage.client.write_all(&other).expect("sent");
    assert_eq!(stage.call(), Call::Send(other));
    stage.receive(&transport(4, [0, 1], false), &[event(3), event(4)]);
    assert!(stage.ended().is_err());
}

#[test]
fn no_bytes_are_read_past_their_end() {
    let whole = create_object(CLIENT_NODE, 4);
    for end in 0..whole.len() {
        for (at, value) in [(16, 0xff), (20, 14), (24, 0xff), (27, 0xff), (19, 0xff)] {
            let mut bytes = whole[..end].to_vec();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            if let Some(size) = bytes.get_mut(4..7) {
                size.copy_from_slice(&(end.saturating_sub(16) as u32).to_le_bytes()[..3]);
            }
            let mut stream = Stream::default();
            stream.push(&bytes);
            let packet = stream.next();
            assert_eq!(packet.is_some(), end >= 16);
            let fields = packet.iter().flat_map(|packet| packet.fields()).count();
            assert!(fields <= 5 && stream.next().is_none());
        }
    }
    let mut stream = Stream::default();
    stream.push(&[whole.clone(), whole[..20].to_vec()].concat());
    let packet = stream.next().expect("whole");
    let fields: Vec<_> = packet.fields().collect();
    assert!(matches!(fields[..], [Field::Text(b"client-node"), Field::Text(CLIENT_NODE), .., Field::Int(4)]));
    assert!(stream.next().is_none());
}
