//! Landlock: the file system and networks closed, but for the folders of what is needed.

use std::fmt;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use super::{Needs, SandboxError, folder_of};

/// Landlock whose restrictions were read and are meant: Linux 7.2's. Of earlier ones it takes what they have.
const MEANT: ABI = ABI::V10;

/// Where the kernel tells about a descriptor: a dma-buf's exporter and an eventfd's counter. Not `/proc/self` itself, whose
/// other files tell about the process.
const DESCRIPTORS: &str = "/proc/self/fdinfo";

/// What became of the files.
#[derive(Debug)]
pub(super) enum Closed {
    /// They are closed.
    By {
        /// The version of landlock.
        landlock: String,
        /// What is open although it is not needed.
        open: Option<&'static str>,
    },
    /// They are not.
    Not {
        /// Why.
        reason: String,
    },
}

impl Closed {
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Self::By { open: None, .. })
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By { landlock, open: None } => write!(f, "landlock {landlock}"),
            Self::By { landlock, open: Some(open) } => write!(f, "landlock {landlock} ({open})"),
            Self::Not { reason } => write!(f, "files not closed ({reason})"),
        }
    }
}

/// Closes them for the calling thread and what it will start.
///
/// # Errors
/// A folder that is needed cannot be opened.
pub(super) fn close(needs: &Needs) -> Result<Closed, SandboxError> {
    let folders = folders(needs)?;
    Ok(restrict(needs, folders).unwrap_or_else(|error| Closed::Not { reason: error.to_string() }))
}

type Folder = (PathFd, BitFlags<AccessFs>);

/// What stays, and what may be done there.
fn folders(needs: &Needs) -> Result<Vec<Folder>, SandboxError> {
    let mut folders = Vec::new();
    if let Some(folder) = &needs.pictures {
        folders.push((opened(folder)?, AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile));
    }
    if let Some(path) = &needs.socket {
        folders.push((opened(folder_of(path))?, AccessFs::RemoveFile.into()));
    }
    for path in &needs.host_sockets {
        // Of a service that is not there, or will have made its socket anew: the folder counts.
        if let Ok(folder) = opened(folder_of(path)) {
            folders.push((folder, AccessFs::ResolveUnix.into()));
        }
    }
    if !needs.host_sockets.is_empty() {
        let descriptors = || opened(Path::new(DESCRIPTORS));
        // Open for as long as the process lives: the rule is about this inode, and the kernel makes another one for the same path
        // where it had to find memory and nobody had the first one open.
        std::mem::forget(descriptors()?);
        folders.push((descriptors()?, AccessFs::ReadFile.into()));
    }
    Ok(folders)
}

fn opened(path: &Path) -> Result<PathFd, SandboxError> {
    PathFd::new(path).map_err(|error| SandboxError::Path {
        path: path.to_owned(),
        error: match error {
            PathFdError::OpenCall { source, .. } => source,
            other => io::Error::other(other),
        },
    })
}

fn restrict(needs: &Needs, folders: Vec<Folder>) -> Result<Closed, RulesetError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(MEANT))?
        .handle_access(AccessNet::from_all(MEANT))?
        .scope(Scope::AbstractUnixSocket)?
        .scope(Scope::Signal)?
        .create()?;
    for (folder, access) in folders {
        ruleset = allow(ruleset, folder, access)?;
    }
    let status = ruleset.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, kernel_abi } if status.ruleset != RulesetStatus::NotEnforced => {
            let landlock = kernel_abi.map_or_else(|| effective_abi.to_string(), |newer| newer.to_string());
            // What else older ones lack, networks and signals, seccomp refuses.
            let sockets = !needs.host_sockets.is_empty() && effective_abi < ABI::V9;
            Closed::By { landlock, open: sockets.then_some("other Unix sockets stay within reach") }
        }
        LandlockStatus::NotImplemented => Closed::Not { reason: "the kernel has no landlock".into() },
        _ => Closed::Not { reason: "landlock is not switched on in the kernel".into() },
    })
}

fn allow(ruleset: RulesetCreated, folder: PathFd, access: BitFlags<AccessFs>) -> Result<RulesetCreated, RulesetError> {
    ruleset.add_rule(PathBeneath::new(folder, access))
}
