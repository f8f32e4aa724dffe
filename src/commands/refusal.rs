//! Why a command is answered with an error: the reason in words for the log, and the specification's code for the guest.

use super::ErrorCode;
use crate::buffer::{BufferError, BufferKind, ReadError};
use crate::cross_domain::ContextError;
use crate::display::ViewError;
use crate::limits::LimitReached;
use crate::protocol::DecodeError;
use crate::protocol::cross_domain::StreamError;
use crate::renderer::RendererError;
use crate::resource::{BackingError, WrongState};
use crate::seams::PlaceError;
use crate::window::MapError;

/// Why a command was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("feature {feature:#x} was not negotiated")]
    NotNegotiated { feature: u64 },
    #[error("commands of this kind do not belong on this queue")]
    WrongQueue,
    #[error("a response of {needed} bytes does not fit into {have}")]
    ResponseSpace { needed: usize, have: usize },
    #[error("the device is not active")]
    Inactive,
    #[error("{0}")]
    Parameter(&'static str),
    #[error("resource {id} does not exist")]
    UnknownResource { id: u32 },
    #[error("resource id {id} is 0 or in use")]
    ResourceId { id: u32 },
    #[error("context {id} does not exist")]
    UnknownContext { id: u32 },
    #[error("context id {id} is 0 or in use")]
    ContextId { id: u32 },
    #[error("scanout {id} does not exist")]
    UnknownScanout { id: u32 },
    #[error("capability set {id} is not offered")]
    UnknownCapset { id: u32 },
    #[error("object {blob_id:#x} does not exist in the context")]
    UnknownObject { blob_id: u64 },
    #[error("blob of {size} bytes on a {kind:?} buffer of {len} bytes")]
    Oversize { size: u64, kind: BufferKind, len: u64 },
    #[error("the context has too many items that it has not used")]
    ItemLimit,
    #[error("there is no host-visible window")]
    NoWindow,
    #[error("there is no renderer")]
    NoRenderer,
    #[error("the host has no {bytes} bytes of memory")]
    NoMemory { bytes: u64 },
    #[error("the mapping could not be taken back")]
    Quarantined,
    #[error(transparent)]
    Limit(#[from] LimitReached),
    #[error(transparent)]
    Backing(#[from] BackingError),
    #[error(transparent)]
    State(#[from] WrongState),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("command stream: {0}")]
    Stream(#[from] StreamError),
    #[error(transparent)]
    CrossDomain(#[from] ContextError),
    #[error(transparent)]
    Renderer(#[from] RendererError),
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error(transparent)]
    View(#[from] ViewError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::Read(error.into())
    }
}

impl Refusal {
    /// The most exact code that the specification has for it.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Decode(error) => error.code(),
            Self::NotNegotiated { .. }
            | Self::WrongQueue
            | Self::Inactive
            | Self::NoWindow
            | Self::NoRenderer
            | Self::Quarantined
            | Self::Buffer(_) => ErrorCode::Unspec,
            Self::ResponseSpace { .. }
            | Self::Parameter(_)
            | Self::UnknownCapset { .. }
            | Self::UnknownObject { .. }
            | Self::Oversize { .. }
            | Self::State(_)
            | Self::View(_)
            | Self::Stream(_) => ErrorCode::InvalidParameter,
            Self::UnknownResource { .. } | Self::ResourceId { .. } => ErrorCode::InvalidResourceId,
            Self::UnknownContext { .. } | Self::ContextId { .. } => ErrorCode::InvalidContextId,
            Self::UnknownScanout { .. } => ErrorCode::InvalidScanoutId,
            Self::Limit(_) | Self::ItemLimit | Self::NoMemory { .. } => ErrorCode::OutOfMemory,
            Self::Read(ReadError::Limit { .. }) => ErrorCode::OutOfMemory,
            Self::Read(ReadError::Io(error)) if exhausted(error) => ErrorCode::OutOfMemory,
            Self::Read(ReadError::OutOfRange { .. }) => ErrorCode::InvalidParameter,
            Self::Read(_) => ErrorCode::Unspec,
            Self::Backing(BackingError::Limit(_)) => ErrorCode::OutOfMemory,
            Self::Backing(_) => ErrorCode::InvalidParameter,
            Self::Map(error) => map_code(error),
            Self::CrossDomain(error) => context_code(error),
            Self::Renderer(RendererError::Invalid(_)) => ErrorCode::InvalidParameter,
            Self::Renderer(RendererError::OutOfMemory(_)) => ErrorCode::OutOfMemory,
            Self::Renderer(RendererError::Stopped) => ErrorCode::Unspec,
        }
    }

    /// Whether a limit of the device is what refused it.
    pub(crate) fn is_limit(&self) -> bool {
        matches!(self.code(), ErrorCode::OutOfMemory)
    }
}

fn map_code(error: &MapError) -> ErrorCode {
    match error {
        MapError::Unaligned { .. }
        | MapError::OutOfRange { .. }
        | MapError::Overlap { .. }
        | MapError::Truncated { .. } => ErrorCode::InvalidParameter,
        MapError::Limit(_) => ErrorCode::OutOfMemory,
        MapError::Place { source: PlaceError::Refused { source } | PlaceError::Moved { source }, .. }
            if exhausted(source) =>
        {
            ErrorCode::OutOfMemory
        }
        MapError::Own(error) if matches!(error.downcast_ref(), Some(RendererError::OutOfMemory(_))) => {
            ErrorCode::OutOfMemory
        }
        MapError::Place { .. }
        | MapError::Deadline { .. }
        | MapError::Io(_)
        | MapError::NoFixedRange
        | MapError::Own(_) => ErrorCode::Unspec,
    }
}

fn context_code(error: &ContextError) -> ErrorCode {
    use crate::cross_domain::SendError;
    match error {
        ContextError::NotARing { .. } | ContextError::NotSendable { .. } | ContextError::RingGone => {
            ErrorCode::InvalidResourceId
        }
        ContextError::Initialised
        | ContextError::NoChannel
        | ContextError::NotOffered(_)
        | ContextError::PipeId { .. }
        | ContextError::NoSuchItem { .. }
        | ContextError::Watched { .. }
        | ContextError::Count { .. }
        | ContextError::Dialect
        | ContextError::Image(_) => ErrorCode::InvalidParameter,
        ContextError::Write { source, .. } if source.kind() == std::io::ErrorKind::InvalidInput => {
            ErrorCode::InvalidParameter
        }
        ContextError::Send(SendError::Backlog { .. } | SendError::NoRoom(_))
        | ContextError::Full { .. }
        | ContextError::ItemLimit
        | ContextError::Closing
        | ContextError::Limit(_) => ErrorCode::OutOfMemory,
        ContextError::Connect(error) | ContextError::Host(error) if exhausted(error) => ErrorCode::OutOfMemory,
        ContextError::Send(SendError::Closed)
        | ContextError::Connect(_)
        | ContextError::Host(_)
        | ContextError::Write { .. } => ErrorCode::Unspec,
    }
}

/// The process or the host has no room for one more descriptor, or no memory.
fn exhausted(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS))
}
