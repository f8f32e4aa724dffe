//! A machine of the front-end's: memory that both sides map, and a guest whose driver works.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::cross_domain::SendReceive;
use virtio_gpu_uring::protocol::features::{EVENT_IDX, INDIRECT_DESC};
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, Header};
use virtio_gpu_uring::testing::{
    Answer, DEADLINE, DriverQueue, GuestRam, HostPeer, HostService, Layout, Request, RingFeatures, Token,
};
use virtio_gpu_uring::{Builder, ChannelType, CutOff, Limits, Stopper, VhostUserServer, VhostUserSettings};
use virtio_queue::QueueT;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use zerocopy::FromBytes;

use crate::front_end::{ALL_PROTOCOL, BackEndChannel, FrontEnd, PROTOCOL_FEATURES, request, words};

/// The host's page.
pub(crate) const PAGE: u64 = 4096;
/// The host-visible region.
pub(crate) const WINDOW: u64 = 64 * PAGE;
/// The machine's memory.
pub(crate) const RAM: u64 = 4 << 20;
/// Where the front-end says that it has mapped guest address 0.
pub(crate) const USER: u64 = 0x7000_0000_0000;
/// Queues by number.
pub(crate) const CONTROL: usize = 0;
pub(crate) const CURSOR: usize = 1;

/// A back-end, and the service on its host that guests may connect to.
pub(crate) struct Host {
    pub(crate) server: VhostUserServer,
    pub(crate) service: HostService,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    /// With limits; a window is offered.
    pub(crate) fn with(limits: Limits) -> Self {
        let service = HostService::listen();
        let builder = Builder::new().limits(limits).host_socket(ChannelType::CAMERA, service.path());
        let settings = VhostUserSettings::new().window(WINDOW);
        Self { server: VhostUserServer::new(builder, settings).expect("a server"), service }
    }

    /// Waits `deadline` at most for a range to be placed.
    pub(crate) fn impatient(deadline: Duration) -> Self {
        Self::with(Limits { deadline, ..Limits::default() })
    }
}

/// A back-end that serves a front-end on a thread.
pub(crate) struct Running {
    pub(crate) stopper: Stopper,
    done: mpsc::Receiver<(VhostUserServer, Result<(), CutOff>)>,
    service: HostService,
}

impl Running {
    pub(crate) fn start(host: Host) -> (Self, FrontEnd) {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let Host { mut server, service } = host;
        let (tell, done) = mpsc::channel();
        let stopper = server.stopper();
        std::thread::spawn(move || {
            let result = server.serve(theirs);
            let _ = tell.send((server, result));
        });
        (Self { stopper, done, service }, FrontEnd::new(ours))
    }

    /// Waits until the front-end is not served any more.
    #[track_caller]
    pub(crate) fn end(self) -> (Host, Result<(), CutOff>) {
        let (server, result) = self.done.recv_timeout(DEADLINE).expect("an end of serving, without a panic");
        (Host { server, service: self.service }, result)
    }
}

/// A queue of the guest's.
pub(crate) struct Port {
    pub(crate) queue: DriverQueue,
    pub(crate) kick: OwnedFd,
    pub(crate) call: OwnedFd,
    arrived: HashMap<Token, Answer>,
}

/// A machine whose device is behind the socket.
pub(crate) struct Machine {
    pub(crate) running: Running,
    pub(crate) front: FrontEnd,
    pub(crate) asks: BackEndChannel,
    pub(crate) ram: GuestRam,
    pub(crate) ports: [Port; 2],
    /// The memfd behind its memory, and that one's name.
    pub(crate) file: File,
    pub(crate) name: String,
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

/// A memfd with a name that no other has, and this many bytes.
pub(crate) fn memfd(len: u64) -> (File, String) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("vhost-user-{}-{}-", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let file = memfd_create(name.as_str(), MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, len).expect("its length");
    (file.into(), name)
}

/// A region as a front-end describes it.
pub(crate) fn region(guest: u64, len: u64, user: u64, offset: u64) -> Vec<u8> {
    words(&[], &[0, guest, len, user, offset])
}

impl Machine {
    /// A machine whose guest has both queues up.
    #[track_caller]
    pub(crate) fn boot(host: Host) -> Self {
        let mut machine = Self::powered(host, ALL_PROTOCOL);
        machine.start_ring(CONTROL, 0);
        machine.start_ring(CURSOR, 0);
        machine
    }

    /// A machine with memory, whose guest has not started.
    #[track_caller]
    pub(crate) fn powered(host: Host, protocol: u64) -> Self {
        let (running, front) = Running::start(host);
        let (file, name) = memfd(RAM);
        let piece = FileOffset::new(file.try_clone().expect("a duplicate"), 0);
        let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), RAM as usize, Some(piece))]);
        let ram = GuestRam::over(memory.expect("memory"));
        let offered = front.ask_long(request::GET_FEATURES);
        assert_ne!(offered & PROTOCOL_FEATURES, 0);
        front.say(request::SET_PROTOCOL_FEATURES, &words(&[], &[protocol]), &[]);
        front.tell(request::SET_OWNER, &[], &[]);
        let (asks, theirs) = UnixStream::pair().expect("sockets");
        if protocol & 1 << 5 != 0 {
            front.tell(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
        }
        front.tell(request::SET_FEATURES, &words(&[], &[offered]), &[]);
        front.tell(request::ADD_MEM_REG, &region(0, RAM, USER, 0), &[file.as_fd()]);
        let features = RingFeatures { event_idx: offered & EVENT_IDX != 0, indirect: offered & INDIRECT_DESC != 0 };
        let ports = [64, 16].map(|size| Port {
            queue: DriverQueue::new(ram.clone(), size, features),
            kick: event(),
            call: event(),
            arrived: HashMap::new(),
        });
        Self { running, front, asks: BackEndChannel::new(asks), ram, ports, file, name }
    }

    /// Describes a ring, up to its kick.
    #[track_caller]
    pub(crate) fn set_up_ring(&self, index: usize, base: u32) {
        let number = index as u32;
        let Port { queue, kick, call, .. } = &self.ports[index];
        let state = queue.device_queue();
        let user = |address: u64| USER + address;
        let (table, used, available) = (state.desc_table(), state.used_ring(), state.avail_ring());
        let address = [words(&[number, 0], &[user(table), user(used), user(available), 0])].concat();
        self.front.tell(request::SET_VRING_NUM, &words(&[number, queue.size().into()], &[]), &[]);
        self.front.tell(request::SET_VRING_BASE, &words(&[number, base], &[]), &[]);
        self.front.tell(request::SET_VRING_ADDR, &address, &[]);
        self.front.tell(request::SET_VRING_CALL, &words(&[], &[index as u64]), &[call.as_fd()]);
        self.front.tell(request::SET_VRING_KICK, &words(&[], &[index as u64]), &[kick.as_fd()]);
    }

    #[track_caller]
    pub(crate) fn enable(&self, index: usize, enabled: bool) {
        self.front.tell(request::SET_VRING_ENABLE, &words(&[index as u32, enabled.into()], &[]), &[]);
    }

    #[track_caller]
    pub(crate) fn start_ring(&mut self, index: usize, base: u32) {
        self.set_up_ring(index, base);
        self.enable(index, true);
    }

    /// Stops a ring as QEMU does, and hands out where it has come to.
    #[track_caller]
    pub(crate) fn stop_ring(&self, index: usize) -> u32 {
        self.enable(index, false);
        let state = self.front.ask(request::GET_VRING_BASE, &words(&[index as u32, 0], &[]));
        u32::from_ne_bytes(state[4..8].try_into().expect("a state of a ring"))
    }

    /// Stops both rings.
    #[track_caller]
    pub(crate) fn stop(&self) -> [u32; 2] {
        [CONTROL, CURSOR].map(|index| self.stop_ring(index))
    }

    /// Starts both rings with eventfds of their own.
    #[track_caller]
    pub(crate) fn go_on(&mut self, bases: [u32; 2]) {
        for (index, base) in bases.into_iter().enumerate() {
            (self.ports[index].kick, self.ports[index].call) = (event(), event());
            self.start_ring(index, base);
        }
    }

    /// Another driver takes the machine's queues.
    pub(crate) fn reset_driver(&mut self) {
        for port in &mut self.ports {
            port.queue.reset();
            port.arrived.clear();
        }
    }

    pub(crate) fn kick(&self, index: usize) {
        rustix::io::write(&self.ports[index].kick, &1u64.to_ne_bytes()).expect("kicked");
    }

    /// Puts a request into a ring.
    pub(crate) fn add(&mut self, index: usize, request: &Request) -> Token {
        let queue = &mut self.ports[index].queue;
        let token = queue.add(&request.bytes(), request.room(), &Layout::default()).expect("room in the ring");
        // Whether a kick is wanted is another matter: one too many does no harm.
        let _ = queue.publish();
        token
    }

    pub(crate) fn submit(&mut self, request: &Request) -> Token {
        let token = self.add(CONTROL, request);
        self.kick(CONTROL);
        token
    }

    #[track_caller]
    pub(crate) fn wait(&mut self, token: Token) -> Answer {
        self.wait_on(CONTROL, token)
    }

    #[track_caller]
    pub(crate) fn wait_on(&mut self, index: usize, token: Token) -> Answer {
        let started = Instant::now();
        loop {
            self.collect(index);
            if let Some(answer) = self.ports[index].arrived.remove(&token) {
                return answer;
            }
            let left = DEADLINE.saturating_sub(started.elapsed());
            assert!(!left.is_zero(), "no answer to {token:?} within {DEADLINE:?}");
            let timeout = Timespec::try_from(left).expect("a short time");
            let call = &self.ports[index].call;
            if poll(&mut [PollFd::new(call, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0) {
                let _ = rustix::io::read(call, &mut [0; 8]);
            }
        }
    }

    #[track_caller]
    pub(crate) fn command(&mut self, request: &Request) -> Answer {
        let token = self.submit(request);
        self.wait(token)
    }

    pub(crate) fn has_answer(&mut self, token: &Token) -> bool {
        self.collect(CONTROL);
        self.ports[CONTROL].arrived.contains_key(token)
    }

    /// Everything before this is served, or waits.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        self.command(&Request::display_info()).ok();
    }

    fn collect(&mut self, index: usize) {
        let port = &mut self.ports[index];
        while let Some(used) = port.queue.poll_used() {
            let (header, payload) = match Header::read_from_prefix(&used.response) {
                Ok((header, rest)) => (header, rest.to_vec()),
                Err(_) => (Header::new(0), Vec::new()),
            };
            port.arrived.insert(used.token, Answer { header, payload, written: used.written });
        }
    }

    /// The device's configuration.
    #[track_caller]
    pub(crate) fn config(&self, offset: u32, size: u32) -> Vec<u8> {
        let body = [words(&[offset, size, 0], &[]), vec![0; size as usize]].concat();
        let reply = self.front.ask(request::GET_CONFIG, &body);
        assert_eq!(reply[..12], words(&[offset, size, 0], &[]), "offset, size and flags");
        reply[12..].to_vec()
    }

    /// A channel to the host's service.
    #[track_caller]
    pub(crate) fn open_channel(&mut self, context: u32, resource: u32) -> (Channel, HostPeer) {
        self.command(&Request::ctx_create(context, CAPSET_CROSS_DOMAIN)).ok();
        let rings = [resource, resource + 1].map(|ring| {
            let address = self.ram.alloc(PAGE as usize, PAGE as usize);
            self.command(&Request::guest_blob(ring, PAGE, &[(address.0, PAGE as u32)])).ok();
            self.command(&Request::ctx_attach(context, ring)).ok();
            address
        });
        let init = Request::stream_init(resource, resource + 1, ChannelType::CAMERA.0, Some(1));
        self.command(&Request::submit(context, &init)).ok();
        (Channel { context, ring: rings[1] }, self.running.service.accept())
    }

    /// A blob of a file, by way of the host's service.
    #[track_caller]
    pub(crate) fn blob(&mut self, resource: u32, channel: &Channel, peer: &HostPeer, file: &File, len: u64) {
        let poll = self.submit(&channel.poll());
        peer.send(b"buffer", &[file.as_fd()]);
        self.wait(poll).ok();
        let id = channel.message(self).1[0];
        self.command(&Request::host_blob(channel.context, resource, id.into(), len)).ok();
    }

    /// Maps a resource, with a front-end that agrees.
    #[track_caller]
    pub(crate) fn map(&mut self, resource: u32, offset: u64) -> crate::front_end::Asked {
        let map = self.submit(&Request::map(resource, offset));
        let asked = self.asks.serve(crate::front_end::Asked::MAP);
        self.wait(map).ok();
        asked
    }

    /// The front-end leaves, and has broken nothing.
    #[track_caller]
    pub(crate) fn leave(self) -> Host {
        let (host, result) = self.hang_up();
        result.expect("a front-end that left");
        host
    }

    /// The front-end leaves.
    #[track_caller]
    pub(crate) fn hang_up(self) -> (Host, Result<(), CutOff>) {
        drop(self.front);
        drop(self.asks);
        self.running.end()
    }
}

/// A guest's context with a service behind it.
pub(crate) struct Channel {
    pub(crate) context: u32,
    ring: GuestAddress,
}

impl Channel {
    /// Waits for a message.
    pub(crate) fn poll(&self) -> Request {
        Request::submit(self.context, &Request::stream_poll()).fenced(1).on_ring(1)
    }

    /// What stands in the ring: data, and ids of descriptors.
    pub(crate) fn message(&self, machine: &Machine) -> (Vec<u8>, Vec<u32>) {
        let bytes = machine.ram.read(self.ring, PAGE as usize);
        let (head, data) = SendReceive::read_from_prefix(&bytes).expect("a whole ring");
        let count = head.num_identifiers.get() as usize;
        let ids = head.identifiers[..count].iter().map(|id| id.get()).collect();
        (data[..head.opaque_data_size.get() as usize].to_vec(), ids)
    }
}
