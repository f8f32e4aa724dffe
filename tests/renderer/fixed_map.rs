//! What a renderer's library does with a range of the window, and what the kernel says is mapped there.
#![expect(unsafe_code, reason = "a mapping at a fixed address has no safe form")]

use std::fs;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap};

use virtio_gpu_uring::HostWindow;

/// Maps a file over a range that the device has handed out for it.
pub(super) fn map_over(address: NonNull<u8>, len: usize, file: &OwnedFd) {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the device hands out the range for something to be mapped over it: nothing else lies there.
    let mapped = unsafe { mmap(address.as_ptr().cast(), len, access, MapFlags::SHARED | MapFlags::FIXED, file, 0) };
    assert_eq!(mapped.expect("mapped"), address.as_ptr().cast());
}

/// The mapping that holds the byte at `offset` of a window: its access, and the name of its file.
pub(super) fn mapping_at(window: &HostWindow, offset: u64) -> (String, String) {
    let wanted = window.host_address().addr() + usize::try_from(offset).expect("an offset");
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    let number = |text: &str| usize::from_str_radix(text, 16).expect("an address");
    let holds = |line: &&str| {
        let (range, _) = line.split_once(' ').expect("a range");
        let (start, end) = range.split_once('-').expect("two ends");
        (number(start)..number(end)).contains(&wanted)
    };
    let line = maps.lines().find(holds).unwrap_or_else(|| panic!("a hole in the window at {offset:#x}"));
    let mut words = line.split_whitespace().skip(1);
    (words.next().unwrap_or_default().to_owned(), words.skip(3).collect::<Vec<&str>>().join(" "))
}
