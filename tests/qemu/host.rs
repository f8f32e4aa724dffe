//! The host's end of a conversation with `lab-guest turns`: memfds of known words that the guest maps, reads and writes anew.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use virtio_gpu_uring::testing::{HostPeer, HostService};

use crate::word::word;

/// An emulated guest takes its time.
const DEADLINE: Duration = Duration::from_secs(120);

/// A buffer that host and guest write by turns.
pub(crate) struct Buffer {
    file: OwnedFd,
    len: usize,
}

impl Buffer {
    pub(crate) fn new(len: usize) -> Self {
        let file = memfd_create("qemu-blob", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, len as u64).expect("room");
        Self { file, len }
    }

    /// Writes the words of a round.
    fn write(&self, seed: u32, index: usize) {
        let bytes: Vec<u8> = (0..self.len).step_by(8).flat_map(|at| word(seed, index, at).to_le_bytes()).collect();
        assert_eq!(pwrite(&self.file, &bytes, 0).expect("written"), self.len);
    }

    /// How many words are not what the guest has to write in a round.
    fn wrong(&self, seed: u32, index: usize) -> usize {
        let mut bytes = vec![0; self.len];
        assert_eq!(pread(&self.file, &mut bytes, 0).expect("read"), self.len);
        let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
        words.zip((0..).step_by(8)).filter(|(found, at)| *found != !word(seed, index, *at)).count()
    }
}

/// The guest's program, as far as the host hears of it.
pub(crate) struct Turns {
    peer: HostPeer,
    lines: BufReader<UnixStream>,
    held: Vec<Buffer>,
    seed: u32,
    /// Words that were wrong, as the guest saw them and as the host did.
    pub(crate) bad: (usize, usize),
}

impl Turns {
    /// Waits for the program.
    pub(crate) fn accept(service: &HostService) -> Self {
        let peer = service.accept();
        let stream = peer.stream().try_clone().expect("a duplicate");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        Self { peer, lines: BufReader::new(stream), held: Vec::new(), seed: 0, bad: (0, 0) }
    }

    /// Hands out buffers beside those that are held; both sides read and write all of them.
    #[track_caller]
    pub(crate) fn take(&mut self, buffers: Vec<Buffer>) {
        let before = self.held.len();
        self.held.extend(buffers);
        self.order("take", before);
        self.compare();
    }

    /// Has all that are held read and written anew.
    #[track_caller]
    pub(crate) fn check(&mut self) {
        self.order("check", self.held.len());
        self.compare();
    }

    /// Asks for a round and does not wait for the answer. Descriptors go along of what is held from this place on.
    pub(crate) fn order(&mut self, order: &str, from: usize) {
        self.seed += 1;
        for (index, buffer) in self.held.iter().enumerate() {
            buffer.write(self.seed, index);
        }
        let files: Vec<_> = self.held[from..].iter().map(|buffer| buffer.file.as_fd()).collect();
        self.peer.send(format!("{order} {}\n", self.seed).as_bytes(), &files);
    }

    /// Waits for a round's answer, and looks at what the guest has written.
    #[track_caller]
    pub(crate) fn compare(&mut self) {
        let answer = self.answer();
        let words =
            answer.strip_prefix(&format!("done {} ", self.held.len())).and_then(|bad| bad.parse::<usize>().ok());
        self.bad.0 += words.unwrap_or_else(|| panic!("{answer:?} with {} buffers", self.held.len()));
        self.bad.1 += self.held.iter().enumerate().map(|(index, held)| held.wrong(self.seed, index)).sum::<usize>();
    }

    /// Has all closed; answers with them.
    #[track_caller]
    pub(crate) fn release(&mut self) -> Vec<Buffer> {
        self.peer.send(b"drop\n", &[]);
        assert_eq!(self.answer(), "done 0 0");
        std::mem::take(&mut self.held)
    }

    /// Lets the program end.
    pub(crate) fn quit(self) -> (usize, usize) {
        self.peer.send(b"quit\n", &[]);
        self.bad
    }

    #[track_caller]
    fn answer(&mut self) -> String {
        let mut answer = String::new();
        self.lines.read_line(&mut answer).expect("an answer");
        answer.trim_end().to_owned()
    }
}
