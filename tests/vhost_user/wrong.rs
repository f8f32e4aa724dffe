//! Messages that make no sense: each ends its own connection with one clear line, and nobody else's.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use virtio_gpu_uring::CutOff;

use crate::front_end::{ALL_PROTOCOL, NO_FD, message, request, send, words};
use crate::machine::{CONTROL, CURSOR, Host, Machine, PAGE, RAM, Running, USER, event, memfd, region};

/// What is to be sent: a message's number, its body and descriptors.
type Wrong<'a> = (&'a str, u32, Vec<u8>, Vec<BorrowedFd<'a>>);

/// The connection has ended by one line.
#[track_caller]
fn one_line(what: &str, result: Result<(), CutOff>) {
    let line = result.expect_err(what).to_string();
    assert!(line.lines().count() == 1 && line.len() < 400 && !line.is_empty(), "{what}: {line:?}");
}

/// Each of these ends a connection of its own, whose machine stands as `stage` has left it.
#[track_caller]
fn each_is_cut_off(stage: impl Fn(Host) -> Machine, wrongs: Vec<Wrong<'_>>) {
    let mut host = Host::new();
    for (what, request, body, files) in wrongs {
        // Shown where a test fails.
        println!("{what}");
        let machine = stage(host);
        machine.front.say(request, &body, &files);
        machine.front.expect_end();
        let result;
        (host, result) = machine.hang_up();
        one_line(what, result);
    }
    let mut machine = Machine::boot(host);
    machine.settle();
    machine.leave();
}

fn powered(host: Host) -> Machine {
    Machine::powered(host, ALL_PROTOCOL)
}

/// A machine whose control ring wants nothing but its kick.
fn almost(host: Host) -> Machine {
    let machine = powered(host);
    machine.set_up_ring(CONTROL, 0);
    machine.set_up_ring(CURSOR, 0);
    machine
}

#[test]
fn a_message_of_another_size_or_number_is_never_carried_out() {
    each_is_cut_off(
        powered,
        vec![
            ("no such request", 99, vec![], vec![]),
            ("request 0", 0, vec![], vec![]),
            ("a request of the back-end's", 0x8000_0000, vec![], vec![]),
            ("a set without a value", request::SET_FEATURES, vec![], vec![]),
            ("half a value", request::SET_FEATURES, vec![0; 4], vec![]),
            ("a value too many", request::SET_VRING_NUM, vec![0; 16], vec![]),
            ("a get with a body", request::GET_FEATURES, vec![0; 8], vec![]),
            ("an empty table", request::SET_MEM_TABLE, vec![], vec![]),
            ("a table shorter than it says", request::SET_MEM_TABLE, words(&[2, 0], &[0, RAM, USER, 0]), vec![]),
            ("a region too short", request::ADD_MEM_REG, vec![0; 32], vec![]),
            ("a configuration of 0 bytes", request::GET_CONFIG, words(&[0, 0, 0], &[]), vec![]),
            ("a configuration without room", request::GET_CONFIG, words(&[0, 16, 0], &[]), vec![]),
            (
                "a configuration far away",
                request::GET_CONFIG,
                [words(&[u32::MAX, 16, 0], &[]), vec![0; 16]].concat(),
                vec![],
            ),
            ("an address too short", request::SET_VRING_ADDR, vec![0; 32], vec![]),
        ],
    );
}

#[test]
fn descriptors_too_many_too_few_or_of_another_kind_are_never_taken() {
    let (file, name) = memfd(PAGE);
    let (file, event) = (file.as_fd(), event());
    let (datagram, _other) = UnixDatagram::pair().expect("sockets");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let tcp = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let zero = || words(&[], &[0]);
    let added = || region(1 << 32, PAGE, USER << 1, 0);
    each_is_cut_off(
        powered,
        vec![
            ("a kick without a descriptor", request::SET_VRING_KICK, zero(), vec![]),
            ("a kick that is to be polled", request::SET_VRING_KICK, words(&[], &[NO_FD]), vec![]),
            ("two kicks", request::SET_VRING_KICK, zero(), vec![event.as_fd(), event.as_fd()]),
            ("a call without a descriptor", request::SET_VRING_CALL, zero(), vec![]),
            ("a feature with a descriptor", request::SET_FEATURES, zero(), vec![file]),
            ("a region without a file", request::ADD_MEM_REG, added(), vec![]),
            ("a region with two files", request::ADD_MEM_REG, added(), vec![file, file]),
            ("a table without files", request::SET_MEM_TABLE, words(&[1, 0], &[0, PAGE, USER, 0]), vec![]),
            ("a table with two files", request::SET_MEM_TABLE, words(&[1, 0], &[0, PAGE, USER, 0]), vec![file, file]),
            ("a region of no file", request::ADD_MEM_REG, added(), vec![event.as_fd()]),
            ("no socket", request::SET_BACKEND_REQ_FD, vec![], vec![]),
            ("a file as a socket", request::SET_BACKEND_REQ_FD, vec![], vec![file]),
            ("a datagram socket", request::SET_BACKEND_REQ_FD, vec![], vec![datagram.as_fd()]),
            ("a TCP socket", request::SET_BACKEND_REQ_FD, vec![], vec![tcp.as_fd()]),
            ("no display socket", request::GPU_SET_SOCKET, vec![], vec![]),
            ("a file as a display socket", request::GPU_SET_SOCKET, vec![], vec![file]),
            ("a datagram display socket", request::GPU_SET_SOCKET, vec![], vec![datagram.as_fd()]),
        ],
    );
    assert_eq!(virtio_gpu_uring::testing::census::fds_named(&name), 1, "descriptors are kept");
}

#[test]
fn a_kick_that_is_a_file_is_never_watched() {
    let (file, _) = memfd(PAGE);
    let kick = words(&[], &[0]);
    let enabled = |host| {
        let machine = almost(host);
        machine.enable(CONTROL, true);
        machine
    };
    each_is_cut_off(enabled, vec![("a file", request::SET_VRING_KICK, kick, vec![file.as_fd()])]);
}

#[test]
fn regions_that_cannot_be_are_never_mapped() {
    let (file, name) = memfd(2 * PAGE);
    let add = |what, guest, len, user, offset| {
        (what, request::ADD_MEM_REG, region(guest, len, user, offset), vec![file.as_fd()])
    };
    let high = USER << 1;
    let twice = words(&[2, 0], &[0, 2 * PAGE, USER, 0, PAGE, PAGE, high, 0]);
    each_is_cut_off(
        powered,
        vec![
            add("one over another", RAM - PAGE, 2 * PAGE, high, 0),
            add("one within another", PAGE, PAGE, high, 0),
            add("an empty one", 1 << 32, 0, high, 0),
            add("one beyond its file", 1 << 32, 3 * PAGE, high, 0),
            add("one that ends beyond its file", 1 << 32, 2 * PAGE, high, PAGE),
            add("one that wraps in the guest", u64::MAX - PAGE + 1, 2 * PAGE, high, 0),
            add("one that wraps in the front-end", 1 << 32, 2 * PAGE, u64::MAX - PAGE + 1, 0),
            add("one that wraps in its file", 1 << 32, 2 * PAGE, high, u64::MAX - PAGE + 1),
            add("one of all there is", 0, u64::MAX, 0, 0),
            add("an offset within a page", 1 << 32, PAGE, high, 1),
            ("two over each other", request::SET_MEM_TABLE, twice, vec![file.as_fd(), file.as_fd()]),
            ("none that is there", request::REM_MEM_REG, region(1 << 32, PAGE, high, 0), vec![]),
            ("one that is longer", request::REM_MEM_REG, region(0, RAM + PAGE, USER, 0), vec![]),
        ],
    );
    drop(file);
    let left =
        (virtio_gpu_uring::testing::census::fds_named(&name), virtio_gpu_uring::testing::census::maps_named(&name));
    assert_eq!(left, (0, 0), "descriptors and mappings are kept");
}

#[test]
fn no_region_is_taken_beyond_as_many_as_were_promised() {
    let machine = powered(Host::new());
    let (file, _) = memfd(PAGE);
    let slots = machine.front.ask_long(request::GET_MAX_MEM_SLOTS);
    let nth = |slot: u64| region((1 << 32) + slot * PAGE, PAGE, (USER << 1) + slot * PAGE, 0);
    // The machine's own is the first.
    for slot in 1..slots {
        machine.front.tell(request::ADD_MEM_REG, &nth(slot), &[file.as_fd()]);
    }
    machine.front.say(request::ADD_MEM_REG, &nth(slots), &[file.as_fd()]);
    machine.front.expect_end();
    let (host, result) = machine.hang_up();
    one_line("one too many", result);
    Machine::boot(host).leave();
}

#[test]
fn features_that_were_not_offered_are_never_acknowledged() {
    each_is_cut_off(
        powered,
        vec![
            ("protocol features", request::SET_PROTOCOL_FEATURES, words(&[], &[ALL_PROTOCOL | 1 << 16]), vec![]),
            ("protocol features of tomorrow", request::SET_PROTOCOL_FEATURES, words(&[], &[1 << 63]), vec![]),
        ],
    );
    let mut host = Host::new();
    for bit in [6, 34, 50, 63] {
        let machine = powered(host);
        let features = machine.front.ask_long(request::GET_FEATURES) | 1 << bit;
        machine.front.say(request::SET_FEATURES, &words(&[], &[features]), &[]);
        machine.front.say(request::SET_VRING_ENABLE, &words(&[0, 1], &[]), &[]);
        // What the driver has acknowledged may be looked at when it starts; a back-end that says it at once is as good.
        let number = words(&[], &[0]);
        let bytes = message(request::SET_VRING_NUM, 1, &words(&[0, 64], &[]));
        let _ = (&machine.front.socket).write_all(&bytes);
        let address = message(request::SET_VRING_ADDR, 1, &words(&[0, 0], &[USER, USER + PAGE, USER + 2 * PAGE, 0]));
        let _ = (&machine.front.socket).write_all(&address);
        let kick = event();
        try_send(&machine.front.socket, &message(request::SET_VRING_KICK, 1, &number), kick.as_fd());
        machine.front.expect_end();
        let result;
        (host, result) = machine.hang_up();
        one_line(&format!("bit {bit}"), result);
    }
}

fn try_send(socket: &UnixStream, bytes: &[u8], file: BorrowedFd<'_>) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let files = [file];
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&files)));
    // It may have been cut off by now.
    let _ =
        rustix::net::sendmsg(socket, &[std::io::IoSlice::new(bytes)], &mut control, rustix::net::SendFlags::NOSIGNAL);
}

#[test]
fn rings_that_cannot_be_are_never_served() {
    let num = |what, index, size| (what, request::SET_VRING_NUM, words(&[index, size], &[]), vec![]);
    let enable = |what, index| (what, request::SET_VRING_ENABLE, words(&[index, 1], &[]), vec![]);
    let call = event();
    each_is_cut_off(
        almost,
        vec![
            num("no descriptor", 0, 0),
            num("three", 0, 3),
            num("2,048", 0, 2048),
            num("32,768", 0, 32_768),
            num("65,536", 0, 65_536),
            num("4,294,967,295", 0, u32::MAX),
            num("ring 2", 2, 64),
            num("ring 255", 255, 64),
            enable("ring 2 enabled", 2),
            ("ring 2 called", request::SET_VRING_CALL, words(&[], &[2]), vec![call.as_fd()]),
            ("ring 255 kicked", request::SET_VRING_KICK, words(&[], &[255]), vec![call.as_fd()]),
            ("ring 2's errors", request::SET_VRING_ERR, words(&[], &[2]), vec![call.as_fd()]),
            ("ring 2's base", request::SET_VRING_BASE, words(&[2, 0], &[]), vec![]),
            ("a base of 65,536", request::SET_VRING_BASE, words(&[0, 65_536], &[]), vec![]),
            ("the base of ring 2", request::GET_VRING_BASE, words(&[2, 0], &[]), vec![]),
            ("the base of ring 256", request::GET_VRING_BASE, words(&[256, 0], &[]), vec![]),
        ],
    );
}

#[test]
fn rings_outside_memory_are_never_served() {
    let (inside, behind) = (USER + PAGE, USER + RAM);
    let places = [
        ("a table outside memory", [behind, inside, inside]),
        ("a used ring outside memory", [inside, behind, inside]),
        ("an available ring outside memory", [inside, inside, behind]),
        ("a guest's address", [PAGE, PAGE, PAGE]),
        ("a table that ends outside memory", [behind - 16, inside, inside]),
        ("a used ring that ends outside memory", [inside, behind - 4, inside]),
        ("an available ring that ends outside memory", [inside, inside, behind - 4]),
        ("no address", [0, 0, 0]),
        ("the last address", [u64::MAX - 15, u64::MAX - 15, u64::MAX - 15]),
        ("a table off its alignment", [inside + 8, inside, inside]),
        ("a used ring off its alignment", [inside, inside + 2, inside]),
        ("an available ring off its alignment", [inside, inside, inside + 1]),
    ];
    let mut host = Host::new();
    for (what, [table, used, available]) in places {
        let machine = almost(host);
        let address = words(&[0, 0], &[table, used, available, 0]);
        machine.front.say(request::SET_VRING_ADDR, &address, &[]);
        let bytes = message(request::SET_VRING_ENABLE, 1, &words(&[0, 1], &[]));
        // It may have been cut off by now.
        let _ = (&machine.front.socket).write_all(&bytes);
        machine.front.expect_end();
        let result;
        (host, result) = machine.hang_up();
        one_line(what, result);
    }
    Machine::boot(host).leave();
}

#[test]
fn a_ring_without_size_or_addresses_is_never_served() {
    let kick = event();
    let mut host = Host::new();
    for sized in [true, false] {
        let machine = powered(host);
        if sized {
            machine.front.tell(request::SET_VRING_NUM, &words(&[0, 64], &[]), &[]);
        } else {
            let address = words(&[0, 0], &[USER + PAGE, USER + 2 * PAGE, USER + 3 * PAGE, 0]);
            machine.front.tell(request::SET_VRING_ADDR, &address, &[]);
        }
        machine.front.tell(request::SET_VRING_KICK, &words(&[], &[0]), &[kick.as_fd()]);
        machine.front.say(request::SET_VRING_ENABLE, &words(&[0, 1], &[]), &[]);
        machine.front.expect_end();
        let result;
        (host, result) = machine.hang_up();
        one_line("half a ring", result);
    }
}

#[test]
fn half_a_message_is_never_waited_for_beyond_the_connections_end() {
    let mut host = Host::new();
    let whole = message(request::SET_FEATURES, 1, &words(&[], &[0]));
    for len in [1, 4, 11, 12, 15, 19] {
        let machine = powered(host);
        send(&machine.front.socket, &whole[..len], &[]);
        // Whether half a message is a fault or a farewell is a matter of taste; one line is what there may be.
        let (next, result) = machine.hang_up();
        if result.is_err() {
            one_line("half a message", result);
        }
        host = next;
    }
    Machine::boot(host).leave();
}

#[test]
fn a_header_that_lies_is_never_believed() {
    let mut host = Host::new();
    let header = |request: u32, flags: u32, size: u32| words(&[request, flags, size], &[]);
    let lies = [
        ("four gigabytes", header(request::SET_FEATURES, 1, u32::MAX)),
        ("five kilobytes", header(request::SET_FEATURES, 1, 5 << 10)),
        ("version 0", header(request::GET_FEATURES, 0, 0)),
        ("version 2", header(request::GET_FEATURES, 2, 0)),
        ("a reply", header(request::GET_FEATURES, 5, 0)),
    ];
    for (what, bytes) in lies {
        let machine = powered(host);
        send(&machine.front.socket, &bytes, &[]);
        machine.front.expect_end();
        let result;
        (host, result) = machine.hang_up();
        one_line(what, result);
    }
    Machine::boot(host).leave();
}

#[test]
fn a_message_in_pieces_is_never_taken_for_another() {
    let (running, front) = Running::start(Host::new());
    for byte in message(request::GET_FEATURES, 1, &[]) {
        send(&front.socket, &[byte], &[]);
        std::thread::yield_now();
    }
    assert_eq!(front.reply(request::GET_FEATURES).len(), 8);
    drop(front);
    running.end().1.expect("a front-end that left");
}

#[test]
fn one_that_never_reads_or_never_speaks_never_outlives_a_stop() {
    for speaks in [true, false] {
        let (running, front) = Running::start(Host::new());
        if speaks {
            front.socket.set_nonblocking(true).expect("a socket");
            let ask = message(request::GET_FEATURES, 1, &[]);
            // Until neither takes any more, or the back-end has given up.
            let mut refused = 0;
            while refused < 1000 {
                match (&front.socket).write(&ask) {
                    Ok(_) => refused = 0,
                    Err(_) => refused += 1,
                }
                std::thread::yield_now();
            }
        }
        running.stopper.stop();
        // Whether a stop is an error is told by nobody; that it comes is.
        let (Host { mut server, .. }, _) = running.end();
        let (theirs, _ours) = UnixStream::pair().expect("sockets");
        server.serve(theirs).expect("a server that has stopped serves nobody, and has nothing against it");
        drop(front);
    }
}

#[test]
fn a_file_as_memory_that_shrinks_is_the_guests_own_fault_but_a_short_one_is_refused() {
    let machine = powered(Host::new());
    let empty: File = memfd(0).0;
    machine.front.say(request::ADD_MEM_REG, &region(1 << 32, PAGE, USER << 1, 0), &[empty.as_fd()]);
    machine.front.expect_end();
    one_line("an empty file", machine.hang_up().1);
}
