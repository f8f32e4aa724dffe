//! Bytes of the cross-domain context type: the stream that a guest submits and the messages in its channel ring.
//! The layouts are those of `virtgpu_cross_domain_protocol.h`, in the dialects of rutabaga_gfx and of libkrun.

use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::wire::wire;

/// Most identifiers (and so file descriptors) of one message.
pub const MAX_IDENTIFIERS: usize = 28;
/// A ring blob is at least this long, in bytes.
pub const MIN_RING_LEN: u64 = 4096;

/// Most commands of one stream, so that none keeps the device busy for long. Guests send one or two.
pub const MAX_COMMANDS: usize = 256;

/// Commands of the stream.
#[allow(missing_docs, reason = "the protocol's own names say it all")]
pub mod command {
    pub const INIT: u8 = 1;
    pub const GET_IMAGE_REQUIREMENTS: u8 = 2;
    pub const POLL: u8 = 3;
    pub const SEND: u8 = 4;
    pub const RECEIVE: u8 = 5;
    pub const READ: u8 = 6;
    pub const WRITE: u8 = 7;
    pub const READ_EVENTFD_NEW: u8 = 11;
    /// Of libkrun's dialect; in rutabaga_gfx's the number means something else.
    pub const READ_EVENTFD_DESTROY: u8 = 12;
}

/// Types of identifiers.
#[allow(missing_docs, reason = "the protocol's own names say it all")]
pub mod id_type {
    /// What a descriptor that cannot be forwarded is announced as; its id is 0.
    pub const UNSUPPORTED: u32 = 0;
    pub const VIRTGPU_BLOB: u32 = 1;
    /// A pipe that the host reads for the guest. In SEND alone: the guest states the id that it will have.
    pub const READ_PIPE: u32 = 3;
    /// A pipe that the host writes for the guest.
    pub const WRITE_PIPE: u32 = 4;
    /// An eventfd, in rutabaga_gfx's dialect.
    pub const EVENT: u32 = 5;
    /// An eventfd, in libkrun's dialect.
    pub const EVENTFD: u32 = 6;
}

/// The id of a context's first pipe for reading; each has the number after the one before, so that the guest can state it.
pub const FIRST_READ_PIPE: u32 = 0x8000_0001;

/// Which of the two projects' numbers a guest speaks. INIT tells by its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// rutabaga_gfx's: INIT of 16, 20 or 36 bytes.
    Rutabaga,
    /// libkrun's: INIT of 24 bytes.
    Libkrun,
}

impl Dialect {
    /// What an eventfd is announced as, see [`id_type`].
    #[must_use]
    pub fn event_type(self) -> u32 {
        match self {
            Self::Rutabaga => id_type::EVENT,
            Self::Libkrun => id_type::EVENTFD,
        }
    }
}

/// Which host service a channel talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelType(pub u32);

impl ChannelType {
    /// No channel: a context that only asks questions.
    pub const NONE: Self = Self(0);
    /// A Wayland compositor.
    pub const WAYLAND: Self = Self(1);
    /// A camera service.
    pub const CAMERA: Self = Self(2);
    /// A PipeWire daemon.
    pub const PIPEWIRE: Self = Self(0x10);
    /// An X11 server.
    pub const X11: Self = Self(0x11);
}

/// A word that names no type of channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no type of channel: wayland, camera, pipewire or x11")]
pub struct UnknownChannelType(String);

impl std::str::FromStr for ChannelType {
    type Err = UnknownChannelType;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "wayland" => Ok(Self::WAYLAND),
            "camera" => Ok(Self::CAMERA),
            "pipewire" => Ok(Self::PIPEWIRE),
            "x11" => Ok(Self::X11),
            _ => Err(UnknownChannelType(name.to_owned())),
        }
    }
}

wire! {
    /// `struct CrossDomainCapabilities`, the capability set's data.
    16 Capabilities {
        /// 1.
        version: U32,
        /// Bit n: channel type n is offered.
        supported_channels: U32,
        /// 1 where dma-bufs are forwarded.
        supports_dmabuf: U32,
        /// 0: no external GPU memory.
        supports_external_gpu_memory: U32,
    }
    /// `struct CrossDomainHeader`.
    8 StreamHeader {
        /// One of [`command`].
        cmd: u8,
        /// The ring that the answer belongs to.
        ring_idx: u8,
        /// Length of this command with its header, in bytes.
        cmd_size: U16,
        /// Unused.
        padding: U32,
    }
    /// `struct CrossDomainInit` of rutabaga_gfx's first version; longer ones only add fields.
    20 Init {
        /// Header.
        header: StreamHeader,
        /// Resource that answers to queries are written to.
        query_ring: U32,
        /// Resource that messages of the channel are written to.
        channel_ring: U32,
        /// See [`ChannelType`].
        channel_type: U32,
    }
    /// The oldest `struct CrossDomainInit`: one ring for both.
    16 InitLegacy {
        /// Header.
        header: StreamHeader,
        /// The one ring.
        ring: U32,
        /// See [`ChannelType`].
        channel_type: U32,
    }
    /// `struct CrossDomainSendReceive`; `opaque_data_size` bytes follow.
    352 SendReceive {
        /// Header.
        header: StreamHeader,
        /// How many of the identifiers are used.
        num_identifiers: U32,
        /// Length of the data that follows, in bytes.
        opaque_data_size: U32,
        /// Ids.
        identifiers: [U32; MAX_IDENTIFIERS],
        /// Types, see [`id_type`].
        identifier_types: [U32; MAX_IDENTIFIERS],
        /// Sizes in bytes.
        identifier_sizes: [U32; MAX_IDENTIFIERS],
    }
    /// `struct CrossDomainReadWrite`; `opaque_data_size` bytes follow.
    24 ReadWrite {
        /// Header.
        header: StreamHeader,
        /// What is read or written.
        identifier: U32,
        /// Not 0: nothing comes after this.
        hang_up: U32,
        /// Length of the data that follows, in bytes.
        opaque_data_size: U32,
        /// Unused.
        padding: U32,
    }
    /// `struct CrossDomainCreateEvent` (libkrun: `CrossDomainReadEventfdNew`), and the one that ends it.
    16 EventCommand {
        /// Header.
        header: StreamHeader,
        /// The eventfd.
        id: U32,
        /// Unused.
        padding: U32,
    }
    /// `struct CrossDomainGetImageRequirements`.
    24 GetImageRequirements {
        /// Header.
        header: StreamHeader,
        /// In pixels.
        width: U32,
        /// In pixels.
        height: U32,
        /// A code of `drm_fourcc.h`.
        drm_format: U32,
        /// Bits of minigbm's `GBM_BO_USE_*`, as rutabaga_gfx numbers them.
        flags: U32,
    }
    /// `struct CrossDomainImageRequirements`, the answer in the query ring.
    64 ImageRequirements {
        /// Bytes from a row to the next, of each plane.
        strides: [U32; 4],
        /// First byte of each plane.
        offsets: [U32; 4],
        /// A modifier of `drm_fourcc.h`.
        modifier: U64,
        /// Of a blob for such an image, in bytes.
        size: U64,
        /// What to create the blob with.
        blob_id: U32,
        /// How the blob is cached, as MAP_BLOB answers it.
        map_info: U32,
        /// Vulkan's, or -1.
        memory_idx: I32,
        /// Vulkan's, or -1.
        physical_device_idx: I32,
    }
}

/// One command of a stream, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StreamCommand<'a> {
    Init { query_ring: u32, channel_ring: u32, channel_type: ChannelType, dialect: Dialect },
    Image { width: u32, height: u32, fourcc: u32, flags: u32 },
    Poll,
    Send { attachments: Vec<Attachment>, data: &'a [u8] },
    Write { id: u32, data: &'a [u8], hang_up: bool },
    Watch { id: u32 },
    Unwatch { id: u32 },
}

/// What a guest sends along with data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// The buffer of a resource.
    Blob(u32),
    /// The end for writing of a new pipe, whose other end the guest knows by this id.
    ReadPipe(u32),
}

/// Why a stream is refused; nothing of it has been carried out then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("{rest} bytes left of the stream, a header takes 8")]
    Truncated { rest: usize },
    #[error("command {cmd} of {size} bytes, {rest} are left of the stream")]
    Size { cmd: u8, size: usize, rest: usize },
    #[error("more than {MAX_COMMANDS} commands")]
    Commands,
    #[error("command {cmd} is not served")]
    Unknown { cmd: u8 },
    #[error("{count} identifiers, {MAX_IDENTIFIERS} at most")]
    Identifiers { count: u32 },
    #[error("{len} bytes of data in a command of {size} bytes")]
    Data { len: u32, size: usize },
    #[error("identifier type {kind} cannot be sent")]
    IdentifierType { kind: u32 },
}

/// Reads a whole submitted stream.
///
/// # Errors
/// The first malformed command; a stream is taken whole or not at all.
pub(crate) fn parse(mut stream: &[u8]) -> Result<Vec<StreamCommand<'_>>, StreamError> {
    let mut commands = Vec::new();
    while !stream.is_empty() {
        let (header, _) =
            StreamHeader::read_from_prefix(stream).map_err(|_| StreamError::Truncated { rest: stream.len() })?;
        let (cmd, size) = (header.cmd, usize::from(header.cmd_size.get()));
        let malformed = StreamError::Size { cmd, size, rest: stream.len() };
        if commands.len() == MAX_COMMANDS {
            return Err(StreamError::Commands);
        }
        if size < size_of::<StreamHeader>() {
            return Err(malformed);
        }
        let (bytes, rest) = stream.split_at_checked(size).ok_or(malformed)?;
        commands.push(match cmd {
            command::INIT => init(bytes).ok_or(malformed)?,
            command::GET_IMAGE_REQUIREMENTS => image(bytes).ok_or(malformed)?,
            command::POLL => StreamCommand::Poll,
            command::SEND => send(bytes)?,
            command::WRITE => write(bytes)?,
            command::READ_EVENTFD_NEW => StreamCommand::Watch { id: event(bytes).ok_or(malformed)? },
            // rutabaga_gfx's command of this number is longer.
            command::READ_EVENTFD_DESTROY if size == size_of::<EventCommand>() => {
                StreamCommand::Unwatch { id: event(bytes).ok_or(malformed)? }
            }
            cmd => return Err(StreamError::Unknown { cmd }),
        });
        stream = rest;
    }
    Ok(commands)
}

/// Both dialects: 16 and 20 bytes, 24 (libkrun adds a version), 36 (rutabaga_gfx adds a socket's UUID).
fn init(bytes: &[u8]) -> Option<StreamCommand<'_>> {
    match bytes.len() {
        16 => {
            let init = InitLegacy::read_from_bytes(bytes).ok()?;
            let ring = init.ring.get();
            let channel_type = ChannelType(init.channel_type.get());
            let dialect = Dialect::Rutabaga;
            Some(StreamCommand::Init { query_ring: ring, channel_ring: ring, channel_type, dialect })
        }
        20 | 24 | 36 => {
            let (init, _) = Init::read_from_prefix(bytes).ok()?;
            Some(StreamCommand::Init {
                dialect: if bytes.len() == 24 { Dialect::Libkrun } else { Dialect::Rutabaga },
                query_ring: init.query_ring.get(),
                channel_ring: init.channel_ring.get(),
                channel_type: ChannelType(init.channel_type.get()),
            })
        }
        _ => None,
    }
}

fn send(bytes: &[u8]) -> Result<StreamCommand<'_>, StreamError> {
    let size = bytes.len();
    let malformed = StreamError::Size { cmd: command::SEND, size, rest: size };
    let (head, data) = SendReceive::read_from_prefix(bytes).map_err(|_| malformed)?;
    let count = head.num_identifiers.get();
    let used = usize::try_from(count).ok().filter(|count| *count <= MAX_IDENTIFIERS);
    let used = used.ok_or(StreamError::Identifiers { count })?;
    let attachment = |(id, kind): (&U32, &U32)| match kind.get() {
        id_type::VIRTGPU_BLOB => Ok(Attachment::Blob(id.get())),
        id_type::READ_PIPE => Ok(Attachment::ReadPipe(id.get())),
        kind => Err(StreamError::IdentifierType { kind }),
    };
    let pairs = head.identifiers[..used].iter().zip(&head.identifier_types);
    let attachments = pairs.map(attachment).collect::<Result<_, _>>()?;
    let len = head.opaque_data_size.get();
    // A stream socket carries descriptors with a byte of data or not at all.
    let data = data.get(..len as usize).filter(|data| !data.is_empty()).ok_or(StreamError::Data { len, size })?;
    Ok(StreamCommand::Send { attachments, data })
}

fn write(bytes: &[u8]) -> Result<StreamCommand<'_>, StreamError> {
    let size = bytes.len();
    let malformed = StreamError::Size { cmd: command::WRITE, size, rest: size };
    let (head, data) = ReadWrite::read_from_prefix(bytes).map_err(|_| malformed)?;
    let len = head.opaque_data_size.get();
    let data = data.get(..len as usize).ok_or(StreamError::Data { len, size })?;
    Ok(StreamCommand::Write { id: head.identifier.get(), data, hang_up: head.hang_up.get() != 0 })
}

fn event(bytes: &[u8]) -> Option<u32> {
    EventCommand::read_from_prefix(bytes).ok().map(|(command, _)| command.id.get())
}

fn image(bytes: &[u8]) -> Option<StreamCommand<'_>> {
    let (image, _) = GetImageRequirements::read_from_prefix(bytes).ok()?;
    let GetImageRequirements { width, height, drm_format, flags, .. } = image;
    let [width, height, fourcc, flags] = [width, height, drm_format, flags].map(U32::get);
    Some(StreamCommand::Image { width, height, fourcc, flags })
}

/// One descriptor of a message, as the guest is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identifier {
    pub(crate) id: u32,
    pub(crate) kind: u32,
    pub(crate) size: u32,
}

/// The header of what the host writes into the channel ring: of a message, its kind alone.
fn told(cmd: u8) -> StreamHeader {
    StreamHeader { cmd, ring_idx: 0, cmd_size: 0.into(), padding: 0.into() }
}

/// The bytes of a READ message as they stand in the channel ring.
pub(crate) fn read(id: u32, data: &[u8], hang_up: bool) -> Vec<u8> {
    let head = ReadWrite {
        header: told(command::READ),
        identifier: id.into(),
        hang_up: u32::from(hang_up).into(),
        opaque_data_size: (data.len() as u32).into(),
        padding: 0.into(),
    };
    [head.as_bytes(), data].concat()
}

/// The bytes of a RECEIVE message as they stand in the channel ring. No data and no identifiers means end of file.
pub(crate) fn receive(identifiers: &[Identifier], data: &[u8]) -> Vec<u8> {
    let mut head = SendReceive {
        header: told(command::RECEIVE),
        num_identifiers: (identifiers.len() as u32).into(),
        opaque_data_size: (data.len() as u32).into(),
        identifiers: [0.into(); MAX_IDENTIFIERS],
        identifier_types: [0.into(); MAX_IDENTIFIERS],
        identifier_sizes: [0.into(); MAX_IDENTIFIERS],
    };
    for (slot, identifier) in identifiers.iter().enumerate() {
        head.identifiers[slot] = identifier.id.into();
        head.identifier_types[slot] = identifier.kind.into();
        head.identifier_sizes[slot] = identifier.size.into();
    }
    [head.as_bytes(), data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(cmd: u8, size: u16) -> [u8; 8] {
        let [low, high] = size.to_le_bytes();
        [cmd, 0, low, high, 0, 0, 0, 0]
    }

    fn command(cmd: u8, words: &[u32]) -> Vec<u8> {
        let size = u16::try_from(8 + 4 * words.len()).expect("short");
        let mut bytes = header(cmd, size).to_vec();
        words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        bytes
    }

    #[test]
    fn every_dialect_of_init_is_read_and_no_other_size() {
        let both = |query_ring, channel_ring, dialect| StreamCommand::Init {
            query_ring,
            channel_ring,
            channel_type: ChannelType::PIPEWIRE,
            dialect,
        };
        assert_eq!(parse(&command(1, &[3, 0x10])), Ok(vec![both(3, 3, Dialect::Rutabaga)]));
        for (extra, dialect) in [(0, Dialect::Rutabaga), (1, Dialect::Libkrun), (4, Dialect::Rutabaga)] {
            let words = [&[3, 4, 0x10][..], &vec![9; extra]].concat();
            assert_eq!(parse(&command(1, &words)), Ok(vec![both(3, 4, dialect)]));
        }
        for words in [1, 5, 6, 8] {
            assert!(matches!(parse(&command(1, &vec![1; words])), Err(StreamError::Size { cmd: 1, .. })));
        }
    }

    #[test]
    fn a_stream_of_size_zero_commands_is_refused_and_not_walked_for_ever() {
        assert_eq!(parse(&header(3, 0)), Err(StreamError::Size { cmd: 3, size: 0, rest: 8 }));
        assert_eq!(parse(&header(3, 7)), Err(StreamError::Size { cmd: 3, size: 7, rest: 8 }));
        assert_eq!(parse(&header(3, 9)), Err(StreamError::Size { cmd: 3, size: 9, rest: 8 }));
        assert_eq!(parse(&[3, 0, 8]), Err(StreamError::Truncated { rest: 3 }));
        assert_eq!(parse(&header(200, 8)), Err(StreamError::Unknown { cmd: 200 }));
        assert_eq!(parse(&[]), Ok(vec![]));
        assert_eq!(parse(&command(3, &[]).repeat(256)).map(|commands| commands.len()), Ok(256));
        assert_eq!(parse(&command(3, &[]).repeat(257)), Err(StreamError::Commands));
    }

    #[test]
    fn a_batch_is_split_by_the_size_each_command_states() {
        let batch = [command(1, &[3, 4, 0x10]), command(3, &[0, 0])].concat();
        assert_eq!(parse(&batch).map(|commands| commands.len()), Ok(2));
        let bad = [command(3, &[0, 0]), header(9, 8).to_vec()].concat();
        assert_eq!(parse(&bad), Err(StreamError::Unknown { cmd: 9 }));
    }

    #[test]
    fn a_send_names_no_more_identifiers_or_data_than_it_holds() {
        let send = |ids: u32, kind: u32, len: u32, data: usize| {
            let mut words = vec![0; 86];
            (words[0], words[1], words[2], words[30]) = (ids, len, 7, kind);
            let mut bytes = command(4, &words);
            bytes.extend(vec![5; data]);
            let size = u16::try_from(bytes.len()).expect("short");
            bytes[2..4].copy_from_slice(&size.to_le_bytes());
            bytes
        };
        let sent = |attachment| Ok(vec![StreamCommand::Send { attachments: vec![attachment], data: &[5; 3] }]);
        assert_eq!(parse(&send(1, 1, 3, 3)), sent(Attachment::Blob(7)));
        assert_eq!(parse(&send(1, 3, 3, 3)), sent(Attachment::ReadPipe(7)));
        assert!(matches!(parse(&send(29, 1, 1, 1)), Err(StreamError::Identifiers { count: 29 })));
        assert!(matches!(parse(&send(u32::MAX, 1, 1, 1)), Err(StreamError::Identifiers { .. })));
        assert!(matches!(parse(&send(1, 1, 4, 3)), Err(StreamError::Data { len: 4, .. })));
        assert!(matches!(parse(&send(1, 1, 0, 3)), Err(StreamError::Data { len: 0, .. })));
        assert!(matches!(parse(&send(1, 6, 1, 1)), Err(StreamError::IdentifierType { kind: 6 })));
    }

    #[test]
    fn a_write_holds_no_more_data_than_its_command_and_a_short_one_is_refused() {
        let write = |len: u32, data: usize| {
            let mut bytes = command(7, &[9, 1, len, 0]);
            bytes.extend(vec![5; data]);
            bytes[2] = u8::try_from(bytes.len()).expect("short");
            bytes
        };
        let written = |data| Ok(vec![StreamCommand::Write { id: 9, data, hang_up: true }]);
        assert_eq!(parse(&write(8, 8)), written(&[5; 8][..]));
        assert_eq!(parse(&write(0, 0)), written(&[]));
        assert!(matches!(parse(&write(9, 8)), Err(StreamError::Data { len: 9, .. })));
        assert!(matches!(parse(&write(u32::MAX, 8)), Err(StreamError::Data { .. })));
        assert!(matches!(parse(&command(7, &[9, 0, 0])), Err(StreamError::Size { cmd: 7, .. })));
        for cmd in [11, 12] {
            assert!(parse(&command(cmd, &[9])).is_err());
        }
        assert_eq!(parse(&command(11, &[9, 0])), Ok(vec![StreamCommand::Watch { id: 9 }]));
        assert_eq!(parse(&command(12, &[9, 0])), Ok(vec![StreamCommand::Unwatch { id: 9 }]));
        assert_eq!(parse(&command(12, &[9; 6])), Err(StreamError::Unknown { cmd: 12 }));
        assert!(matches!(parse(&command(2, &[9; 3])), Err(StreamError::Size { cmd: 2, .. })));
    }

    #[test]
    fn a_receive_message_announces_each_descriptor_in_its_own_slot() {
        let bytes =
            receive(&[Identifier { id: 2, kind: 1, size: 4096 }, Identifier { id: 0, kind: 0, size: 0 }], b"hi");
        let (head, data) = SendReceive::read_from_prefix(&bytes).expect("whole");
        assert_eq!((head.header.cmd, head.header.cmd_size.get(), data), (5, 0, &b"hi"[..]));
        assert_eq!((head.num_identifiers.get(), head.opaque_data_size.get()), (2, 2));
        assert_eq!(
            (head.identifiers[0].get(), head.identifier_types[0].get(), head.identifier_sizes[0].get()),
            (2, 1, 4096)
        );
    }
}
