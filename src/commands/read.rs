//! What the VMM asks of a blob beside the guest's commands: its bytes, as the host sees them.

use std::rc::Rc;
use std::time::Duration;

use super::Gpu;
use crate::buffer::read::{Read, ReadError, Span, room};
use crate::resource::{Blob, GuestBlob, GuestRam};
use crate::seams::LocalFuture;

/// Guest memory is copied by the device task itself, no more than this between two turns of everybody else.
const PIECE: u64 = 1 << 20;

/// What an entry of a list counts for at least, in bytes.
const LEAST: u64 = 256;

/// A timer and no wake-up of its own: a task that wakes itself keeps submitted operations from the kernel.
const PAUSE: Duration = Duration::from_millis(1);

impl Gpu {
    /// Reads a blob. Its bytes are those of some moment before the future's end; what becomes of the resource meanwhile does
    /// not matter to it, but for a reset.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub(crate) fn read_blob(&self, resource: u32, span: Span) -> Result<LocalFuture<Read>, ReadError> {
        let unknown = ReadError::UnknownResource { resource };
        let Some(row) = self.resources.key(resource).and_then(|key| self.resources.get(key)) else {
            return Err(unknown);
        };
        match &row.blob {
            Blob::Host(blob) => {
                let range = span.within(blob.size.min(blob.buffer.readable()?))?;
                Ok(self.reads.buffer(blob.buffer.duplicate(&self.ledger)?, range))
            }
            Blob::Guest(blob) => self.read_guest_blob(blob, span),
        }
    }

    fn read_guest_blob(&self, blob: &GuestBlob, span: Span) -> Result<LocalFuture<Read>, ReadError> {
        let range = span.within(blob.len())?;
        let len = range.end - range.start;
        let pieces = blob.backing.as_ref().map(|backing| backing.pieces_of(range)).unwrap_or_default();
        let ram = self.ram.clone().ok_or(ReadError::Reset)?;
        Ok(self.reads.in_pieces(copy_guest_memory(ram, pieces, len)))
    }

    /// Ends the reads that wait for something.
    pub(crate) fn end_reads(&self) {
        self.reads.end();
    }
}

async fn copy_guest_memory(ram: Rc<dyn GuestRam>, pieces: Vec<(u64, u64)>, len: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = room(len)?;
    let mut left = PIECE;
    for (address, len) in pieces {
        let mut at = 0;
        while at < len {
            if left == 0 {
                tokio::time::sleep(PAUSE).await;
                left = PIECE;
            }
            let (now, start) = (left.min(len - at), bytes.len());
            bytes.resize(start + now as usize, 0);
            if !ram.read(address + at, &mut bytes[start..]) {
                return Err(ReadError::NotRam { address: address + at });
            }
            at += now;
            // Many small entries take their time, too.
            left = left.saturating_sub(now.max(LEAST));
        }
    }
    Ok(bytes)
}
