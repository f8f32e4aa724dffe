//! The seams that a VMM implements: how the guest's driver is interrupted, the region that blobs are mapped into, and the
//! displays that show what the guest draws. A renderer's seam is in `renderer`.

use std::fmt;
use std::future::Future;
use std::os::fd::BorrowedFd;
use std::pin::Pin;

use crate::protocol::format::{CURSOR_SIDE, Format, PIXEL};
use crate::protocol::wire::{MAP_CACHE_CACHED, MAP_CACHE_UNCACHED, MAP_CACHE_WC};
pub use crate::sys::fixed_range::FixedRange;
pub use crate::sys::reservation::{PlaceError, Protection};

/// What kind of file stands behind a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BufferKind {
    /// A memfd or another file of shared memory (tmpfs). A page that a process forgets comes back when it is touched.
    SharedMemory,
    /// A dma-buf: memory of a device or of an exporter such as udmabuf. A page that is forgotten may be gone for good.
    DmaBuf,
}

/// How a guest is to map a blob, so that its view and the host's are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Caching {
    /// Write-back, as all memory of the CPU's: `VIRTIO_GPU_MAP_CACHE_CACHED`.
    #[default]
    Cached,
    /// `VIRTIO_GPU_MAP_CACHE_UNCACHED`.
    Uncached,
    /// `VIRTIO_GPU_MAP_CACHE_WC`: as many GPUs' memory.
    WriteCombining,
}

impl Caching {
    /// The number that MAP_BLOB is answered with.
    pub(crate) fn map_info(self) -> u32 {
        match self {
            Self::Cached => MAP_CACHE_CACHED,
            Self::Uncached => MAP_CACHE_UNCACHED,
            Self::WriteCombining => MAP_CACHE_WC,
        }
    }
}

/// A future that stays on the device's thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Work that is done already, or will be: most of it is, and then nothing is allocated and nobody wakes up.
pub enum Work<T> {
    /// Done at once.
    Done(T),
    /// Done when the future is.
    Later(LocalFuture<T>),
}

impl<T: 'static> Work<T> {
    /// Work that goes on in `future`.
    pub fn later(future: impl Future<Output = T> + 'static) -> Self {
        Self::Later(Box::pin(future))
    }

    /// Waits for the result.
    pub async fn result(self) -> T {
        match self {
            Self::Done(value) => value,
            Self::Later(future) => future.await,
        }
    }

    /// The same work with its result passed through `then`.
    pub fn map<U: 'static>(self, then: impl FnOnce(T) -> U + 'static) -> Work<U> {
        match self {
            Self::Done(value) => Work::Done(then(value)),
            Self::Later(future) => Work::later(async move { then(future.await) }),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Work<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(value) => f.debug_tuple("Done").field(value).finish(),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

/// How the device reaches its driver. Called on the device's thread; it must not block, nor wait for a
/// [`Reply`](crate::Reply). Dropped on that thread at reset.
pub trait Interrupt: Send + 'static {
    /// There are used buffers in queue `index` (0 control, 1 cursor).
    fn queue(&self, index: u16);

    /// The configuration space has changed: send a configuration change notification (virtio 1.4, section 2.3). The
    /// transport's generation is [`Device::config_generation`](crate::Device::config_generation).
    fn config_changed(&self);

    /// A queue is broken and is not served before the next reset: set DEVICE_NEEDS_RESET (0x40) in the device status, then
    /// send a configuration change notification (virtio 1.4, section 2.1.2). Once for each queue and activation.
    fn needs_reset(&self);
}

/// Three closures: for queues, for [`config_changed`](Interrupt::config_changed), for
/// [`needs_reset`](Interrupt::needs_reset).
impl<Q, C, R> Interrupt for (Q, C, R)
where
    Q: Fn(u16) + Send + 'static,
    C: Fn() + Send + 'static,
    R: Fn() + Send + 'static,
{
    fn queue(&self, index: u16) {
        self.0(index);
    }

    fn config_changed(&self) {
        self.1();
    }

    fn needs_reset(&self) {
        self.2();
    }
}

/// The shared-memory region (virtio 1.4, section 2.10) that blobs are mapped into: region id 1, host-visible.
///
/// [`HostWindow`](crate::HostWindow) implements it for a VMM that maps the region's host memory in one slot. A VMM with a
/// memory slot per blob, or one behind a vhost-user socket, implements it itself and answers when the guest can see
/// the change.
///
/// All calls come on the device's thread and must not block; futures are polled there, in the tokio-uring runtime. One
/// range has one call under way at a time.
#[expect(clippy::len_without_is_empty, reason = "an empty region is no region")]
pub trait SharedMemory: Send + 'static {
    /// Length of the region in bytes; it never changes.
    fn len(&self) -> u64;

    /// Shows the first `len` bytes of `file`, a buffer of this kind, at `offset`. Both are multiples of the page; ranges never
    /// overlap. The descriptor is borrowed for the call; whoever works on asynchronously duplicates it. A placement that
    /// comes after [`Limits::deadline`](crate::Limits::deadline) is cleared again.
    ///
    /// # Errors
    /// After every error but [`PlaceError::Lost`] the range shows what it showed before. `Refused`: a read-only buffer is
    /// tried again with [`Protection::ReadOnly`] where the policy allows it. `Refused` and `Moved` for want of memory or
    /// of descriptors are answered ERR_OUT_OF_MEMORY, all else ERR_UNSPEC. `Lost`: the range is never used again.
    fn place(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        kind: BufferKind,
        protection: Protection,
    ) -> Work<Result<(), PlaceError>>;

    /// A range for a renderer to map a blob into by itself, one that has no descriptor. It is taken back by
    /// [`clear`](Self::clear), as a dma-buf is. `None`, which is the default: such blobs cannot be mapped, and the guest gets
    /// an error.
    fn fixed_range(&self, offset: u64, len: u64) -> Option<FixedRange> {
        let _ = (offset, len);
        None
    }

    /// Takes back what was placed at exactly this range, a buffer of this kind, so that the guest cannot reach it any more.
    /// Until it is gone the guest may touch it: the range must not be without anything in between.
    ///
    /// # Errors
    /// Any: the range is never used again, and the guest gets ERR_UNSPEC.
    fn clear(&self, offset: u64, len: u64, kind: BufferKind) -> Work<Result<(), PlaceError>>;

    /// Takes the range back at once, because nobody can wait: for whatever is placed, being placed or being cleared when the
    /// device's task is dropped. The range may be empty already.
    ///
    /// # Errors
    /// Any: the range is never used again.
    fn clear_now(&self, offset: u64, len: u64) -> Result<(), PlaceError>;
}

impl<S: SharedMemory + ?Sized> SharedMemory for Box<S> {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn place(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        kind: BufferKind,
        protection: Protection,
    ) -> Work<Result<(), PlaceError>> {
        (**self).place(offset, len, file, kind, protection)
    }

    fn fixed_range(&self, offset: u64, len: u64) -> Option<FixedRange> {
        (**self).fixed_range(offset, len)
    }

    fn clear(&self, offset: u64, len: u64, kind: BufferKind) -> Work<Result<(), PlaceError>> {
        (**self).clear(offset, len, kind)
    }

    fn clear_now(&self, offset: u64, len: u64) -> Result<(), PlaceError> {
        (**self).clear_now(offset, len)
    }
}

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Area {
    /// Left edge.
    pub x: u32,
    /// Top edge.
    pub y: u32,
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

/// Where a plane of a picture lies in its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plane {
    /// The plane's first byte.
    pub offset: u32,
    /// Bytes from row to row.
    pub stride: u32,
}

/// The dma-buf that holds a picture.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct DmaBuf<'a> {
    /// Borrowed for the call; a display that keeps it duplicates it.
    pub file: BorrowedFd<'a>,
    /// The same whenever the guest shows the same blob: a guest that flips has two or three. It means nothing after
    /// [`Display::forget`].
    pub id: u64,
    /// Width of the whole buffer's picture in pixels.
    pub width: u32,
    /// Its height.
    pub height: u32,
    /// Its planes, the first of them always there.
    pub planes: &'a [Plane],
    /// The exporter's layout (`DRM_FORMAT_MOD_*`), where it is known: a guest does not say.
    pub modifier: Option<u64>,
    /// The part of it that the scanout shows.
    pub shown: Area,
}

/// What a scanout shows.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Picture<'a> {
    /// Width in pixels: the mode that the guest has set.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Format of its pixels.
    pub format: Format,
    /// The dma-buf that it lies in, where it lies in one. Pictures in shared memory are always copied.
    pub buffer: Option<DmaBuf<'a>>,
}

impl Picture<'_> {
    /// A picture that lies in no dma-buf: for whoever tries a display without a device.
    #[must_use]
    pub fn new(width: u32, height: u32, format: Format) -> Self {
        Self { width, height, format, buffer: None }
    }
}

/// Rows of pixels.
#[derive(Clone, Copy)]
pub struct Pixels<'a> {
    bytes: &'a [u8],
    stride: usize,
    row: usize,
}

impl<'a> Pixels<'a> {
    /// `bytes` begins with the first pixel of the first row, and its last row may end with its last pixel.
    ///
    /// # Panics
    /// Where the bytes are fewer than `height` rows of `width` pixels, or the rows overlap.
    #[must_use]
    pub fn new(bytes: &'a [u8], stride: usize, width: u32, height: u32) -> Self {
        let row = width as usize * PIXEL as usize;
        assert!(stride >= row, "rows of {row} bytes, {stride} from one to the next");
        let len = stride * (height as usize).saturating_sub(1) + row;
        Self { bytes: &bytes[..len], stride: stride.max(1), row }
    }

    /// Row by row, without what lies between them.
    pub fn rows(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let row = self.row;
        self.bytes.chunks(self.stride).map(move |rest| &rest[..row])
    }

    /// All of it, as it lies in memory; the last row ends with its last pixel.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes from row to row.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }
}

impl fmt::Debug for Pixels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, stride, row } = self;
        f.debug_struct("Pixels").field("len", &bytes.len()).field("stride", stride).field("row", row).finish()
    }
}

/// A cursor's image.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Cursor<'a> {
    /// Width in pixels: 64.
    pub width: u32,
    /// Height in pixels: 64.
    pub height: u32,
    /// Format of its pixels, always with alpha, which Linux has multiplied their colours by: a resource in a screen's format
    /// holds a cursor's all the same. That of a blob is not known, and taken for what Linux draws cursors in: B8G8R8A8.
    pub format: Format,
    /// The pixel that points, from the left: any number, as the guest gives it.
    pub hot_x: u32,
    /// And from the top.
    pub hot_y: u32,
    /// Its pixels.
    pub pixels: Pixels<'a>,
}

impl<'a> Cursor<'a> {
    /// A cursor of 64 by 64 pixels that points with the pixel at `hot`.
    ///
    /// # Panics
    /// Where the bytes are fewer than those pixels.
    #[must_use]
    pub fn new(format: Format, hot: (u32, u32), bytes: &'a [u8]) -> Self {
        let side = CURSOR_SIDE;
        let pixels = Pixels::new(bytes, (side * PIXEL) as usize, side, side);
        Self { width: side, height: side, format, hot_x: hot.0, hot_y: hot.1, pixels }
    }
}

/// What shows a scanout: a window, a remote viewer, a recorder.
///
/// All calls come on the device's thread and must not block; whoever encodes or waits does so elsewhere. Futures are polled
/// on that thread, in the tokio-uring runtime. A display is dropped there, too, when it is disconnected or replaced, or with
/// the device: whoever has a thread to end lets it end by itself. One that panics is dropped and counted
/// ([`Counters::displays_lost`](crate::Counters)); the guest goes on.
///
/// | what happens | calls |
/// |---|---|
/// | the guest shows something (SET_SCANOUT, SET_SCANOUT_BLOB) | `takes_buffer` where it is a dma-buf, `attach` |
/// | it flushes (RESOURCE_FLUSH) | `draw` as often as it takes, `frame` |
/// | it shows nothing, or what it showed is gone (UNREF) | `detach`; the cursor stays |
/// | a dma-buf is gone that the display has taken | `forget` |
/// | the device is reset | `detach`, `cursor` without a cursor, `forget`, each where there was something |
/// | the display is connected | `cursor` where there is one; where something is shown `attach`, `draw`, `frame` |
/// | it is redrawn | the same, and `cursor` also where there is none |
/// | it is disconnected or replaced | none but its drop |
pub trait Display: Send + 'static {
    /// Whether it wants this picture's dma-buf itself. Asked before each [`attach`](Self::attach) of a picture in one;
    /// a display that says no is given bytes.
    fn takes_buffer(&mut self, picture: &Picture<'_>) -> bool {
        let _ = picture;
        false
    }

    /// The scanout shows this picture from now on, in place of what it showed before; of a flush that was under way no more
    /// comes. A guest flushes what differs: where the picture before was of the same size and format, what is not drawn stays
    /// as it was. `picture.buffer` is there where [`takes_buffer`](Self::takes_buffer) has just said yes: then nothing is
    /// [drawn](Self::draw). A guest that flips pages attaches a picture for each frame.
    fn attach(&mut self, picture: &Picture<'_>);

    /// Pixels of the picture at `area`, as the guest has flushed them. A large flush comes in several parts, between which
    /// the device does other work.
    fn draw(&mut self, area: Area, pixels: Pixels<'_>);

    /// The guest has flushed `damage`: all of it has been drawn, or lies in the dma-buf (whose implicit fences are the
    /// display's to wait for). The guest's flush is answered when the work is done, so a display may pace its guest: with
    /// dma-bufs that is when the picture *before* is on no screen any more, for the guest draws into that one next.
    ///
    /// Other calls may come meanwhile, and further frames. After [`Limits::deadline`](crate::Limits::deadline) the flush is
    /// answered all the same; the work is dropped then, at a reset, and where the same flush fails for another scanout.
    fn frame(&mut self, damage: Area) -> Work<()>;

    /// The cursor's image, `None` where it is hidden, as it is at first; and its position: as the guest gives it, with the
    /// image's top left corner at `position`, which may lie left of or above the picture.
    fn cursor(&mut self, cursor: Option<&Cursor<'_>>, position: (i32, i32));

    /// The cursor has moved.
    fn move_cursor(&mut self, position: (i32, i32));

    /// The scanout shows nothing from now on; a dma-buf that the display has kept is to be closed.
    fn detach(&mut self);

    /// The dma-buf of this [id](DmaBuf::id) is no more: what the display remembers of it is of no use.
    fn forget(&mut self, buffer: u64) {
        let _ = buffer;
    }
}

impl<D: Display + ?Sized> Display for Box<D> {
    fn takes_buffer(&mut self, picture: &Picture<'_>) -> bool {
        (**self).takes_buffer(picture)
    }

    fn attach(&mut self, picture: &Picture<'_>) {
        (**self).attach(picture);
    }

    fn draw(&mut self, area: Area, pixels: Pixels<'_>) {
        (**self).draw(area, pixels);
    }

    fn frame(&mut self, damage: Area) -> Work<()> {
        (**self).frame(damage)
    }

    fn cursor(&mut self, cursor: Option<&Cursor<'_>>, position: (i32, i32)) {
        (**self).cursor(cursor, position);
    }

    fn move_cursor(&mut self, position: (i32, i32)) {
        (**self).move_cursor(position);
    }

    fn detach(&mut self) {
        (**self).detach();
    }

    fn forget(&mut self, buffer: u64) {
        (**self).forget(buffer);
    }
}
