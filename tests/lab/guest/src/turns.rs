//! A subcommand for buffers that a test on the host sends by the dozen: each is mapped, read word by word, written anew, and
//! kept until the host says so.

use crate::buffers::Buffer;
use crate::channel::{Channel, Identifier};
use crate::failure::{Failure, Result, ensure};
use crate::words::word;

/// What a test asks for. The number is the round's, which says what the host has written.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    /// Maps all that has come, and does with all that is mapped what `Check` does.
    Take(u32),
    /// Reads all buffers that are mapped, and writes them anew.
    Check(u32),
    /// Unmaps and closes all.
    Drop,
    Quit,
}

fn parse(line: &str) -> Option<Order> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["take", seed] => Some(Order::Take(seed.parse().ok()?)),
        ["check", seed] => Some(Order::Check(seed.parse().ok()?)),
        ["drop"] => Some(Order::Drop),
        ["quit"] => Some(Order::Quit),
        _ => None,
    }
}

/// Does what the lines of the host say, and answers each with how many buffers there are and how many words were wrong.
pub(crate) fn turns(channel: u32) -> Result<()> {
    let mut channel = Channel::open(channel)?;
    let mut held: Vec<Buffer> = Vec::new();
    let (mut mapped, mut bad) = (0, 0);
    loop {
        let line = channel.line()?;
        let order = parse(&line).ok_or_else(|| Failure::new("order", format_args!("{line:?}")))?;
        let wrong = match order {
            Order::Take(seed) => {
                mapped += take(&mut channel, &mut held)?;
                rewrite(&held, seed)
            }
            Order::Check(seed) => rewrite(&held, seed),
            Order::Drop => {
                held.drain(..).try_for_each(|buffer| buffer.close(channel.gpu()))?;
                0
            }
            Order::Quit => break,
        };
        bad += wrong;
        channel.send(&format!("done {} {wrong}", held.len()))?;
    }
    held.into_iter().try_for_each(|buffer| buffer.close(channel.gpu()))?;
    println!("guest: turns mapped={mapped} bad={bad}");
    ensure(bad == 0, "turns", format_args!("{bad} words were others than the host's"))
}

/// Maps what has come; answers with how many that was.
fn take(channel: &mut Channel, held: &mut Vec<Buffer>) -> Result<usize> {
    let identifiers = channel.identifiers();
    let count = identifiers.len();
    for identifier in identifiers {
        let Identifier::Buffer { id, size } = identifier else {
            return Err(Failure::new("take", "the device cannot forward a buffer"));
        };
        held.push(Buffer::map(channel.gpu(), id, size)?);
    }
    Ok(count)
}

/// Answers with how many words were not the host's.
fn rewrite(held: &[Buffer], seed: u32) -> usize {
    held.iter().enumerate().map(|(index, buffer)| buffer.complement(|offset| word(seed, index, offset))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_nothing_else_is_taken_for_one() {
        assert_eq!(parse("take 7"), Some(Order::Take(7)));
        assert_eq!(parse("check 0"), Some(Order::Check(0)));
        assert_eq!(parse("drop"), Some(Order::Drop));
        assert_eq!(parse("quit"), Some(Order::Quit));
        for line in ["", "take", "take -1", "take 1 2", "drop 1", "Quit"] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn no_two_words_are_alike() {
        let places =
            (0..3).flat_map(|seed| (0..3).flat_map(move |buffer| [0, 8, (64 << 20) - 8].map(|at| (seed, buffer, at))));
        let mut words: Vec<u64> = places.map(|(seed, buffer, at)| word(seed, buffer, at)).collect();
        words.extend(words.clone().iter().map(|word| !word));
        let count = words.len();
        words.sort_unstable();
        words.dedup();
        assert!(words.len() == count && !words.contains(&0));
    }
}
