//! What a process that does nothing but serve a device gives up: files, networks, other programs, and every system call that
//! the device does not make. A guest that has broken out of the device's own checks finds nothing to go on with.
//!
//! Three layers, because each leaves something to another. Landlock closes the file system, which seccomp cannot: it does not see
//! paths. Seccomp refuses system calls. The ring of the device's own thread takes none but the device's operations
//! ([`Builder::spawn`](crate::Builder::spawn) sees to that), because what is asked of a ring passes seccomp by.
//!
//! ```no_run
//! # use virtio_gpu_uring::sandbox::{Needs, Sandbox};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let needs = Needs::default().pictures("/var/lib/pictures").socket("/run/gpu.sock");
//! // Before the device is there: what is started from here on has no more files than that.
//! let sandbox = Sandbox::close_files(needs)?;
//! // The device, its displays, the sockets. Then:
//! eprintln!("{}", sandbox.enter()?);
//! # Ok(())
//! # }
//! ```
//!
//! What is refused fails with an error, `EPERM` or `EACCES`; nobody is killed for it. A renderer, which compiles code and opens
//! what it likes, does not work inside.

mod calls;
mod files;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use files::Closed;

use crate::sys::restricted;

/// Numbers of descriptors that are looked at for rings, where the process may have more of them.
const MOST_NUMBERS: u64 = 1 << 16;

/// What the process needs beside a device without displays and channels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "it says what is needed and does nothing"]
pub struct Needs {
    pictures: Option<PathBuf>,
    socket: Option<PathBuf>,
    host_sockets: Vec<PathBuf>,
}

impl Needs {
    /// A folder to write new files in, to replace them and to remove them: for a display that writes pictures. Nothing
    /// in it can be read.
    pub fn pictures(mut self, folder: impl Into<PathBuf>) -> Self {
        self.pictures = Some(folder.into());
        self
    }

    /// A socket to remove in the end. Landlock knows folders alone, so other files of its folder can be removed, too.
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }

    /// A socket that the device connects to for its guest ([`Builder::host_socket`](crate::Builder::host_socket)). Before
    /// Linux 7.1 (landlock 9) every socket that the process's user may connect to can be reached then, and without any
    /// there is no connecting at all.
    pub fn host_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.host_sockets.push(path.into());
        self
    }
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The folder of something that is needed cannot be opened.
    #[error("{}: {error}", path.display())]
    Path {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Seccomp cannot be had: this processor is none that its filters know, or the kernel refuses them.
    #[error("cannot restrict system calls: {reason}")]
    SystemCalls {
        /// In the words of what makes the filter, or of the kernel.
        reason: String,
    },
}

/// A process without files, that is to lose its system calls next.
#[derive(Debug)]
#[must_use = "system calls are restricted by `enter` alone"]
pub struct Sandbox {
    needs: Needs,
    files: Closed,
}

impl Sandbox {
    /// Takes the files and networks from the calling thread, and from what it starts: before it has started others. Where the
    /// kernel's landlock can do less, or nothing, less is taken, and [`Entered`] says so.
    ///
    /// # Errors
    /// [`SandboxError::Path`].
    pub fn close_files(needs: Needs) -> Result<Self, SandboxError> {
        let files = files::close(&needs)?;
        Ok(Self { needs, files })
    }

    /// Takes the system calls from all threads: when the device is there, because no other ring can be set up afterwards.
    /// Threads can.
    ///
    /// # Errors
    /// [`SandboxError::SystemCalls`]: nothing else is given back.
    pub fn enter(self) -> Result<Entered, SandboxError> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let numbers = limit.map_or(MOST_NUMBERS, |limit| limit.min(MOST_NUMBERS));
        // At most 2^16.
        let (rings, restricted) = restricted::rings(numbers as i32);
        let calls = calls::restrict(&self.needs)?;
        Ok(Entered { files: self.files, calls, rings, restricted })
    }
}

/// What was taken from the process; it reads as one line for a log.
#[derive(Debug)]
pub struct Entered {
    files: Closed,
    calls: usize,
    rings: usize,
    restricted: usize,
}

impl Entered {
    /// Whether the kernel could do all that was asked of it. What it could not stands in the line.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.files.is_whole() && self.rings == self.restricted
    }
}

impl fmt::Display for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, calls, rings, restricted } = self;
        write!(f, "sandbox: {files}, {calls} system calls")?;
        match rings - restricted {
            0 => write!(f, ", io_uring for {} operations", restricted::OPERATIONS.len()),
            open => write!(f, ", but {open} of {rings} rings for every operation"),
        }
    }
}

/// The folder that a path's last name stands in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_bare_name_is_never_lost() {
        for (path, folder) in [("a", "."), ("./a", "."), ("a/b", "a"), ("/a", "/"), ("/a/b", "/a")] {
            assert_eq!(folder_of(Path::new(path)), Path::new(folder), "{path}");
        }
    }

    #[test]
    fn a_sandbox_that_lacks_something_never_says_that_it_is_whole() {
        let entered = |files, rings, restricted| Entered { files, calls: 70, rings, restricted };
        let whole = entered(Closed::By { landlock: "7".into(), open: None }, 1, 1);
        assert_eq!(whole.to_string(), "sandbox: landlock 7, 70 system calls, io_uring for 4 operations");
        assert!(whole.is_whole());
        let ring = entered(Closed::By { landlock: "7".into(), open: None }, 2, 1);
        assert_eq!(ring.to_string(), "sandbox: landlock 7, 70 system calls, but 1 of 2 rings for every operation");
        let files = entered(Closed::Not { reason: "the kernel has no landlock".into() }, 1, 1);
        assert!(files.to_string().starts_with("sandbox: files not closed (the kernel has no landlock), 70"), "{files}");
        assert!(!ring.is_whole() && !files.is_whole());
    }
}
