//! What every test about blobs starts from: a guest with a small window, one context, and buffers that its VMM offers.
#![allow(dead_code, reason = "each test target uses a part of it")]

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, FLAG_FENCE, FLAG_INFO_RING_IDX};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Request};
use virtio_gpu_uring::{BlobId, Builder, HostBuffer, HostWindow};

/// The host's page.
pub(crate) const PAGE: u64 = 4096;
/// Pages of the usual window.
pub(crate) const PAGES: u64 = 64;
/// The context that is there from the start.
pub(crate) const CONTEXT: u32 = 1;

/// A guest and its window, which is read and written as the guest would.
pub(crate) struct Setup {
    pub(crate) guest: Guest,
    pub(crate) window: HostWindow,
}

impl Setup {
    /// A window of 64 pages, each with scratch memory of its own, so that no gap looks like another.
    pub(crate) fn new() -> Self {
        Self::with(Builder::new())
    }

    pub(crate) fn with(builder: Builder) -> Self {
        let len = (PAGES * PAGE) as usize;
        Self::on(HostWindow::with_scratch(len, len).expect("a window"), builder)
    }

    pub(crate) fn on(window: HostWindow, builder: Builder) -> Self {
        Self::with_options(window.clone(), builder.window(window), GuestOptions::default())
    }

    /// `builder` knows its window already.
    pub(crate) fn with_options(window: HostWindow, builder: Builder, options: GuestOptions) -> Self {
        let mut guest = Guest::with_options(builder, GuestOptions { ram: 4 << 20, ..options });
        guest.command(&Request::ctx_create(CONTEXT, CAPSET_CROSS_DOMAIN)).ok();
        Self { guest, window }
    }

    /// Hands the device a duplicate of a file.
    pub(crate) fn offer(&self, file: &OwnedFd) -> u64 {
        self.offer_buffer(HostBuffer::from_fd(file.try_clone().expect("a duplicate")).expect("a buffer"))
    }

    pub(crate) fn offer_buffer(&self, buffer: HostBuffer) -> u64 {
        let BlobId(id) = self.guest.device().offer(buffer).wait().expect("a device").expect("an offer");
        id
    }

    /// Makes a resource of a duplicate of a file.
    #[track_caller]
    pub(crate) fn blob(&mut self, resource: u32, file: &OwnedFd, size: u64) {
        let id = self.offer(file);
        self.guest.command(&Request::host_blob(CONTEXT, resource, id, size)).ok();
    }

    /// Makes a resource of another kind of buffer.
    #[track_caller]
    pub(crate) fn blob_of(&mut self, resource: u32, buffer: HostBuffer, size: u64) {
        let id = self.offer_buffer(buffer);
        self.guest.command(&Request::host_blob(CONTEXT, resource, id, size)).ok();
    }

    #[track_caller]
    pub(crate) fn ok(&mut self, request: &Request) {
        self.guest.command(request).ok();
    }

    /// Sends a request with a fence, and asserts that it is refused with this code and its fence echoed.
    #[track_caller]
    pub(crate) fn refused(&mut self, request: &Request, code: u32) {
        let fence = 0x1_0000_0001;
        let answer = self.guest.command(&request.clone().fenced(fence));
        answer.expect_error(code);
        let flags = answer.header.flags.get() & (FLAG_FENCE | FLAG_INFO_RING_IDX);
        assert_eq!((flags, answer.header.fence_id.get()), (FLAG_FENCE, fence), "the fence is not echoed");
    }

    /// The window's byte at `offset`.
    #[track_caller]
    pub(crate) fn byte(&self, offset: u64) -> u8 {
        let mut out = [0];
        self.window.read(offset, &mut out).expect("in the window");
        out[0]
    }

    /// The first byte of each of these pages.
    #[track_caller]
    pub(crate) fn pages(&self, pages: Range<u64>) -> Vec<u8> {
        pages.map(|page| self.byte(page * PAGE)).collect()
    }

    /// Writes the gap's pattern to the first byte of every page that is in a gap now: all of them, at the start.
    pub(crate) fn paint(&self) {
        for page in 0..self.window.len() / PAGE {
            self.window.write(page * PAGE, &[gap(page)]).expect("in the window");
        }
    }

    /// Asserts that these pages are the gap that was painted.
    #[track_caller]
    pub(crate) fn assert_gap(&self, pages: Range<u64>) {
        let want: Vec<u8> = pages.clone().map(gap).collect();
        assert_eq!(self.pages(pages.clone()), want, "pages {pages:?} are not the gap that they were");
    }
}

impl Drop for Setup {
    /// Whatever a test was about: no request may be lost.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.guest.assert_all_answered();
        }
    }
}

/// What the painted gap shows at the start of a page.
pub(crate) fn gap(page: u64) -> u8 {
    0x80 | page as u8
}

/// A memfd that takes seals; page n starts with n + 1.
pub(crate) fn memfd(name: &str, len: u64) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memfd");
    ftruncate(&file, len).expect("size");
    for page in 0..len.div_ceil(PAGE) {
        put(&file, page * PAGE, page as u8 + 1);
    }
    file
}

/// The same file, opened for reading only.
pub(crate) fn read_only(file: &OwnedFd) -> OwnedFd {
    reopened(file, OFlags::RDONLY)
}

/// The same file, opened anew.
pub(crate) fn reopened(file: &OwnedFd, flags: OFlags) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).expect("reopened")
}

/// Writes one byte as the host.
pub(crate) fn put(file: &OwnedFd, offset: u64, byte: u8) {
    assert_eq!(rustix::io::pwrite(file, &[byte], offset).expect("a host write"), 1);
}

/// Reads one byte as the host.
pub(crate) fn get(file: &OwnedFd, offset: u64) -> u8 {
    let mut byte = [0];
    assert_eq!(rustix::io::pread(file, &mut byte, offset).expect("a host read"), 1);
    byte[0]
}
