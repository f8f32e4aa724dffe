//! The camera protocol over a channel: lines of text that say which shared buffer holds which frame.

use std::collections::HashSet;

use crate::buffers::{Buffer, Digest};
use crate::channel::{Channel, Identifier};
use crate::failure::{Failure, Result, ensure};

/// The channel type of camera services.
pub(crate) const CHANNEL: u32 = 2;

/// A finished frame, which stays as it is until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) index: usize,
    sequence: u64,
}

/// A line of the host.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    Buffers { count: usize },
    Frame(Frame),
}

fn parse(line: &str) -> Option<Word> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["buffers", count, width, height, stride, _fourcc] => {
            for number in [width, height, stride] {
                number.parse::<u32>().ok()?;
            }
            Some(Word::Buffers { count: count.parse().ok()? })
        }
        ["frame", index, sequence] => {
            Some(Word::Frame(Frame { index: index.parse().ok()?, sequence: sequence.parse().ok()? }))
        }
        _ => None,
    }
}

/// What was seen of a camera so far.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) frames: usize,
    pub(crate) zero: usize,
    buffers: HashSet<usize>,
    hashes: HashSet<u64>,
}

impl Tally {
    /// How many different buffers held a frame.
    pub(crate) fn buffers(&self) -> usize {
        self.buffers.len()
    }

    /// How many different pictures there were.
    pub(crate) fn distinct(&self) -> usize {
        self.hashes.len()
    }

    fn count(&mut self, frame: Frame, digest: Digest) {
        self.frames += 1;
        self.zero += usize::from(digest.zero);
        self.buffers.insert(frame.index);
        self.hashes.insert(digest.hash);
    }
}

/// A camera of the host, with all its buffers mapped.
pub(crate) struct Camera {
    pub(crate) channel: Channel,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) tally: Tally,
}

impl Camera {
    pub(crate) fn open() -> Result<Self> {
        let mut camera = Self { channel: Channel::open(CHANNEL)?, buffers: Vec::new(), tally: Tally::default() };
        camera.map_announced()?;
        Ok(camera)
    }

    /// Has the same buffers announced once more, and maps them. The old ones must be closed.
    pub(crate) fn map_again(&mut self) -> Result<()> {
        self.channel.send("again")?;
        self.map_announced()
    }

    fn map_announced(&mut self) -> Result<()> {
        const STEP: &str = "buffers";
        let line = self.channel.line()?;
        let Some(Word::Buffers { count }) = parse(&line) else {
            return Err(Failure::new(STEP, format_args!("{line:?} came instead")));
        };
        let identifiers = self.channel.identifiers();
        let came = identifiers.len();
        ensure(came == count && count > 0, STEP, format_args!("{line:?} came with {came} descriptors"))?;
        for (index, identifier) in identifiers.into_iter().enumerate() {
            let Identifier::Buffer { id, size } = identifier else {
                return Err(Failure::new(STEP, format_args!("the device cannot forward buffer {index}")));
            };
            self.buffers.push(Buffer::map(self.channel.gpu(), id, size)?);
        }
        Ok(())
    }

    /// The next finished frame.
    pub(crate) fn next(&mut self) -> Result<Frame> {
        self.channel.send("next")?;
        let line = self.channel.line()?;
        match parse(&line) {
            Some(Word::Frame(frame)) if frame.index < self.buffers.len() => Ok(frame),
            _ => Err(Failure::new("frame", format_args!("{line:?} came instead"))),
        }
    }

    /// Reads the frame out of its buffer, and says so on the console.
    pub(crate) fn read(&mut self, frame: Frame) -> Digest {
        let digest = self.buffers[frame.index].digest();
        self.tally.count(frame, digest);
        println!("guest: frame seq={} buffer={} hash={:016x}", frame.sequence, frame.index, digest.hash);
        digest
    }

    /// Gives the frame back; the host compares.
    pub(crate) fn seen(&self, frame: Frame, digest: Digest) -> Result<()> {
        self.channel.send(&format!("seen {} {} {:016x}", frame.index, frame.sequence, digest.hash))
    }

    /// Gives the frame back without a comparison.
    pub(crate) fn skip(&self, frame: Frame) -> Result<()> {
        self.channel.send(&format!("skip {} {}", frame.index, frame.sequence))
    }

    /// Takes one frame and has it compared.
    pub(crate) fn compare_one(&mut self) -> Result<()> {
        let frame = self.next()?;
        let digest = self.read(frame);
        self.seen(frame, digest)
    }

    /// Unmaps and closes all buffers.
    pub(crate) fn close_buffers(&mut self) -> Result<()> {
        self.buffers.drain(..).try_for_each(|buffer| buffer.close(self.channel.gpu()))
    }

    /// No frame may be all zero.
    pub(crate) fn check_none_zero(&self) -> Result<()> {
        ensure(self.tally.zero == 0, "frames", format_args!("{} are all zero", self.tally.zero))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_camera_are_read_and_no_others() {
        assert_eq!(parse("buffers 4 640 480 1280 YUYV"), Some(Word::Buffers { count: 4 }));
        assert_eq!(parse("frame 3 17"), Some(Word::Frame(Frame { index: 3, sequence: 17 })));
        for line in ["", "frame", "frame 3", "frame 3 -1", "frame  3 1", "buffers 4 640 480", "buffers 4 a 480 1 YUYV"]
        {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn equal_pictures_and_buffers_count_once() {
        let mut tally = Tally::default();
        for (index, hash) in [(0, 1), (1, 1), (0, 2)] {
            tally.count(Frame { index, sequence: 0 }, Digest { hash, zero: hash == 2 });
        }
        assert_eq!((tally.frames, tally.buffers(), tally.distinct(), tally.zero), (3, 2, 2, 1));
    }
}
