//! The virtio-gpu's render node, opened the way a cross-domain client opens it: what the driver offers is checked
//! before a context is made, so that a missing feature is told by name.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use crate::drm::{self, param};
use crate::failure::{Failure, In, Result, ensure};

const NODE: &str = "/dev/dri/renderD128";
/// What the context is called in the host's logs.
const NAME: &CStr = c"lab-guest";
/// The cross-domain capability set.
const CAPSET: u32 = 5;
/// Rings of the context: queries, and the channel, whose fences come as events.
const RINGS: u64 = 2;
pub(crate) const CHANNEL_RING: u32 = 1;
/// What a driver may offer, and the bits that a cross-domain client cannot do without.
const OFFERS: [(&str, u64, u32); 7] = [
    ("3d", param::FEATURES_3D, 1),
    ("blob", param::RESOURCE_BLOB, 1),
    ("host_visible", param::HOST_VISIBLE, 1),
    ("context_init", param::CONTEXT_INIT, 1),
    ("capsets", param::CAPSET_MASK, 1 << CAPSET),
    ("cross_device", param::CROSS_DEVICE, 0),
    ("debug_name", param::DEBUG_NAME, 0),
];
/// Nothing that the host owes takes longer, even on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(60);

/// The capability set's data.
#[derive(Debug, Default, FromBytes, IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
#[repr(C)]
struct Capabilities {
    version: U32,
    channels: U32,
    dmabuf: U32,
    external_gpu_memory: U32,
}

/// An open render node that is bound to a cross-domain context.
pub(crate) struct Gpu {
    file: OwnedFd,
}

impl AsFd for Gpu {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Gpu {
    /// Opens it, for a channel of type `channel`.
    pub(crate) fn open(channel: u32) -> Result<Self> {
        let file = open(NODE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Failure::new("open", format_args!("{NODE}: {error}: there is no virtio-gpu")))?;
        let gpu = Self { file };
        let named = gpu.check_driver()?;
        gpu.check_capabilities(channel)?;
        drm::context_init(gpu.as_fd(), CAPSET, RINGS, 1 << CHANNEL_RING, named.then_some(NAME))
            .during("CONTEXT_INIT")?;
        Ok(gpu)
    }

    /// Tells what the driver offers, and whether a context can be given a name.
    fn check_driver(&self) -> Result<bool> {
        let offered = OFFERS.map(|(name, param, _)| (name, drm::get_param(self.as_fd(), param)));
        let shown =
            offered.map(|(name, value)| value.map_or(format!("{name}=-"), |value| format!("{name}={value:#x}")));
        println!("guest: driver {}", shown.join(" "));
        for ((name, value), (_, _, needed)) in offered.into_iter().zip(OFFERS) {
            let value = value.or_else(|error| match needed {
                0 => Ok(0),
                _ => Err(Failure::new("GETPARAM", format_args!("{name}: {error}"))),
            })?;
            let fits = value & needed == needed;
            ensure(fits, "GETPARAM", format_args!("{name} is {value:#x}, {needed:#x} is needed"))?;
        }
        Ok(drm::get_param(self.as_fd(), param::DEBUG_NAME) == Ok(1))
    }

    fn check_capabilities(&self, channel: u32) -> Result<()> {
        let mut data = Capabilities::default();
        drm::get_caps(self.as_fd(), CAPSET, data.as_mut_bytes()).during("GET_CAPS")?;
        let (version, channels, dmabuf) = (data.version.get(), data.channels.get(), data.dmabuf.get());
        println!("guest: cross-domain version={version} channels={channels:#x} dmabuf={dmabuf}");
        ensure(version >= 1 && dmabuf == 1, "GET_CAPS", "the host forwards no dma-bufs")?;
        let offered = channels.checked_shr(channel).is_some_and(|bits| bits & 1 == 1);
        ensure(offered, "GET_CAPS", format_args!("the host does not offer channel type {channel}"))
    }

    /// Waits until all commands up to and with this stream are done.
    pub(crate) fn finish(&self, stream: &[u8], step: &'static str) -> Result<()> {
        let fence = drm::submit_fenced(self.as_fd(), stream).during(step)?;
        wait_readable(&fence, step)
    }

    /// Waits for the event of a polled ring's fence.
    pub(crate) fn wait_event(&self) -> Result<()> {
        const STEP: &str = "event";
        wait_readable(self, STEP)?;
        let mut event = [0; 64];
        let len = rustix::io::read(self, &mut event).during(STEP)?;
        let fields = <[U32; 2]>::read_from_prefix(event.get(..len).unwrap_or_default());
        let ([kind, _], _) = fields.map_err(|_| Failure::new(STEP, format_args!("{len} bytes")))?;
        let fits = kind.get() == drm::EVENT_FENCE_SIGNALED && len == 8;
        ensure(fits, STEP, format_args!("type {:#x} of {len} bytes", kind.get()))
    }
}

pub(crate) fn wait_readable(file: impl AsFd, step: &'static str) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).during(step)?;
        match poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(Failure::new(step, format_args!("nothing from the host within {PATIENCE:?}"))),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::new(step, error)),
        }
    }
}
