//! Subcommands for buffers of any kind that a test on the host sends: those that must not be mapped, and those that
//! host and guest read and write by turns.

use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::buffers::Buffer;
use crate::channel::{Channel, Identifier};
use crate::drm::Blob;
use crate::failure::{Failure, In, Result, ensure};

/// Makes blobs `factor` times as long as what was announced with the first message; none may be mapped. They are kept
/// until the host has looked, and says so with another line.
pub(crate) fn refused(channel: u32, factor: usize) -> Result<()> {
    const STEP: &str = "refused";
    let mut channel = Channel::open(channel)?;
    channel.line()?;
    let identifiers = channel.identifiers();
    ensure(!identifiers.is_empty(), STEP, "no descriptor came")?;
    let mut held = Vec::new();
    for (index, identifier) in identifiers.into_iter().enumerate() {
        let Identifier::Buffer { id, size } = identifier else {
            println!("guest: refused index={index} unsupported");
            continue;
        };
        let size = size as usize * factor;
        let gpu = channel.gpu();
        let blob = Blob::host(gpu.as_fd(), id, size).during("RESOURCE_CREATE_BLOB")?;
        let mapped = blob.map(gpu.as_fd()).map(|_| ());
        held.push(blob);
        match mapped {
            Err(Errno::INVAL) => println!("guest: refused index={index} size={size} errno=EINVAL"),
            Err(error) => return Err(Failure::new(STEP, format_args!("index={index} size={size}: {error}"))),
            Ok(()) => return Err(Failure::new(STEP, format_args!("index={index} size={size} was mapped"))),
        }
    }
    println!("guest: refused held={}", held.len());
    channel.line()?;
    held.into_iter().try_for_each(|blob| blob.close(channel.gpu().as_fd()).during("GEM_CLOSE"))
}

/// What a test asks for.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    Hash(usize),
    Fill(usize, u8),
    Quit,
}

fn parse(line: &str) -> Option<Order> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["hash", index] => Some(Order::Hash(index.parse().ok()?)),
        ["fill", index, byte] => Some(Order::Fill(index.parse().ok()?, byte.parse().ok()?)),
        ["quit"] => Some(Order::Quit),
        _ => None,
    }
}

/// Maps the buffers that come with the first line and does what the following lines say. Buffers that come later
/// get the next numbers.
pub(crate) fn buffers(channel: u32) -> Result<()> {
    let mut channel = Channel::open(channel)?;
    let mut buffers = Vec::new();
    channel.line()?;
    map_new(&mut channel, &mut buffers)?;
    loop {
        let line = channel.line()?;
        map_new(&mut channel, &mut buffers)?;
        let order = parse(&line).ok_or_else(|| Failure::new("order", format_args!("{line:?}")))?;
        let (Order::Hash(index) | Order::Fill(index, _)) = order else { break };
        let buffer = buffers.get(index).and_then(Option::as_ref);
        let buffer = buffer.ok_or_else(|| Failure::new("order", format_args!("{line:?}: no such buffer")))?;
        let answer = match order {
            Order::Fill(_, byte) => {
                buffer.fill(byte);
                format!("filled {index}")
            }
            Order::Hash(_) | Order::Quit => format!("hash {index} {:016x}", buffer.digest().hash),
        };
        println!("guest: {answer}");
        channel.send(&answer)?;
    }
    let count = buffers.len();
    buffers.into_iter().flatten().try_for_each(|buffer| buffer.close(channel.gpu()))?;
    println!("guest: buffers count={count}");
    Ok(())
}

fn map_new(channel: &mut Channel, buffers: &mut Vec<Option<Buffer>>) -> Result<()> {
    for identifier in channel.identifiers() {
        let index = buffers.len();
        let Identifier::Buffer { id, size } = identifier else {
            println!("guest: buffer index={index} unsupported");
            buffers.push(None);
            continue;
        };
        let buffer = Buffer::map(channel.gpu(), id, size)?;
        println!("guest: buffer index={index} size={size} hash={:016x}", buffer.digest().hash);
        buffers.push(Some(buffer));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_nothing_else_is_taken_for_one() {
        assert_eq!(parse("hash 2"), Some(Order::Hash(2)));
        assert_eq!(parse("fill 0 255"), Some(Order::Fill(0, 255)));
        assert_eq!(parse("quit"), Some(Order::Quit));
        for line in ["", "hash", "hash -1", "fill 0", "fill 0 256", "quit now", "Hash 2"] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }
}
