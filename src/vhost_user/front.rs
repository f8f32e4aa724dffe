//! What a front-end's messages do: they describe guest memory and queues, and say when the device serves them. While one is
//! carried out the front-end is deaf, so nothing here waits for anything that waits for the front-end.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{self, Backend, GpuBackend, VhostUserBackendReqHandlerMut};

use super::VhostUserSettings;
use super::calls::{Calls, Driver};
use super::display::FrontEndDisplays;
use super::memory::{MOST_REGIONS, Place, Regions, SharedGuestMemory};
use super::rings::{Addresses, QUEUES, Ring, RingError, Shape};
use super::wire::{Asks, Wire};
use crate::device::{ActivateError, Activation, Device, DeviceGone, Reply};
use crate::pipeline::Paused;

type Result<T> = vhost_user::Result<T>;

/// What ends within this time ends before a queue is stopped; a front-end waits meanwhile, and answers nothing.
const GRACE: Duration = Duration::from_millis(100);

/// `VIRTIO_F_RING_RESET`: between the driver and a front-end that offers it by itself, as QEMU does; here it is a stop and a start.
const RING_RESET: u64 = 1 << 40;

/// Whether the device serves a driver.
enum Serving {
    /// None, or a reset is on its way.
    No,
    /// These queues.
    Yes([Option<Shape>; QUEUES]),
    /// It is halted, with what these queues' driver has made.
    Halted([Option<Shape>; QUEUES]),
}

/// The device as one front-end sees it.
pub(super) struct Front<'a> {
    device: &'a Device<SharedGuestMemory>,
    settings: VhostUserSettings,
    wire: Arc<Wire>,
    calls: Arc<Calls>,
    regions: Regions,
    rings: [Ring; QUEUES],
    serving: Serving,
    /// A queue has got another kick.
    rekicked: bool,
    /// The configuration has been read since the queues were halted.
    config_read: bool,
    features: u64,
    /// Those of the driver that is served, or was last.
    served: u64,
    protocol: VhostUserProtocolFeatures,
    displays: Option<FrontEndDisplays>,
    /// The socket that the message under way brings.
    pub(super) brought: Option<UnixStream>,
    /// The front-end hears how the message under way goes.
    pub(super) answered: bool,
    /// What went wrong where the library lets nobody say so.
    pub(super) failed: Option<String>,
    /// The message is refused, and that is all.
    pub(super) goes_on: bool,
}

/// An error for the front-end, and for the log.
fn refuse(reason: impl fmt::Display) -> vhost_user::Error {
    vhost_user::Error::ReqHandlerError(std::io::Error::other(reason.to_string()))
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(vhost_user::Error::InvalidOperation(what))
}

fn index(index: u32) -> Result<usize> {
    usize::try_from(index).ok().filter(|index| *index < QUEUES).ok_or_else(|| refuse(RingError::Index { index }))
}

impl<'a> Front<'a> {
    pub(super) fn new(device: &'a Device<SharedGuestMemory>, settings: VhostUserSettings, wire: Arc<Wire>) -> Self {
        Self {
            device,
            settings,
            calls: Arc::new(Calls::new(Arc::clone(&wire))),
            regions: Regions::new(Arc::clone(&wire)),
            wire,
            rings: Default::default(),
            serving: Serving::No,
            rekicked: false,
            config_read: false,
            features: 0,
            served: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            displays: None,
            brought: None,
            answered: false,
            failed: None,
            goes_on: false,
        }
    }

    /// The front-end has gone: nothing of it is used any more when this returns.
    ///
    /// # Errors
    /// The device has gone as well.
    pub(super) fn leave(mut self) -> std::result::Result<(), DeviceGone> {
        self.displays = None;
        self.wire.disconnect();
        let reset = self.calls.wait(self.device.reset());
        self.calls.clear();
        reset
    }

    /// Serves what is started and enabled, as it is now.
    fn settle(&mut self) -> Result<()> {
        let wanted = self.wanted().map_err(refuse)?;
        match self.serving {
            Serving::Yes(now) if now == wanted && !self.rekicked => return Ok(()),
            Serving::Yes(_) => self.halt()?,
            Serving::No | Serving::Halted(_) => {}
        }
        if wanted[0].is_none() {
            return Ok(());
        }
        self.rekicked = false;
        let activation = self.activation(wanted).map_err(refuse)?;
        let served = match self.serving {
            Serving::Halted(before) if before[0] == wanted[0] && self.goes_on() => self.device.rewire(activation),
            _ => self.begin(activation)?,
        };
        self.calls.wait(served).map_err(refuse)?.map_err(refuse)?;
        self.wire.release();
        (self.serving, self.served) = (Serving::Yes(wanted), self.features);
        Ok(())
    }

    /// Whether the driver that is to be served is the one of before. Not all front-ends tell of a guest's reset: QEMU's generic
    /// device does not.
    fn goes_on(&self) -> bool {
        self.features == self.served && self.rings[0].goes_on(self.config_read)
    }

    /// What is to be served: nothing without queue 0.
    fn wanted(&self) -> std::result::Result<[Option<Shape>; QUEUES], RingError> {
        let control = self.rings[0].wanted(0)?;
        let cursor = if control.is_some() { self.rings[1].wanted(1)? } else { None };
        Ok([control, cursor])
    }

    fn activation(
        &self,
        wanted: [Option<Shape>; QUEUES],
    ) -> std::result::Result<Activation<SharedGuestMemory>, RingError> {
        let setup = |index: usize| self.rings[index].setup(index, wanted[index], &self.regions);
        Ok(Activation {
            memory: self.regions.memory().clone(),
            control: setup(0)?,
            cursor: setup(1)?,
            interrupt: Box::new(Driver(Arc::clone(&self.calls))),
        })
    }

    /// Another driver begins: nothing of the one before is left.
    fn begin(
        &mut self,
        activation: Activation<SharedGuestMemory>,
    ) -> Result<Reply<std::result::Result<(), ActivateError>>> {
        self.reset()?;
        let features = self.features & !(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | RING_RESET);
        self.device.acknowledge(features).map_err(refuse)?;
        Ok(self.device.activate(activation))
    }

    /// Nothing of the driver is left. The front-end has taken back by itself what it was asked to map, and is asked for nothing.
    fn reset(&mut self) -> Result<()> {
        self.serving = Serving::No;
        self.wire.reset();
        self.calls.wait(self.device.reset()).map_err(refuse)?;
        self.wire.hold();
        Ok(())
    }

    /// Stops serving, and takes note of where the queues have come to.
    fn halt(&mut self) -> Result<()> {
        let Serving::Yes(shapes) = self.serving else { return Ok(()) };
        self.wire.hold();
        let Paused { control, cursor, .. } = self.calls.wait(self.device.halt(GRACE)).map_err(refuse)?;
        for (ring, state) in self.rings.iter_mut().zip([control, cursor]) {
            if let Some(state) = state {
                ring.halted(state.next_avail);
            }
        }
        (self.serving, self.config_read) = (Serving::Halted(shapes), false);
        Ok(())
    }

    fn ring(&mut self, queue: u32) -> Result<(usize, &mut Ring)> {
        let index = index(queue)?;
        Ok((index, &mut self.rings[index]))
    }
}

fn place(guest: u64, len: u64, user: u64, offset: u64) -> Place {
    Place { guest, len, user, offset }
}

impl VhostUserBackendReqHandlerMut for Front<'_> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.rings = Default::default();
        self.reset()
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.device.features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.features = features;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            // Without them there is no message that would enable a queue.
            self.rings.iter_mut().for_each(|ring| ring.enable(true));
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE;
        if self.settings.window.is_some() {
            features |= VhostUserProtocolFeatures::SHMEM;
        }
        Ok(features)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let known = VhostUserProtocolFeatures::from_bits(features).ok_or(vhost_user::Error::InvalidParam)?;
        if !self.get_protocol_features()?.contains(known) {
            return Err(vhost_user::Error::FeatureMismatch);
        }
        self.protocol = known;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES as u64)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.wire.memory_changes(files.iter().map(AsFd::as_fd));
        let places = regions
            .iter()
            .map(|region| place(region.guest_phys_addr, region.memory_size, region.user_addr, region.mmap_offset));
        self.regions.replace(places.zip(files)).map_err(refuse)?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MOST_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        self.wire.memory_changes(std::iter::once(file.as_fd()));
        let place = place(region.guest_phys_addr, region.memory_size, region.user_addr, region.mmap_offset);
        // A front-end that keeps the window's blobs in its table of memory gets into trouble when its guest is reset (QEMU
        // 11.1 dies). It needs them there for nothing, but takes no refusal before the queues are started.
        let refusable = self.answered && matches!(self.serving, Serving::Yes(_));
        if refusable && self.wire.shows(file.as_fd()).map_err(refuse)? {
            self.goes_on = true;
            return Err(refuse("a blob in the window is no guest memory"));
        }
        self.regions.add(place, file).map_err(refuse)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let place = place(region.guest_phys_addr, region.memory_size, region.user_addr, region.mmap_offset);
        self.regions.remove(place).map_err(refuse)
    }

    fn set_vring_num(&mut self, queue: u32, size: u32) -> Result<()> {
        let (index, ring) = self.ring(queue)?;
        ring.set_size(index, size).map_err(refuse)
    }

    fn set_vring_addr(
        &mut self,
        queue: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG) {
            return unsupported("no log is kept of what the device writes");
        }
        self.ring(queue)?.1.set_addresses(Addresses { descriptors, available, used });
        Ok(())
    }

    fn set_vring_base(&mut self, queue: u32, base: u32) -> Result<()> {
        let (index, ring) = self.ring(queue)?;
        ring.set_base(index, base).map_err(refuse)
    }

    fn get_vring_base(&mut self, queue: u32) -> Result<VhostUserVringState> {
        self.ring(queue)?;
        self.halt()?;
        let base = self.ring(queue)?.1.stop();
        self.settle()?;
        Ok(VhostUserVringState::new(queue, base.into()))
    }

    fn set_vring_kick(&mut self, queue: u8, kick: Option<File>) -> Result<()> {
        let (index, ring) = self.ring(queue.into())?;
        ring.set_kick(index, kick).map_err(refuse)?;
        self.rekicked = true;
        self.settle()
    }

    fn set_vring_call(&mut self, queue: u8, call: Option<File>) -> Result<()> {
        self.calls.set_call(index(queue.into())?, call).map_err(refuse)
    }

    fn set_vring_err(&mut self, queue: u8, error: Option<File>) -> Result<()> {
        self.calls.set_error(index(queue.into())?, error).map_err(refuse)
    }

    fn set_vring_enable(&mut self, queue: u32, enable: bool) -> Result<()> {
        self.ring(queue)?.1.enable(enable);
        self.settle()
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        if let Some(displays) = &self.displays {
            displays.refresh();
        }
        self.config_read = true;
        let mut config = vec![0; size as usize];
        self.device.read_config(offset.into(), &mut config);
        Ok(config)
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.device.write_config(offset.into(), data);
        Ok(())
    }

    fn set_backend_req_fd(&mut self, backend: Backend) {
        let acknowledged = |feature| self.protocol.contains(feature);
        // What is not answered is not known to be mapped.
        let needed = VhostUserProtocolFeatures::BACKEND_SEND_FD | VhostUserProtocolFeatures::REPLY_ACK;
        let shmem = acknowledged(VhostUserProtocolFeatures::SHMEM | needed);
        let asks = Asks { shmem, config: acknowledged(VhostUserProtocolFeatures::CONFIG) };
        backend.set_reply_ack_flag(acknowledged(VhostUserProtocolFeatures::REPLY_ACK));
        backend.set_shmem_flag(shmem);
        let connected = match self.brought.take() {
            Some(socket) => self.wire.connect(backend, socket, asks).map_err(|error| error.to_string()),
            None => Err("its socket came in pieces".to_owned()),
        };
        match self.serving {
            Serving::Yes(_) => self.wire.release(),
            Serving::Halted(_) => self.wire.hold(),
            Serving::No => {}
        }
        if let Err(reason) = connected {
            self.failed = Some(format!("the front-end cannot be asked for anything: {reason}"));
        }
    }

    fn set_gpu_socket(&mut self, _library: GpuBackend) -> Result<()> {
        let Some(socket) = self.brought.take() else { return Err(refuse("its socket came in pieces")) };
        let Some(displays) = self.settings.displays else { return Ok(()) };
        self.displays = None;
        let started = FrontEndDisplays::start(socket, self.device.displays(), displays.scanouts, displays.dmabufs);
        self.displays = Some(started.map_err(refuse)?);
        self.calls.has_displays(true);
        Ok(())
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        let len = self.settings.window.unwrap_or(0);
        Ok(VhostUserShMemConfig::new(u32::from(len > 0), &[0, len]))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported("no shared objects")
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported("no record of requests under way")
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        unsupported("no record of requests under way")
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        unsupported("the device's state cannot be transferred")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported("the device's state cannot be transferred")
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        unsupported("no log is kept of what the device writes")
    }
}
