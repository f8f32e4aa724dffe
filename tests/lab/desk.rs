//! What every scenario about dma-bufs starts from: a guest with a driver and a real processor, a painted window, a host
//! service behind a channel, and what may never change in any of them.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use virtio_gpu_uring::protocol::cross_domain::{ChannelType, id_type};
use virtio_gpu_uring::testing::census::{self, Census};
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostPeer, HostService, Request};
use virtio_gpu_uring::{Builder, HostBuffer, HostWindow};

use crate::exporters::{DmaBuf, say};
use crate::vcpu::{Machine, Touch, Vcpu};

pub(crate) const PAGE: u64 = 4096;
/// Length of the usual window: room for two of the camera's buffers.
pub(crate) const WINDOW: u64 = 2 << 20;
/// Where most scenarios map: with a gap before and behind it.
pub(crate) const PLACE: u64 = 0x8000;
/// The context that is there from the start, connected to the service.
pub(crate) const CONTEXT: u32 = 1;
/// How dma-bufs are called in `/proc`.
const DMA_BUF: &str = "/dmabuf:";

/// How a buffer reaches the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The VMM offers it.
    Offered,
    /// A service sends it to the guest over a channel.
    Sent,
}

impl Way {
    pub(crate) const BOTH: [Self; 2] = [Self::Offered, Self::Sent];
}

pub(crate) struct Desk {
    pub(crate) guest: Guest,
    pub(crate) window: HostWindow,
    pub(crate) machine: Machine,
    pub(crate) vcpu: Vcpu,
    channel: GuestChannel,
    peer: HostPeer,
    service: Arc<HostService>,
    next: u32,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self::with(Builder::new())
    }

    pub(crate) fn with(builder: Builder) -> Self {
        let len = WINDOW as usize;
        Self::on(HostWindow::with_scratch(len, len).expect("a window"), builder)
    }

    /// Paints the window's filler where it is of the usual size.
    pub(crate) fn on(window: HostWindow, builder: Builder) -> Self {
        let service = Arc::new(HostService::listen());
        let builder = builder.window(window.clone()).host_socket(ChannelType::PIPEWIRE, service.path());
        let mut guest = Guest::start(builder);
        let mut machine = Machine::new(guest.ram(), &window);
        let (vcpu, channel) = (machine.vcpu(), GuestChannel::open(&mut guest, CONTEXT, 1, ChannelType::PIPEWIRE));
        let peer = service.accept();
        let desk = Self { guest, window, machine, vcpu, channel, peer, service, next: 100 };
        if desk.window.len() == WINDOW {
            desk.window.write(0, &filler(0, WINDOW as usize)).expect("in the window");
        }
        desk
    }

    /// Resets the device and starts its driver once more.
    pub(crate) fn reset(&mut self) {
        self.guest.reset();
        self.guest.activate();
        self.channel = GuestChannel::open(&mut self.guest, CONTEXT, 1, ChannelType::PIPEWIRE);
        self.peer = self.service.accept();
    }

    pub(crate) fn offer(&self, buffer: HostBuffer) -> u64 {
        self.guest.device().offer(buffer).wait().expect("a device").expect("an offer").0
    }

    /// Sends a file over the channel and tells what the guest is told of it: id, type and size.
    pub(crate) fn send(&mut self, file: &OwnedFd) -> (u32, u32, u32) {
        self.peer.send(b"a buffer", &[file.as_fd()]);
        let message = self.channel.receive(&mut self.guest);
        assert_eq!(message.data, b"a buffer");
        let [identifier] = message.identifiers[..] else { panic!("{message:?}") };
        identifier
    }

    /// The id by which the guest can make a blob of a buffer.
    pub(crate) fn announce(&mut self, buffer: &DmaBuf, way: Way) -> u64 {
        match way {
            Way::Offered => self.offer(host_buffer(&buffer.file)),
            Way::Sent => {
                let (id, kind, size) = self.send(&buffer.file);
                assert_eq!((kind, u64::from(size)), (id_type::VIRTGPU_BLOB, buffer.len));
                u64::from(id)
            }
        }
    }

    /// A blob of the first `size` bytes of a buffer.
    pub(crate) fn blob(&mut self, buffer: &DmaBuf, way: Way, size: u64) -> u32 {
        let id = self.announce(buffer, way);
        self.make(id, size)
    }

    pub(crate) fn make(&mut self, id: u64, size: u64) -> u32 {
        self.next += 1;
        self.ok(&Request::host_blob(CONTEXT, self.next, id, size));
        self.next
    }

    /// A blob of a whole buffer, mapped.
    pub(crate) fn show(&mut self, buffer: &DmaBuf, way: Way, offset: u64) -> u32 {
        let resource = self.blob(buffer, way, buffer.len);
        self.guest.map(resource, offset);
        resource
    }

    #[track_caller]
    pub(crate) fn ok(&mut self, request: &Request) {
        self.guest.command(request).ok();
    }

    /// What the guest sees; its processor and its window must not differ.
    #[track_caller]
    pub(crate) fn seen(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let seen = self.vcpu.read(offset, len as usize).unwrap_or_else(|at| panic!("nothing is behind {at:#x}"));
        let mut window = vec![0; len as usize];
        self.window.read(offset, &mut window).expect("in the window");
        assert_same(&seen, &window, "the processor and the window differ");
        seen
    }

    /// The guest sees just these bytes.
    #[track_caller]
    pub(crate) fn expect(&mut self, offset: u64, bytes: &[u8]) {
        assert_same(&self.seen(offset, bytes.len() as u64), bytes, "the guest and the host differ");
    }

    /// The guest sees the filler that was painted.
    #[track_caller]
    pub(crate) fn expect_filler(&mut self, offset: u64, len: u64) {
        let seen = self.seen(offset, len);
        assert_same(&seen, &filler(offset, len as usize), "the filler is not what it was");
    }

    /// The whole window but this range holds the filler.
    #[track_caller]
    pub(crate) fn expect_filler_but(&mut self, offset: u64, len: u64) {
        let end = offset + len.next_multiple_of(PAGE);
        self.expect_filler(0, offset);
        self.expect_filler(end, self.window.len() - end);
    }

    #[track_caller]
    pub(crate) fn store(&mut self, offset: u64, byte: u8) {
        assert_eq!(self.vcpu.store(offset, byte), Touch::Done(0), "a store at {offset:#x} ended the run");
    }

    /// The window's lines of `/proc/self/maps`, which leave no address of it out.
    #[track_caller]
    pub(crate) fn lines(&self) -> Vec<String> {
        let base = self.window.host_address() as u64;
        let (mut at, end) = (base, base + self.window.len());
        let mut lines = Vec::new();
        let maps = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
        for line in maps.lines() {
            let (start, rest) = line.split_once('-').expect("a range");
            let number = |digits: &str| u64::from_str_radix(digits, 16).expect("an address");
            let (start, stop) = (number(start), number(rest.split(' ').next().expect("an end")));
            if stop > base && start < end {
                assert!(start.max(base) == at, "a hole in the window at {:#x}:\n{maps}", at - base);
                at = stop;
                lines.push(line.to_string());
            }
        }
        assert!(at >= end, "the window ends with a hole at {:#x}:\n{maps}", at - base);
        lines
    }
}

impl Drop for Desk {
    /// Whatever a scenario was about: no request may be lost, and the window has no hole.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.lines();
            self.guest.assert_all_answered();
        }
    }
}

pub(crate) fn host_buffer(file: &OwnedFd) -> HostBuffer {
    HostBuffer::from_fd(file.try_clone().expect("a duplicate")).expect("a buffer")
}

/// What the painted filler shows: no zero, and no two pages of a window alike.
pub(crate) fn filler(offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 2 * PAGE as usize);
    let first = offset / PAGE;
    for page in first..(offset + len as u64).div_ceil(PAGE) {
        bytes.extend([0x80 | page as u8, 0x80 | (page >> 7) as u8, 0x80, 0xff].repeat(PAGE as usize / 4));
    }
    let skipped = (offset - first * PAGE) as usize;
    bytes[skipped..skipped + len].to_vec()
}

/// Compares without printing megabytes.
#[track_caller]
pub(crate) fn assert_same(left: &[u8], right: &[u8], what: &str) {
    assert_eq!(left.len(), right.len());
    if left == right {
        return;
    }
    if let Some(at) = left.iter().zip(right).position(|(left, right)| left != right) {
        let differ = left.iter().zip(right).filter(|(left, right)| left != right).count();
        panic!("{what} in {differ} bytes, first at {at:#x}: {:#x} and {:#x}", left[at], right[at]);
    }
}

/// Descriptors and mappings of dma-bufs that the process has.
pub(crate) fn dma_bufs() -> (usize, usize) {
    (census::fds_named(DMA_BUF), census::maps_named(DMA_BUF))
}

/// Runs a scenario, asserts that it leaves no descriptor and no mapping of a dma-buf behind, and prints its line.
pub(crate) fn scenario(name: &str, run: impl FnOnce() -> String) {
    let (before, dma_before) = (Census::take(), dma_bufs());
    let started = Instant::now();
    let figures = run();
    assert_eq!(dma_bufs(), dma_before, "descriptors and mappings of dma-bufs after {name}");
    assert_eq!(Census::take().fds, before.fds, "descriptors after {name}");
    say(&format!("dma-bufs {name} {figures} ms={}", started.elapsed().as_millis()));
}
