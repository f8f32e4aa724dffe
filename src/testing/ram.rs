//! The fake guest's memory and the allocator a driver needs on it, so that tests hand the device
//! real guest addresses and can run millions of commands in a few megabytes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, Permissions};

/// Every allocation starts at a multiple of this and occupies whole multiples of it: the
/// alignment of a descriptor table, the strictest of the split ring (virtio 1.4, 2.7).
const GRANULE: u64 = 16;

/// The first page is never handed out: address 0 reads as "not set" in a queue's configuration.
const RESERVED_LOW: u64 = 0x1000;

/// Guest memory, anonymous and private, with an allocator of guest ranges.
///
/// Clones are cheap and share both the memory and the allocator.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: Arc<GuestMemoryMmap>,
    free: Arc<Mutex<FreeRanges>>,
}

impl GuestRam {
    /// One region of `bytes` bytes at guest address 0.
    ///
    /// # Panics
    ///
    /// As [`GuestRam::with_regions`].
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self::with_regions(&[(0, bytes)])
    }

    /// Regions given as (guest address, length in bytes), in ascending order.
    ///
    /// # Panics
    ///
    /// If regions are empty or overlap, or the host has no memory for them.
    #[must_use]
    pub fn with_regions(regions: &[(u64, usize)]) -> Self {
        let ranges: Vec<_> = regions.iter().map(|&(start, len)| (GuestAddress(start), len)).collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges)
            .unwrap_or_else(|error| panic!("no guest RAM of {regions:x?}: {error}"));
        Self { memory: Arc::new(memory), free: Arc::new(Mutex::new(FreeRanges::new(regions))) }
    }

    /// Memory that the caller has mapped: of files, where a device in another process is to see it.
    #[must_use]
    pub fn over(memory: GuestMemoryMmap) -> Self {
        let regions: Vec<_> = vm_memory::GuestMemoryBackend::iter(&memory)
            .map(|region| (region.start_addr().raw_value(), region.size()))
            .collect();
        Self { memory: Arc::new(memory), free: Arc::new(Mutex::new(FreeRanges::new(&regions))) }
    }

    /// The memory itself, for `vm_memory::Bytes`.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The memory as a device takes it: a `GuestAddressSpace`.
    #[must_use]
    pub fn space(&self) -> Arc<GuestMemoryMmap> {
        Arc::clone(&self.memory)
    }

    /// Takes `len` bytes at a multiple of `align`, within one region. The bytes hold whatever
    /// was there before.
    ///
    /// # Panics
    ///
    /// If `align` is not a power of two, or no free range is large enough.
    #[must_use]
    pub fn alloc(&self, len: usize, align: usize) -> GuestAddress {
        assert!(align.is_power_of_two(), "alignment of {align} bytes");
        let taken = self.lock().take(occupied(len), (align as u64).max(GRANULE));
        match taken {
            Some(start) => GuestAddress(start),
            None => {
                panic!("guest RAM exhausted: {len} bytes at a multiple of {align} asked, {} free", self.free_bytes())
            }
        }
    }

    /// Gives back what [`GuestRam::alloc`] returned for the same `len`.
    ///
    /// # Panics
    ///
    /// If the range is not RAM or is free already.
    pub fn free(&self, addr: GuestAddress, len: usize) {
        let len = occupied(len);
        assert!(self.contains(addr, len), "{addr:x?} + {len} given back, but that is not RAM");
        let given = self.lock().give(addr.0, len);
        assert!(given, "{addr:x?} + {len} given back twice");
    }

    /// Bytes that [`GuestRam::alloc`] has not handed out, the reserved first page not counted.
    /// Equal before and after a test means that the driver's side leaked nothing.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.lock().ranges.values().sum()
    }

    /// The first guest address above all RAM.
    #[must_use]
    pub fn end(&self) -> GuestAddress {
        GuestAddress(self.lock().end)
    }

    /// Copies `bytes` to guest address `addr`.
    ///
    /// # Panics
    ///
    /// If a byte falls outside RAM.
    pub fn write(&self, addr: GuestAddress, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, addr)
            .unwrap_or_else(|error| panic!("write {} bytes at {addr:x?}: {error}", bytes.len()));
    }

    /// Copies `len` bytes from guest address `addr`.
    ///
    /// # Panics
    ///
    /// If a byte falls outside RAM.
    #[must_use]
    pub fn read(&self, addr: GuestAddress, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, addr)
            .unwrap_or_else(|error| panic!("read {len} bytes at {addr:x?}: {error}"));
        bytes
    }

    fn contains(&self, addr: GuestAddress, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.memory.check_range(addr, len, Permissions::ReadWrite))
    }

    /// A test that panicked elsewhere must not hide its message behind a poisoned lock; each
    /// method leaves the ranges consistent before it can panic.
    fn lock(&self) -> MutexGuard<'_, FreeRanges> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an allocation of `len` bytes occupies. Even an empty one has an address of its own.
fn occupied(len: usize) -> u64 {
    (len.max(1) as u64).next_multiple_of(GRANULE)
}

/// Free guest ranges, start to length: disjoint, and neighbours within a region merged.
#[derive(Debug)]
struct FreeRanges {
    ranges: BTreeMap<u64, u64>,
    region_starts: Vec<u64>,
    end: u64,
}

impl FreeRanges {
    fn new(regions: &[(u64, usize)]) -> Self {
        let mut ranges = BTreeMap::new();
        for &(start, len) in regions {
            let end = start + len as u64;
            let first = start.max(RESERVED_LOW).next_multiple_of(GRANULE);
            let last = end - end % GRANULE;
            if first < last {
                ranges.insert(first, last - first);
            }
        }
        Self {
            ranges,
            region_starts: regions.iter().map(|&(start, _)| start).collect(),
            end: regions.iter().map(|&(start, len)| start + len as u64).max().unwrap_or(0),
        }
    }

    /// First fit.
    fn take(&mut self, len: u64, align: u64) -> Option<u64> {
        let (start, size, at) = self.ranges.iter().find_map(|(&start, &size)| {
            let at = start.checked_next_multiple_of(align)?;
            let used = (at - start).checked_add(len)?;
            (used <= size).then_some((start, size, at))
        })?;
        self.ranges.remove(&start);
        if start < at {
            self.ranges.insert(start, at - start);
        }
        if at + len < start + size {
            self.ranges.insert(at + len, start + size - (at + len));
        }
        Some(at)
    }

    /// False, and nothing done, if a part of the range is free already.
    fn give(&mut self, start: u64, len: u64) -> bool {
        let end = start + len;
        let before = self.ranges.range(..=start).next_back();
        let before = before.map(|(&at, &size)| (at, at + size));
        let after = self.ranges.range(start..).next();
        let after = after.map(|(&at, &size)| (at, at + size));
        if before.is_some_and(|(_, before_end)| before_end > start)
            || after.is_some_and(|(after_start, _)| after_start < end)
        {
            return false;
        }
        let mut merged = (start, end);
        if let Some((before_start, before_end)) = before
            && before_end == start
            && !self.region_starts.contains(&start)
        {
            merged.0 = before_start;
        }
        if let Some((after_start, after_end)) = after
            && after_start == end
            && !self.region_starts.contains(&end)
        {
            self.ranges.remove(&after_start);
            merged.1 = after_end;
        }
        self.ranges.insert(merged.0, merged.1 - merged.0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_written_are_read_back() {
        let ram = GuestRam::new(0x10000);
        let addr = ram.alloc(5, 1);
        ram.write(addr, b"hello");
        assert_eq!(ram.read(addr, 5), b"hello");
    }

    #[test]
    fn allocations_are_aligned_and_never_overlap() {
        let ram = GuestRam::new(0x40000);
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for step in 1..60_usize {
            let (len, align) = (step * 7, 1 << (step % 13));
            let start = ram.alloc(len, align).0;
            assert_eq!(start % align as u64, 0);
            assert!(start >= RESERVED_LOW);
            for &(other, other_end) in &taken {
                assert!(start + len as u64 <= other || other_end <= start);
            }
            taken.push((start, start + len as u64));
        }
    }

    #[test]
    fn many_commands_do_not_exhaust_a_small_guest() {
        let ram = GuestRam::new(0x4000);
        let before = ram.free_bytes();
        for round in 0..200_000_usize {
            let (first, second) = (1 + round % 900, 1 + round % 300);
            let (a, b) = (ram.alloc(first, 1), ram.alloc(second, 256));
            ram.free(a, first);
            ram.free(b, second);
        }
        assert_eq!(ram.free_bytes(), before);
        assert_eq!(ram.lock().ranges.len(), 1, "fragments were left unmerged");
    }

    #[test]
    fn no_allocation_straddles_two_regions() {
        let ram = GuestRam::with_regions(&[(0, 0x2000), (0x2000, 0x2000)]);
        let (low, high) = (ram.alloc(0x1000, 1), ram.alloc(0x2000, 1));
        assert_eq!((low.0, high.0), (0x1000, 0x2000));
        ram.free(high, 0x2000);
        ram.free(low, 0x1000);
        assert_eq!(ram.lock().ranges.len(), 2);
        assert_eq!(ram.end(), GuestAddress(0x4000));
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_range_cannot_be_freed_twice() {
        let ram = GuestRam::new(0x4000);
        let addr = ram.alloc(64, 1);
        ram.free(addr, 64);
        ram.free(addr, 64);
    }

    #[test]
    #[should_panic(expected = "not RAM")]
    fn a_range_outside_ram_cannot_be_freed() {
        GuestRam::new(0x4000).free(GuestAddress(0x4000), 16);
    }

    #[test]
    #[should_panic(expected = "guest RAM exhausted")]
    fn exhaustion_is_said_and_not_wrapped_around() {
        let _ = GuestRam::new(0x4000).alloc(0x4000, 1);
    }
}
