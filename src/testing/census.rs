//! What this process holds: descriptors and mappings, counted before and after, or looked up by a memfd's name so that
//! tests beside each other do not count each other's.

use std::fs;
use std::path::PathBuf;

/// Open descriptors and mappings of the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// Entries of `/proc/self/fd`.
    pub fds: usize,
    /// Lines of `/proc/self/maps`.
    pub maps: usize,
}

impl Census {
    /// Counts now.
    ///
    /// # Panics
    /// Where `/proc` cannot be read.
    #[must_use]
    pub fn take() -> Self {
        // The folder's own descriptor is among the entries, before and after alike.
        let fds = fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count();
        let maps = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps").lines().count();
        Self { fds, maps }
    }
}

/// Descriptors whose link names `name`.
///
/// # Panics
/// Where `/proc` cannot be read.
#[must_use]
pub fn fds_named(name: &str) -> usize {
    let links = fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten();
    let link = |path: PathBuf| fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains(name));
    links.filter(|entry| link(entry.path())).count()
}

/// Mappings of files whose path names `name`.
///
/// # Panics
/// Where `/proc` cannot be read.
#[must_use]
pub fn maps_named(name: &str) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    maps.lines().filter(|line| line.contains(name)).count()
}
