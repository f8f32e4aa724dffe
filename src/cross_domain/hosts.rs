//! Which services of the host a guest may connect to: a list that the VMM writes and the guest cannot extend.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::ContextError;
use crate::protocol::cross_domain::ChannelType;

/// Socket paths by channel type.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostSockets {
    paths: BTreeMap<ChannelType, PathBuf>,
}

impl HostSockets {
    /// Offers the service behind `path` under a channel type.
    pub(crate) fn offer(&mut self, channel_type: ChannelType, path: PathBuf) {
        self.paths.insert(channel_type, path);
    }

    /// Bit n: channel type n is offered (types from 32 on have no bit).
    pub(crate) fn mask(&self) -> u32 {
        self.paths.keys().filter_map(|channel_type| 1u32.checked_shl(channel_type.0)).fold(0, |mask, bit| mask | bit)
    }

    /// Connects without ever waiting: a service whose queue of connections is full refuses.
    pub(crate) fn connect(&self, channel_type: ChannelType) -> Result<OwnedFd, ContextError> {
        let path = self.paths.get(&channel_type).ok_or(ContextError::NotOffered(channel_type))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connected = || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&socket, &SocketAddrUnix::new(path.as_path())?)?;
            Ok(socket)
        };
        connected().map_err(|errno: Errno| ContextError::Connect(io::Error::from(errno)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_type_that_was_not_offered_is_never_connected() {
        let mut hosts = HostSockets::default();
        hosts.offer(ChannelType::PIPEWIRE, "/nonexistent/socket".into());
        hosts.offer(ChannelType(u32::MAX), "/nonexistent/socket".into());
        assert_eq!(hosts.mask(), 1 << 16);
        assert!(matches!(hosts.connect(ChannelType::WAYLAND), Err(ContextError::NotOffered(_))));
        assert!(matches!(hosts.connect(ChannelType::PIPEWIRE), Err(ContextError::Connect(_))));
    }
}
