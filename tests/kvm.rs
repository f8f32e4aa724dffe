//! What a vCPU sees through the window. KVM follows the host's address space by itself, so only a real vCPU shows that a
//! mapping is live, that one which is taken back is gone, and that none of it costs the guest its life.
#![cfg(all(feature = "testing", target_arch = "x86_64"))]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, response_type};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Request};
use virtio_gpu_uring::{Access, BufferKind, Builder, HostBuffer, HostWindow, Protection, SharedMemory as _, Work};

#[path = "kvm/machine.rs"]
mod machine;

use machine::{Machine, RAM, Touch, Vcpu, WINDOW_LEN, open_or_skip};

const PAGE: u64 = 4096;
/// Where most tests map: with a gap before and behind it.
const PLACE: u64 = 0x8000;

/// A guest with a driver and a processor.
struct Rig {
    guest: Guest,
    machine: Machine,
    vcpu: Vcpu,
    next_resource: u32,
}

impl Rig {
    fn scratch() -> Option<Self> {
        Self::with(HostWindow::new(WINDOW_LEN as usize).expect("a window"))
    }

    fn with(window: HostWindow) -> Option<Self> {
        let vm = open_or_skip()?;
        let options = GuestOptions { ram: RAM, ..GuestOptions::default() };
        let mut guest = Guest::with_options(Builder::new().window(window.clone()), options);
        guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
        let mut machine = Machine::new(vm, guest.ram(), &window);
        let vcpu = machine.vcpu();
        Some(Self { guest, machine, vcpu, next_resource: 1 })
    }

    /// Makes a blob of a buffer.
    fn blob(&mut self, buffer: HostBuffer) -> u32 {
        let size = buffer.len();
        let offer = self.guest.device().offer(buffer).wait().expect("a device").expect("taken");
        let resource = self.next_resource;
        self.next_resource += 1;
        self.guest.command(&Request::host_blob(1, resource, offer.0, size)).ok();
        resource
    }

    /// Makes a blob of a file and maps it.
    fn show(&mut self, file: &OwnedFd, offset: u64) -> u32 {
        let resource = self.blob(buffer(file));
        self.guest.map(resource, offset);
        resource
    }

    fn unmap(&mut self, resource: u32) {
        self.guest.command(&Request::unmap(resource)).ok();
    }

    #[track_caller]
    fn expect(&mut self, offset: u64, byte: u8) {
        assert_eq!(self.vcpu.load(offset), Touch::Done(byte), "at {offset:#x}");
    }

    #[track_caller]
    fn expect_store(&mut self, offset: u64, byte: u8) {
        assert!(matches!(self.vcpu.store(offset, byte), Touch::Done(_)), "a store at {offset:#x} ended the run");
    }
}

/// A memfd of `pages` pages that all hold `byte`.
fn memfd(byte: u8, pages: u64) -> OwnedFd {
    let file = memfd_create("kvm", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memfd");
    ftruncate(&file, pages * PAGE).expect("a size");
    write(&file, 0, &vec![byte; (pages * PAGE) as usize]);
    file
}

fn buffer(file: &OwnedFd) -> HostBuffer {
    HostBuffer::from_fd(file.try_clone().expect("a duplicate")).expect("a buffer")
}

fn write(file: &OwnedFd, at: u64, bytes: &[u8]) {
    assert_eq!(rustix::io::pwrite(file, bytes, at), Ok(bytes.len()));
}

fn byte_of(file: &OwnedFd, at: u64) -> u8 {
    let mut byte = [0];
    assert_eq!(rustix::io::pread(file, &mut byte, at), Ok(1));
    byte[0]
}

#[test]
fn a_vcpu_never_reads_zeros_or_old_bytes_of_a_mapped_buffer() {
    let Some(mut rig) = Rig::scratch() else { return };
    let file = memfd(0x11, 4);
    write(&file, 3 * PAGE + 77, &[0x77]);
    rig.show(&file, PLACE);
    rig.expect(PLACE, 0x11);
    rig.expect(PLACE + 4 * PAGE - 1, 0x11);
    rig.expect(PLACE + 3 * PAGE + 77, 0x77);
    for frame in 1..=50 {
        write(&file, 5, &[frame]);
        write(&file, 2 * PAGE + 9, &[frame ^ 0xff]);
        rig.expect(PLACE + 5, frame);
        rig.expect(PLACE + 2 * PAGE + 9, frame ^ 0xff);
    }
    rig.expect(PLACE - 1, 0);
    rig.expect(PLACE + 4 * PAGE, 0);
}

#[test]
fn a_vcpus_store_never_misses_the_buffer() {
    let Some(mut rig) = Rig::scratch() else { return };
    let file = memfd(0x11, 2);
    rig.show(&file, PLACE);
    // Untouched before, and touched before.
    rig.expect_store(PLACE + 3, 0xa1);
    rig.expect(PLACE + PAGE, 0x11);
    rig.expect_store(PLACE + PAGE, 0xa2);
    assert_eq!([byte_of(&file, 3), byte_of(&file, PAGE), byte_of(&file, 4)], [0xa1, 0xa2, 0x11]);
}

#[test]
fn a_buffer_is_never_seen_after_unmap_and_the_vcpu_lives() {
    let Some(mut rig) = Rig::scratch() else { return };
    let file = memfd(0x11, 2);
    let resource = rig.show(&file, PLACE);
    rig.expect(PLACE, 0x11);
    rig.expect_store(PLACE + PAGE, 0x22);
    rig.unmap(resource);
    rig.expect(PLACE, 0);
    rig.expect(PLACE + PAGE, 0);
    rig.expect_store(PLACE, 0x99);
    rig.expect(PLACE, 0x99);
    write(&file, 0, &[0x33]);
    rig.expect(PLACE, 0x99);
    assert_eq!([byte_of(&file, 0), byte_of(&file, PAGE)], [0x33, 0x22], "a store into a gap reached the buffer");
    rig.guest.map(resource, PLACE);
    rig.expect(PLACE, 0x33);
}

#[test]
fn a_buffer_is_never_seen_after_unref_or_reset() {
    let Some(mut rig) = Rig::scratch() else { return };
    let (first, second) = (memfd(0x11, 1), memfd(0x22, 80));
    let resource = rig.show(&first, PLACE);
    rig.show(&second, PLACE + PAGE);
    rig.expect(PLACE, 0x11);
    rig.expect(PLACE + 80 * PAGE, 0x22);
    rig.guest.command(&Request::unref(resource)).ok();
    rig.expect(PLACE, 0);
    rig.expect(PLACE + PAGE, 0x22);
    rig.guest.reset();
    for page in 0..81 {
        rig.expect(PLACE + page * PAGE, 0);
        rig.expect_store(PLACE + page * PAGE, 0);
    }
    rig.guest.activate();
    rig.guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    rig.show(&first, PLACE);
    rig.expect(PLACE, 0x11);
}

#[test]
fn the_end_of_a_context_never_takes_its_buffers_from_the_vcpu() {
    let Some(mut rig) = Rig::scratch() else { return };
    let file = memfd(0x11, 1);
    let resource = rig.show(&file, PLACE);
    rig.guest.command(&Request::ctx_attach(1, resource)).ok();
    rig.guest.command(&Request::ctx_destroy(1)).ok();
    rig.expect(PLACE, 0x11);
    write(&file, 0, &[0x12]);
    rig.expect(PLACE, 0x12);
    rig.unmap(resource);
    rig.expect(PLACE, 0);
}

#[test]
fn a_remapped_place_never_shows_the_buffer_before() {
    let Some(mut rig) = Rig::scratch() else { return };
    let files = [memfd(0x11, 3), memfd(0x22, 3)];
    let resources: Vec<u32> = files.iter().map(|file| rig.blob(buffer(file))).collect();
    for round in 0..40 {
        let turn = round % 2;
        rig.guest.map(resources[turn], PLACE);
        for page in 0..3 {
            rig.expect(PLACE + page * PAGE + 1, [0x11, 0x22][turn]);
        }
        write(&files[turn], 0, &[round as u8]);
        rig.expect(PLACE, round as u8);
        rig.unmap(resources[turn]);
    }
    assert_eq!([byte_of(&files[0], 0), byte_of(&files[1], 0)], [38, 39]);
}

#[test]
fn a_map_that_fails_late_never_costs_the_vcpu_its_filler() {
    let Some(mut rig) = Rig::scratch() else { return };
    // The `mmap` of a file in sysfs fails in the file's own code: with MAP_FIXED that would leave a hole.
    let late = File::open("/sys/kernel/profiling").or_else(|_| File::open("/sys/kernel/uevent_seqnum"));
    let late = OwnedFd::from(late.expect("a file in sysfs"));
    let resource = rig.blob(HostBuffer::stand_in(late, BufferKind::SharedMemory, PAGE, Access::ReadOnly));
    rig.expect_store(PLACE, 0x55);
    let answer = rig.guest.command(&Request::map(resource, PLACE));
    answer.expect_error(response_type::ERR_UNSPEC);
    rig.expect(PLACE, 0x55);
    rig.expect_store(PLACE, 0x56);
    rig.expect(PLACE, 0x56);
    let file = memfd(0x11, 1);
    rig.show(&file, PLACE);
    rig.expect(PLACE, 0x11);
}

/// A store goes into the guest's own copy of one page; the buffer and all other pages are as before, and so is that page
/// for whoever maps the buffer anew.
fn stores_stay_in_the_guest(rig: &mut Rig, reader: &OwnedFd, host_writes: impl Fn(u64, u8)) {
    let resource = rig.show(reader, PLACE);
    rig.expect(PLACE, 0x11);
    rig.expect_store(PLACE + 1, 0x99);
    // A page that was never read before, too.
    rig.expect_store(PLACE + 2 * PAGE, 0x98);
    rig.expect(PLACE + 1, 0x99);
    rig.expect(PLACE + 2, 0x11);
    assert_eq!([byte_of(reader, 1), byte_of(reader, 2 * PAGE)], [0x11, 0x11], "a store reached a read-only buffer");
    for frame in 1..=10 {
        host_writes(PAGE + 7, frame);
        rig.expect(PLACE + PAGE + 7, byte_of(reader, PAGE + 7));
    }
    rig.unmap(resource);
    rig.expect(PLACE + 1, 0);
    rig.guest.map(resource, PLACE);
    rig.expect(PLACE + 1, 0x11);
    rig.expect(PLACE + 2 * PAGE, 0x11);
}

#[test]
fn a_store_never_reaches_a_memfd_that_is_open_read_only() {
    let Some(mut rig) = Rig::scratch() else { return };
    let file = memfd(0x11, 3);
    let reader = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("open once more");
    stores_stay_in_the_guest(&mut rig, &reader.into(), |at, byte| write(&file, at, &[byte]));
    assert_eq!(byte_of(&file, PAGE + 7), 10);
}

#[test]
fn a_store_never_reaches_a_memfd_that_is_sealed_against_future_writes() {
    let Some(mut rig) = Rig::scratch() else { return };
    let file = memfd(0x11, 3);
    // Whoever mapped it before the seal goes on writing: a window of the host's own stands in for a compositor.
    let host = HostWindow::new(3 * PAGE as usize).expect("a window");
    let Work::Done(placed) = host.place(0, 3 * PAGE, file.as_fd(), BufferKind::SharedMemory, Protection::ReadWrite)
    else {
        panic!("placing a memfd is done at once")
    };
    placed.expect("mapped before it is sealed");
    fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).expect("sealed");
    stores_stay_in_the_guest(&mut rig, &file, |at, byte| host.write(at, &[byte]).expect("in the window"));
    assert_eq!(byte_of(&file, PAGE + 7), 10);
}

#[test]
fn a_store_never_reaches_a_memfd_that_is_sealed_against_writes() {
    let Some(mut rig) = Rig::scratch() else { return };
    let file = memfd(0x11, 3);
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK).expect("sealed");
    stores_stay_in_the_guest(&mut rig, &file, |_, _| {});
}

#[test]
fn a_denied_gap_never_answers_and_never_ends_more_than_the_run() {
    let Some(mut rig) = Rig::with(HostWindow::deny_gaps(WINDOW_LEN as usize).expect("a window")) else { return };
    let file = memfd(0x11, 1);
    assert_eq!(rig.vcpu.load(PLACE), Touch::Ended);
    rig.vcpu = rig.machine.vcpu();
    let resource = rig.show(&file, PLACE);
    rig.expect(PLACE, 0x11);
    rig.expect_store(PLACE + 1, 0x22);
    assert_eq!(byte_of(&file, 1), 0x22);
    assert_eq!(rig.vcpu.store(PLACE + PAGE, 1), Touch::Ended);
    rig.vcpu = rig.machine.vcpu();
    rig.expect(PLACE + 1, 0x22);
    rig.unmap(resource);
    assert_eq!(rig.vcpu.store(PLACE + 1, 0x33), Touch::Ended);
    assert_eq!(byte_of(&file, 1), 0x22);
    rig.vcpu = rig.machine.vcpu();
    rig.guest.map(resource, PLACE + 4 * PAGE);
    rig.expect(PLACE + 4 * PAGE, 0x11);
    rig.guest.assert_all_answered();
}

/// What a processor that never rests has seen last, and how often it has looked.
#[derive(Default)]
struct Watch {
    /// Looks so far, and the last byte in the low eight bits.
    seen: AtomicU64,
    /// The processor's run has ended.
    ended: AtomicBool,
    stop: AtomicBool,
}

impl Watch {
    fn run(&self, vcpu: &mut Vcpu, at: u64) {
        let mut looks = 0;
        while !self.stop.load(Ordering::SeqCst) {
            let Touch::Done(byte) = vcpu.load(at) else { return self.ended.store(true, Ordering::SeqCst) };
            looks += 1;
            self.seen.store(looks << 8 | u64::from(byte), Ordering::SeqCst);
        }
    }

    /// The byte of a look that began after this call.
    fn next(&self) -> u8 {
        let before = self.seen.load(Ordering::SeqCst) >> 8;
        loop {
            let seen = self.seen.load(Ordering::SeqCst);
            assert!(!self.ended.load(Ordering::SeqCst), "the vCPU fell into a hole");
            if seen >> 8 >= before + 2 {
                return seen as u8;
            }
            std::thread::yield_now();
        }
    }
}

/// Lets the watching thread go, whether the test ends well or not.
struct StopOnDrop<'a>(&'a Watch);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_running_vcpu_never_falls_into_a_hole_between_two_buffers() {
    let Some(mut rig) = Rig::scratch() else { return };
    // Small ones are taken back in line, large ones on a worker of the ring.
    let files = [memfd(0x11, 2), memfd(0x22, 100), memfd(0x33, 3)];
    let resources: Vec<u32> = files.iter().map(|file| rig.blob(buffer(file))).collect();
    let (watch, mut vcpu) = (Watch::default(), rig.machine.vcpu());
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&watch);
        scope.spawn(|| watch.run(&mut vcpu, PLACE + PAGE));
        assert_eq!(watch.next(), 0);
        for round in 0..150 {
            let turn = round % 3;
            rig.guest.map(resources[turn], PLACE);
            assert_eq!(watch.next(), [0x11, 0x22, 0x33][turn], "after MAP was answered");
            rig.unmap(resources[turn]);
            assert_eq!(watch.next(), 0, "after UNMAP was answered");
        }
    });
    assert!(!watch.ended.load(Ordering::SeqCst), "the vCPU fell into a hole");
}
