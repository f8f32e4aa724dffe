//! The host-visible region where its owner is a front-end: blobs are shown by SHMEM_MAP and taken back by SHMEM_UNMAP.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::wire::{Range, Wire};
use crate::seams::{BufferKind, PlaceError, Protection, SharedMemory, Work};

/// The region in the front-end.
pub(super) struct FrontEndWindow {
    pub(super) len: u64,
    pub(super) wire: Arc<Wire>,
}

impl SharedMemory for FrontEndWindow {
    fn len(&self) -> u64 {
        self.len
    }

    fn place(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        _kind: BufferKind,
        protection: Protection,
    ) -> Work<Result<(), PlaceError>> {
        let refused = |source| Err(PlaceError::Refused { source });
        let writable = match protection {
            Protection::ReadWrite => true,
            Protection::ReadOnly => false,
            Protection::PrivateCopy => {
                let reason = "a front-end makes no private copies";
                return Work::Done(refused(io::Error::new(io::ErrorKind::Unsupported, reason)));
            }
        };
        let range = Range { offset, len };
        match self.wire.map(range, file, writable) {
            Ok(answer) => {
                let wire = Arc::clone(&self.wire);
                Work::later(async move {
                    let gone =
                        |_| Err(io::Error::new(io::ErrorKind::NotConnected, "nobody is there to map it any more"));
                    answer.await.unwrap_or_else(gone).map_err(|source| {
                        wire.shows_nothing(range);
                        PlaceError::Refused { source }
                    })
                })
            }
            Err(source) => Work::Done(refused(source)),
        }
    }

    fn clear(&self, offset: u64, len: u64, _kind: BufferKind) -> Work<Result<(), PlaceError>> {
        let range = Range { offset, len };
        let (answer, wire) = (self.wire.unmap(range), Arc::clone(&self.wire));
        Work::later(async move {
            match answer.await {
                Ok(Err(source)) => Err(PlaceError::Lost { source }),
                Ok(Ok(())) => {
                    wire.shows_nothing(range);
                    Ok(())
                }
                // With its front-end, or with what the guest was before its reset, the region has gone.
                Err(_) => Ok(()),
            }
        })
    }

    fn clear_now(&self, offset: u64, len: u64) -> Result<(), PlaceError> {
        let range = Range { offset, len };
        self.wire.unmap_unheard(range);
        self.wire.shows_nothing(range);
        Ok(())
    }
}
