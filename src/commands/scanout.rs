//! Scanouts and their cursors. The one scanout has no display behind it: it can be switched off and its cursor moved
//! and hidden, and anything that would need pixels is refused.

use super::{Gpu, Refusal, Response};
use crate::protocol::command::CursorMove;

/// Scanouts in the configuration space; the specification wants at least one.
pub(crate) const COUNT: u32 = 1;

impl Gpu {
    pub(super) fn set_scanout(&self, scanout: u32, resource: u32) -> Result<Response, Refusal> {
        self.show(scanout, resource)
    }

    pub(super) fn cursor(&self, cursor: CursorMove) -> Result<Response, Refusal> {
        self.show(cursor.scanout, cursor.image.unwrap_or(0))
    }

    /// Resource 0 shows nothing, which is all that blobs without a format can be asked for here.
    fn show(&self, scanout: u32, resource: u32) -> Result<Response, Refusal> {
        if scanout >= COUNT {
            return Err(Refusal::UnknownScanout { id: scanout });
        }
        match (resource, self.resources.key(resource)) {
            (0, _) => Ok(Response::NoData),
            (id, None) => Err(Refusal::UnknownResource { id }),
            (_, Some(_)) => Err(Refusal::Parameter("a blob without a format cannot be shown")),
        }
    }
}
