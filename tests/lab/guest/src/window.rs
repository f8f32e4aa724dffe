//! Where the host-visible window lies in the guest's physical memory and what the driver has put into it, as the
//! kernel tells a curious root.

use std::fs::{self, File, OpenOptions};
use std::ops::Range;

use crate::drm::{Mapping, PAGE};
use crate::failure::{Failure, In, Result};

const IOMEM: &str = "/proc/iomem";
const ALLOCATIONS: &str = "/sys/kernel/debug/dri/0/virtio-gpu-host-visible-mm";
const MEMORY_TYPES: &str = "/sys/kernel/debug/x86/pat_memtype_list";

/// The window, in guest physical addresses.
pub(crate) struct Window {
    range: Range<u64>,
}

/// A piece of the window that no blob takes, mapped through /dev/mem.
pub(crate) struct Gap {
    pub(crate) start: u64,
    pub(crate) memory: Mapping,
}

impl Window {
    /// Finds it by the name of the virtio device that has claimed it.
    pub(crate) fn find() -> Result<Self> {
        let text = read(IOMEM)?;
        let range = claimed_by_virtio(&text).ok_or_else(|| Failure::new("window", format_args!("not in {IOMEM}")))?;
        Ok(Self { range })
    }

    /// Maps all gaps. The kernel has to be booted with `iomem=relaxed`, since a driver has claimed the window.
    pub(crate) fn map_gaps(&self) -> Result<Vec<Gap>> {
        let memory = open_memory()?;
        let map = |gap: Range<u64>| {
            let (start, len) = (gap.start, gap.end - gap.start);
            let mapped = Mapping::new(&memory, start, usize::try_from(len).during("gap")?);
            let refused = |error| {
                let advice = "the kernel's command line needs iomem=relaxed";
                Failure::new("gap", format_args!("mmap of {len:#x} bytes of /dev/mem at {start:#x}: {error}; {advice}"))
            };
            Ok(Gap { start, memory: mapped.map_err(refused)? })
        };
        gaps(&used(&read(ALLOCATIONS)?), &self.range).into_iter().map(map).collect()
    }
}

/// The memory types that the kernel has given to pieces of the window.
pub(crate) fn memory_types(window: &Window) -> Result<Vec<String>> {
    Ok(types_within(&read(MEMORY_TYPES)?, &window.range))
}

fn read(path: &'static str) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Failure::new("read", format_args!("{path}: {error}")))
}

fn open_memory() -> Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/mem").during("open of /dev/mem")
}

/// `START-END` with `separator` between two hexadecimal numbers.
fn range(text: &str) -> Option<Range<u64>> {
    let number = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
    let (start, end) = text.split_once('-')?;
    Some(number(start)?..number(end)?)
}

/// The line `START-END : virtioN`, whose end is the last byte.
fn claimed_by_virtio(iomem: &str) -> Option<Range<u64>> {
    let of_line = |line: &str| {
        let (addresses, name) = line.split_once(" : ")?;
        let number = name.strip_prefix("virtio")?;
        number.parse::<u32>().ok()?;
        let range = range(addresses)?;
        (range.end > range.start).then_some(range.start..range.end + 1)
    };
    iomem.lines().find_map(of_line)
}

/// The lines `START-END: LEN: used` of the driver's allocator, in guest physical addresses.
fn used(allocations: &str) -> Vec<Range<u64>> {
    let of_line = |line: &str| range(line.strip_suffix(": used")?.split_once(':')?.0);
    allocations.lines().filter_map(of_line).collect()
}

/// What `used`, in ascending order, leaves of the window.
fn gaps(used: &[Range<u64>], window: &Range<u64>) -> Vec<Range<u64>> {
    let ends = used.iter().map(|range| range.end);
    let starts = used.iter().map(|range| range.start).chain([window.end]);
    let between = std::iter::once(window.start).chain(ends).zip(starts);
    between.filter(|(from, to)| to.saturating_sub(*from) >= PAGE as u64).map(|(from, to)| from..to).collect()
}

/// Of the lines `PAT: [mem START-END] TYPE`, the types of those inside `window`.
fn types_within(list: &str, window: &Range<u64>) -> Vec<String> {
    let of_line = |line: &str| {
        let (addresses, kind) = line.strip_prefix("PAT: [mem ")?.split_once("] ")?;
        let range = range(addresses)?;
        (range.start >= window.start && range.end <= window.end).then(|| kind.trim().to_owned())
    };
    list.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_the_range_that_a_virtio_device_claims() {
        let iomem = "00001000-0009fbff : System RAM\nd0000000-d0000fff : LNRO0005:00\n  d0000000-d0000fff : LNRO0005:00\n\
                     200000000-20fffffff : virtio0\n";
        assert_eq!(claimed_by_virtio(iomem), Some(0x2_0000_0000..0x2_1000_0000));
        assert_eq!(claimed_by_virtio("00000000-00000000 : virtio0\n"), None);
        assert_eq!(claimed_by_virtio("1000-1fff : virtio-mmio\n"), None);
    }

    #[test]
    fn gaps_are_all_that_no_blob_takes() {
        let text = "0x0000000200000000-0x0000000200071000: 462848: used\n\
                    0x0000000200071000-0x0000000200080000: 61440: free\n\
                    0x0000000200080000-0x0000000200081000: 4096: used\n\
                    0x0000000200081000-0x0000000200100000: 520192: free\n\
                    total: 1048576, used 466944 free 581632\n";
        assert_eq!(used(text), [0x2_0000_0000..0x2_0007_1000, 0x2_0008_0000..0x2_0008_1000]);
        let free = gaps(&used(text), &(0x2_0000_0000..0x2_0010_0000));
        assert_eq!(free, [0x2_0007_1000..0x2_0008_0000, 0x2_0008_1000..0x2_0010_0000]);
        assert_eq!(gaps(&[], &(0x1000..0x3000)).first(), Some(&(0x1000..0x3000)));
        assert_eq!(gaps(&[0x1000..0x2000, 0x2000..0x3000], &(0x1000..0x3000)), []);
    }

    #[test]
    fn only_memory_types_of_the_window_count() {
        let list = "PAT memtype list:\nPAT: [mem 0x00000000d0000000-0x00000000d0001000] uncached-minus\n\
                    PAT: [mem 0x0000000200000000-0x0000000200071000] write-back\n";
        assert_eq!(types_within(list, &(0x2_0000_0000..0x2_1000_0000)), ["write-back"]);
        assert!(types_within(list, &(0x3_0000_0000..0x3_1000_0000)).is_empty());
    }
}
