//! The way of the guest's PipeWire clients to the host's daemon: a socket like the daemon's own, and for each client that
//! connects to it a channel of its own.

mod channel;

use std::os::unix::net::{UnixListener, UnixStream};

use crate::failure::{Failure, In, Result};

/// The channel type of PipeWire daemons.
pub(crate) const CHANNEL: u32 = 0x10;

/// Listens at `socket` for as long as the program lives.
pub(crate) fn bridge(socket: &str) -> Result<()> {
    let listener =
        UnixListener::bind(socket).map_err(|error| Failure::new("bind", format_args!("{socket}: {error}")))?;
    println!("guest: pipewire listens");
    for (number, client) in listener.incoming().enumerate() {
        let client = client.during("accept")?;
        // One client's end is nobody else's: it is told, and no more.
        std::thread::spawn(move || match serve(client) {
            Ok(()) => println!("guest: pipewire client={number} has gone"),
            Err(failure) => println!("guest: pipewire client={number} FAILED in {failure}"),
        });
    }
    Ok(())
}

/// Carries one client's session. The context ends with it, and the host's end of the channel with that.
fn serve(client: UnixStream) -> Result<()> {
    let mut channel = channel::PipeWire::open()?;
    pipewire_bridge::serve(client, &mut channel).during("session")
}
