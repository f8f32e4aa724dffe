//! The kernel's events of devices, as a desktop's udev hears them: a card whose displays have changed says so.

use std::os::fd::OwnedFd;

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::failure::{In, Result};
use crate::gpu::wait_readable;

/// The kernel's own group of listeners.
const KERNEL: u32 = 1;

/// Hears all that happens from now on.
pub(crate) struct Events(OwnedFd);

impl Events {
    pub(crate) fn listen() -> Result<Self> {
        const STEP: &str = "uevents";
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(KOBJECT_UEVENT));
        let socket = socket.during(STEP)?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL)).during(STEP)?;
        Ok(Self(socket))
    }

    /// Waits for the next change of a card's displays.
    pub(crate) fn wait_hotplug(&self) -> Result<()> {
        const STEP: &str = "hot-plug event";
        loop {
            wait_readable(&self.0, STEP)?;
            let mut event = [0; 4096];
            let (len, _) = recv(&self.0, &mut event, RecvFlags::empty()).during(STEP)?;
            if is_hotplug(&event[..len]) {
                return Ok(());
            }
        }
    }
}

/// An event is a headline and variables, each with a NUL at its end.
fn is_hotplug(event: &[u8]) -> bool {
    let has = |variable: &str| event.split(|byte| *byte == 0).any(|word| word == variable.as_bytes());
    has("HOTPLUG=1") && has("DEVNAME=dri/card0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_of_displays_is_one() {
        assert!(is_hotplug(b"change@/devices/x\0ACTION=change\0HOTPLUG=1\0DEVNAME=dri/card0\0"));
        assert!(!is_hotplug(b"change@/devices/x\0ACTION=change\0DEVNAME=dri/card0\0"));
        assert!(!is_hotplug(b"add@/devices/x\0HOTPLUG=10\0DEVNAME=dri/card0\0"));
    }
}
