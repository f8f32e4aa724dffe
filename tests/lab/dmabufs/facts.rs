//! What each exporter allows, asked of the kernel itself: the device's rules about dma-bufs rest on these answers, and a
//! kernel that answers otherwise must be noticed here first.

use std::os::fd::AsFd;

use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, ProtFlags};

use crate::exporters::{DmaBuf, Export, Exporter, Mapping, fdinfo, say, sync_for_reading};

/// `DMA_BUF_MAGIC` (`linux/magic.h`).
const DMA_BUF_MAGIC: u64 = 0x444d_4142;
/// More than a heap's largest chunk of 1 MiB.
const LEN: u64 = 0x30_0000;

/// `ok`, or the error's name.
fn word<T>(result: Result<T>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(Errno::INVAL) => "EINVAL",
        Err(Errno::ACCESS) => "EACCES",
        Err(Errno::NODATA) => "-",
        Err(other) => panic!("the kernel answers {other:?}"),
    }
}

fn map(buffer: &DmaBuf, len: u64, prot: ProtFlags, flags: MapFlags) -> Result<Mapping> {
    Mapping::with(buffer.file.as_fd(), 0, len, prot, flags)
}

/// What the kernel answers to each way of mapping: shared, private, private of one page, for reading, of a page too many,
/// and to populating what is mapped for reading.
fn ways(buffer: &DmaBuf) -> [&'static str; 6] {
    let (both, private) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    let read = map(buffer, buffer.len, ProtFlags::READ, MapFlags::SHARED);
    let populated = read.as_ref().map_or(Err(Errno::NODATA), Mapping::populate);
    [
        word(map(buffer, buffer.len, both, MapFlags::SHARED)),
        word(map(buffer, buffer.len, both, private)),
        word(map(buffer, 4096, both, private)),
        word(read),
        word(map(buffer, buffer.len + 4096, ProtFlags::READ, MapFlags::SHARED)),
        word(populated),
    ]
}

/// Whether a private mapping laid over another at once, and refused, has left a hole.
fn hole(buffer: &DmaBuf) -> Option<bool> {
    let below = rustix::fs::memfd_create("lab-below", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&below, buffer.len).expect("a size");
    let below = Mapping::new(below.as_fd(), 0, buffer.len).expect("mapped");
    below.replaced(buffer.file.as_fd(), ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
}

/// What the table says of an exporter and a mode: see [`ways`]; none where it does not export so.
fn expected(exporter: Exporter, export: Export) -> Option<[&'static str; 6]> {
    use Export::{ReadOnly, ReadWrite, WriteOnly};
    use Exporter::{Camera, DmaHeap, Udmabuf, Vgem};
    Some(match (exporter, export) {
        (Udmabuf, ReadOnly | WriteOnly) | (Vgem, WriteOnly) => return None,
        (Udmabuf | Vgem, ReadWrite) => ["ok", "EINVAL", "EINVAL", "ok", "EINVAL", "EINVAL"],
        (Vgem, ReadOnly) => ["EACCES", "EINVAL", "EINVAL", "ok", "EINVAL", "EINVAL"],
        (DmaHeap, ReadWrite) => ["ok", "EINVAL", "ok", "ok", "EINVAL", "EINVAL"],
        (DmaHeap, ReadOnly) => ["EACCES", "EINVAL", "ok", "ok", "EINVAL", "EINVAL"],
        (Camera, ReadWrite) => ["ok", "ok", "ok", "ok", "EINVAL", "ok"],
        (Camera, ReadOnly) => ["EACCES", "ok", "ok", "ok", "EINVAL", "ok"],
        (DmaHeap | Camera, WriteOnly) => ["EACCES", "EACCES", "EACCES", "EACCES", "EACCES", "-"],
    })
}

#[test]
fn no_exporter_answers_otherwise_than_the_device_relies_on() {
    for exporter in Exporter::ALL {
        for export in Export::ALL {
            let Ok(buffer) = exporter.export(LEN, export) else {
                assert_eq!(expected(exporter, export), None, "{exporter:?} {export:?} is not exported");
                continue;
            };
            let ways = ways(&buffer);
            let magic = rustix::fs::fstatfs(&buffer.file).expect("a file system").f_type as u64;
            let seals = rustix::fs::fcntl_get_seals(&buffer.file).expect_err("dma-bufs take no seals");
            let exp_name = fdinfo(&buffer.file, "exp_name").expect("an exporter's name");
            let [shared, private, page, read, over, populate] = ways;
            say(&format!(
                "dma-bufs facts exporter={} export={export:?} size={:#x} exp_name={exp_name} shared={shared} \
                 private={private} private-page={page} read={read} over={over} populate={populate} sync={} hole={:?}",
                exporter.name(),
                buffer.len,
                word(sync_for_reading(buffer.file.as_fd())),
                hole(&buffer),
            ));
            assert_eq!((magic, seals), (DMA_BUF_MAGIC, Errno::INVAL));
            assert_eq!(Some(ways), expected(exporter, export), "{exporter:?} {export:?}");
        }
    }
}
