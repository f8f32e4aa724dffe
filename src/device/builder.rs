//! How a VMM states what its device is made of, and where it runs.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use vm_memory::GuestAddressSpace;

use super::displays::Request;
use super::lifecycle::Setup;
use super::{Device, DeviceTask, Displays, QUEUE_SIZES, Shared};
use crate::commands::capset_count;
use crate::cross_domain::HostSockets;
use crate::display::{ConnectError, Holds, Monitor, Scanouts};
use crate::limits::Limits;
use crate::observe::{LiveCounters, error_limited};
use crate::protocol::config::LiveConfig;
use crate::protocol::cross_domain::ChannelType;
use crate::protocol::features::{BLOB_ALIGNMENT, VIRGL, offer_without};
use crate::protocol::wire::MAX_SCANOUTS;
use crate::renderer::{Renderer, RendererFactory, Running};
use crate::resource::ResourceKey;
use crate::seams::{Display, SharedMemory};
use crate::sys::ring;
use crate::window::ReadOnlyPolicy;

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The alignment of blobs is no power of two of at least the host's page and at most 2 GiB.
    #[error("a blob alignment of {alignment} is no power of two from {page} to 2^31")]
    Alignment {
        /// What was asked for, in bytes.
        alignment: u64,
        /// The host's page, in bytes.
        page: u64,
    },
    /// A device has one scanout at least and sixteen at most.
    #[error("{scanouts} scanouts where 1 to 16 are possible")]
    Scanouts {
        /// What was asked for.
        scanouts: u32,
    },
    /// A display cannot be connected.
    #[error(transparent)]
    Display(#[from] ConnectError),
    /// The renderer or a thread did not start.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
}

/// Makes a device.
#[derive(Default)]
#[must_use = "a builder does nothing until it builds"]
pub struct Builder {
    limits: Limits,
    window: Option<Box<dyn SharedMemory>>,
    read_only: ReadOnlyPolicy,
    alignment: Option<u64>,
    hosts: HostSockets,
    renderer: Option<RendererFactory>,
    scanouts: Option<u32>,
    displays: Vec<(u32, Monitor, Box<dyn Display>)>,
    requests: Option<(Displays, UnboundedReceiver<Request>)>,
    withheld: u64,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limits, read_only, alignment, hosts, .. } = self;
        let mut list = f.debug_struct("Builder");
        list.field("limits", limits).field("read_only", read_only).field("alignment", alignment);
        list.field("hosts", hosts).finish_non_exhaustive()
    }
}

fn requests() -> (Displays, UnboundedReceiver<Request>) {
    let (sender, receiver) = unbounded_channel();
    (Displays { requests: sender, holds: Holds::default() }, receiver)
}

impl Builder {
    /// A device without window, displays, host sockets or renderer, with the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the device may take of its host.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The host-visible region that blobs are mapped into. Without it MAP is refused.
    pub fn window(mut self, window: impl SharedMemory) -> Self {
        self.window = Some(Box::new(window));
        self
    }

    /// What happens to read-only buffers whose exporter refuses private mappings.
    pub fn read_only(mut self, policy: ReadOnlyPolicy) -> Self {
        self.read_only = policy;
        self
    }

    /// Alignment of a blob's size and place in bytes, a power of two; the host's page where it is not stated.
    pub fn blob_alignment(mut self, alignment: u64) -> Self {
        self.alignment = Some(alignment);
        self
    }

    /// Lets guests connect to the Unix socket at `path` by channels of this type.
    pub fn host_socket(mut self, channel_type: ChannelType, path: impl Into<PathBuf>) -> Self {
        self.hosts.offer(channel_type, path.into());
        self
    }

    /// How many scanouts the device has, from 1 to 16: a driver learns of the number once, when it starts. As many as
    /// [`display`](Self::display) needs where it is not stated.
    pub fn scanouts(mut self, scanouts: u32) -> Self {
        self.scanouts = Some(scanouts);
        self
    }

    /// Connects a display to a scanout from the start; of several for the same scanout the last one stays.
    /// [`Device::connect`] does so later.
    pub fn display(mut self, scanout: u32, monitor: Monitor, display: impl Display) -> Self {
        self.displays.push((scanout, monitor, Box::new(display)));
        self
    }

    /// The handle to the displays of the device to come: for a display that is to ask for another size.
    pub fn displays(&mut self) -> Displays {
        let (displays, _) = self.requests.get_or_insert_with(requests);
        displays.clone()
    }

    /// Feature bits (of [`features`](crate::protocol::features)) not to offer; what builds on them is not offered either. Without
    /// VIRGL there are no contexts, and Linux keeps what it shows in blobs of its own.
    pub fn withhold(mut self, features: u64) -> Self {
        self.withheld = features;
        self
    }

    /// The renderer for contexts of its capability sets. `factory` is called on the renderer's own thread, and building
    /// the device waits for it. A renderer without capability sets is dropped with a word in the log: the device does without.
    pub fn renderer<R: Renderer + 'static>(mut self, factory: impl FnOnce() -> io::Result<R> + Send + 'static) -> Self {
        self.renderer = Some(Box::new(|| Ok(Box::new(factory()?) as Box<dyn Renderer>)));
        self
    }

    /// Makes the handle, and the task for a tokio-uring runtime of the VMM's own.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build<M: GuestAddressSpace>(mut self) -> Result<(Device<M>, DeviceTask<M>), BuildError> {
        let page = rustix::param::page_size() as u64;
        let alignment = self.alignment.unwrap_or(page);
        if !alignment.is_power_of_two() || !(page..=1 << 31).contains(&alignment) {
            return Err(BuildError::Alignment { alignment, page });
        }
        let counters = Arc::new(LiveCounters::default());
        let (displays, requests) = self.requests.take().unwrap_or_else(requests);
        let scanouts = self.connected(displays.holds.clone(), Arc::clone(&counters))?;
        let most = self.limits.requests_of_renderer(QUEUE_SIZES[1]);
        let renderer = self.renderer.map(|factory| Running::start(factory, most)).transpose()?.flatten();
        let offered = offer_without(self.withheld);
        let capsets = capset_count(renderer.as_ref().map_or(0, |renderer| renderer.capsets.len()));
        // What a driver cannot use it is not told of.
        let capsets = if offered & VIRGL == 0 { 0 } else { capsets };
        let stated_alignment = if offered & BLOB_ALIGNMENT == 0 { 0 } else { alignment as u32 };
        let config = Arc::new(LiveConfig::new(scanouts.count(), capsets, stated_alignment));
        let shared = Arc::new(Shared {
            config: Arc::clone(&config),
            counters: Arc::clone(&counters),
            offered,
            features: AtomicU64::new(0),
        });
        let (sender, control) = unbounded_channel();
        let setup = Setup {
            limits: self.limits,
            window: self.window,
            read_only: self.read_only,
            alignment,
            hosts: self.hosts,
            renderer,
            scanouts,
            config,
            counters,
            nudge: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?,
        };
        let device = Device { displays, control: Some(sender), shared, thread: None };
        Ok((device, DeviceTask { setup, control, requests }))
    }

    /// The scanouts with what is connected to them from the start.
    fn connected(&mut self, holds: Holds, counters: Arc<LiveCounters>) -> Result<Scanouts<ResourceKey>, BuildError> {
        let highest = self.displays.iter().map(|(scanout, ..)| scanout.saturating_add(1)).max();
        let count = self.scanouts.or(highest).unwrap_or(1);
        if !(1..=MAX_SCANOUTS as u32).contains(&count) {
            return Err(BuildError::Scanouts { scanouts: count });
        }
        let mut scanouts = Scanouts::new(count, holds, counters);
        for (scanout, monitor, display) in self.displays.drain(..) {
            scanouts.connect(scanout, monitor, display)?;
        }
        Ok(scanouts)
    }

    /// Makes the device and gives it a thread of its own, which ends with the handle. Its ring takes the device's own operations
    /// and no others, where the kernel can see to that: futures of a window or a display that have tokio-uring read files
    /// belong to a runtime of the VMM's own ([`build`](Self::build)).
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn spawn<M>(self) -> Result<Device<M>, BuildError>
    where
        M: GuestAddressSpace + Send + 'static,
    {
        let (mut device, task) = self.build()?;
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("virtio-gpu".into()).spawn(move || match ring::runtime() {
            Ok(runtime) => {
                let _ = started.send(Ok(()));
                if let Err(error) = runtime.block_on(task.run()) {
                    error_limited!(%error, "the runtime cannot watch descriptors; the device is gone");
                }
            }
            Err(error) => drop(started.send(Err(error))),
        })?;
        device.thread = Some(thread);
        // On an error the handle is dropped, which waits for the thread: nothing of it is left then.
        start.recv().map_err(|_| io::Error::other("the device's thread ended at once"))??;
        Ok(device)
    }
}
