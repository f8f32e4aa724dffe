//! Bytes of resources as the host sees them: what the VMM asks of a blob, and what displays are shown of host memory.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::{Gpu, Refusal};
use crate::buffer::read::{Line, Read, ReadError, Span, room};
use crate::protocol::format::PIXEL;
use crate::resource::{GuestBlob, GuestRam, HostBlob, Memory, Rendered};
use crate::seams::{Area, LocalFuture};

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
        match &row.memory {
            Memory::Host(blob) => {
                let range = span.within(blob.window.size.min(blob.buffer.readable()?))?;
                Ok(self.reads.buffer(blob.buffer.duplicate(&self.ledger)?, range, Line::Vmm))
            }
            Memory::Guest(blob) => self.read_guest_blob(blob, span),
            Memory::Image(_) | Memory::Own(_) | Memory::Rendered(_) => Err(ReadError::NotABlob { resource }),
        }
    }

    fn read_guest_blob(&self, blob: &GuestBlob, span: Span) -> Result<LocalFuture<Read>, ReadError> {
        let range = span.within(blob.len())?;
        let len = range.end - range.start;
        let pieces = blob.backing.as_ref().map(|backing| backing.pieces_of(range).collect()).unwrap_or_default();
        let ram = self.ram.clone().ok_or(ReadError::Reset)?;
        Ok(self.reads.in_pieces(copy_guest_memory(ram, pieces, len)))
    }

    /// The driver is gone: ends the reads that wait for something, and whatever copies guest memory, here or elsewhere.
    pub(crate) fn end(&mut self) {
        self.ram = None;
        self.lease.end();
        self.reads.end();
        self.scanouts.end_holds();
        self.close_channels();
    }
}

/// Bytes that were fetched for a command, off the device task.
pub(super) struct Fetched {
    bytes: Result<Vec<u8>, Refusal>,
    /// A read that did not end in time, with what it holds.
    rest: Option<LocalFuture<()>>,
}

impl From<Vec<u8>> for Fetched {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes: Ok(bytes), rest: None }
    }
}

impl From<Read> for Fetched {
    fn from(Read { result, rest }: Read) -> Self {
        Self { bytes: result.map_err(Refusal::from), rest }
    }
}

impl Gpu {
    /// Takes over what was fetched.
    pub(super) fn take_fetched(&mut self, Fetched { bytes, rest }: Fetched) -> Result<Vec<u8>, Refusal> {
        if let Some(rest) = rest {
            self.counters.quarantined.bump();
            self.outbox.quarantine.push(rest);
        }
        bytes
    }

    /// Reads a range of a host buffer once its implicit fences have signalled.
    pub(super) fn fetch_buffer(
        &self,
        blob: &HostBlob,
        range: Range<u64>,
        line: Line,
    ) -> Result<LocalFuture<Fetched>, Refusal> {
        let readable = blob.window.size.min(blob.buffer.readable()?);
        let range = Span::new(&range).within(readable)?;
        let reading = self.reads.buffer(blob.buffer.duplicate(&self.ledger)?, range, line);
        Ok(Box::pin(async move { reading.await.into() }))
    }

    /// Asks the renderer for pixels, rows one after the other.
    pub(super) fn fetch_rendered(&self, rendered: &Rendered, area: Area) -> Result<LocalFuture<Fetched>, Refusal> {
        let renderer = self.renderer.as_ref().ok_or(Refusal::NoRenderer)?;
        let len = area.width as usize * PIXEL as usize * area.height as usize;
        let reading = renderer.read_pixels(rendered.id, area);
        Ok(Box::pin(async move {
            let bytes = match reading.await {
                Ok(bytes) if bytes.len() == len => Ok(bytes),
                Ok(_) => Err(Refusal::Parameter("the renderer's picture has another size")),
                Err(error) => Err(error.into()),
            };
            Fetched { bytes, rest: None }
        }))
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
