//! Guest memory as a front-end describes it: regions that come and go while the device runs. Blobs that the front-end maps
//! into the guest come back as regions, too; they are known by their files, and are no memory for queues and requests.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use super::wire::Wire;

/// Guest memory whose regions a front-end may change at any time.
pub type SharedGuestMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Most regions that a front-end may have: as many as QEMU gives a guest.
pub(super) const MOST_REGIONS: usize = 509;

/// What is wrong with a region.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    #[error("{0} is empty, or ends beyond all addresses")]
    Range(Place),
    #[error("{region} overlaps {other}")]
    Overlap { region: Place, other: Place },
    #[error("{0} is one more than {MOST_REGIONS}")]
    TooMany(Place),
    #[error("{region} ends behind its file's {len:#x} bytes")]
    Short { region: Place, len: u64 },
    #[error("{region} cannot be mapped: {source}")]
    Map { region: Place, source: MmapRegionError },
    #[error("{region}: {source}")]
    File { region: Place, source: io::Error },
    #[error("there is no {0}")]
    Unknown(Place),
}

/// Where a region lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// In the guest's address space.
    pub(super) guest: u64,
    pub(super) len: u64,
    /// In the front-end's.
    pub(super) user: u64,
    /// In its file.
    pub(super) offset: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { guest, len, user, offset } = self;
        write!(f, "the region {guest:#x}+{len:#x} (at {user:#x} in the front-end, {offset:#x} in its file)")
    }
}

impl Place {
    fn is_sound(&self) -> bool {
        let ends = |start: u64| start.checked_add(self.len).is_some();
        self.len > 0 && ends(self.guest) && ends(self.user) && ends(self.offset) && usize::try_from(self.len).is_ok()
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.guest < other.guest + other.len && other.guest < self.guest + self.len
    }
}

/// A region, and its memory where it is the guest's own.
struct Region {
    place: Place,
    memory: Option<Arc<GuestRegionMmap>>,
}

/// The table of a front-end's regions.
pub(super) struct Regions {
    table: Vec<Region>,
    memory: SharedGuestMemory,
    wire: Arc<Wire>,
}

impl Regions {
    /// No regions.
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        Self { table: Vec::new(), memory: SharedGuestMemory::new(GuestMemoryMmap::default()), wire }
    }

    /// What the device sees of it.
    pub(super) fn memory(&self) -> &SharedGuestMemory {
        &self.memory
    }

    /// All regions anew.
    ///
    /// # Errors
    /// The first region that is wrong; the table is as it was.
    pub(super) fn replace(&mut self, regions: impl Iterator<Item = (Place, File)>) -> Result<(), MemoryError> {
        let before = std::mem::take(&mut self.table);
        for (place, file) in regions {
            if let Err(error) = self.insert(place, file) {
                self.table = before;
                return Err(error);
            }
        }
        self.publish();
        Ok(())
    }

    /// One region more.
    ///
    /// # Errors
    /// See [`MemoryError`]; nothing has changed then.
    pub(super) fn add(&mut self, place: Place, file: File) -> Result<(), MemoryError> {
        self.insert(place, file)?;
        self.publish();
        Ok(())
    }

    /// One region less. What the device is doing with it ends first; then it is unmapped.
    ///
    /// # Errors
    /// There is none of that address, length and place in the front-end.
    pub(super) fn remove(&mut self, place: Place) -> Result<(), MemoryError> {
        let same = |region: &Region| Place { offset: place.offset, ..region.place } == place;
        let index = self.table.iter().position(same).ok_or(MemoryError::Unknown(place))?;
        self.table.swap_remove(index);
        self.publish();
        Ok(())
    }

    /// The guest's address of an address in the front-end.
    pub(super) fn guest_address(&self, user: u64) -> Option<u64> {
        let own = self.table.iter().filter(|region| region.memory.is_some()).map(|region| region.place);
        let mut inside = own.filter_map(|place| {
            let offset = user.checked_sub(place.user).filter(|offset| *offset < place.len)?;
            Some(place.guest + offset)
        });
        inside.next()
    }

    fn insert(&mut self, place: Place, file: File) -> Result<(), MemoryError> {
        if !place.is_sound() {
            return Err(MemoryError::Range(place));
        }
        if self.table.len() >= MOST_REGIONS {
            return Err(MemoryError::TooMany(place));
        }
        if let Some(other) = self.table.iter().find(|other| other.place.overlaps(&place)) {
            return Err(MemoryError::Overlap { region: place, other: other.place });
        }
        let shown = self.wire.shows(file.as_fd()).map_err(|source| MemoryError::File { region: place, source })?;
        let memory = if shown { None } else { Some(map(place, file)?) };
        self.table.push(Region { place, memory });
        Ok(())
    }

    /// Lets the device see the table as it is now.
    fn publish(&self) {
        let mut own: Vec<_> = self.table.iter().filter_map(|region| region.memory.clone()).collect();
        own.sort_by_key(|region| region.start_addr());
        // Regions do not overlap, and their order is right; without any there is no error to be had, either.
        let memory = GuestMemoryMmap::from_arc_regions(own).unwrap_or_default();
        self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner).replace(memory);
    }
}

impl Drop for Regions {
    fn drop(&mut self) {
        self.table.clear();
        self.publish();
    }
}

fn map(region: Place, file: File) -> Result<Arc<GuestRegionMmap>, MemoryError> {
    let metadata = file.metadata().map_err(|source| MemoryError::File { region, source })?;
    // The first touch behind its end would be this process's end. What is no file has its own way to refuse.
    if metadata.is_file() && metadata.len() < region.offset + region.len {
        return Err(MemoryError::Short { region, len: metadata.len() });
    }
    let mapped = MmapRegion::from_file(FileOffset::new(file, region.offset), region.len as usize);
    let mapped = mapped.map_err(|source| MemoryError::Map { region, source })?;
    GuestRegionMmap::new(mapped, GuestAddress(region.guest)).map(Arc::new).ok_or(MemoryError::Range(region))
}
