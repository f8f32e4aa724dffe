//! The host's end of a conversation with `lab-guest buffers`: a service that hands out its buffers and says what is to be
//! done with them.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use virtio_gpu_uring::testing::HostService;

/// A guest's program that has these buffers.
pub(crate) struct Served(BufReader<UnixStream>);

impl Served {
    /// Waits for the program, and hands it the buffers.
    pub(crate) fn accept(service: &HostService, buffers: &[BorrowedFd<'_>]) -> Self {
        let peer = service.accept();
        peer.send(b"buffers\n", buffers);
        Self(BufReader::new(peer.stream().try_clone().expect("a duplicate")))
    }

    /// Has the program do something.
    pub(crate) fn tell(&self, order: &str) {
        self.0.get_ref().write_all(format!("{order}\n").as_bytes()).expect("a guest that listens");
    }

    /// Has it do something that it answers to, and answers with its answer.
    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("an answer");
        answer.trim_end().to_owned()
    }

    /// Has it read the whole of a buffer; it must see these bytes.
    #[track_caller]
    pub(crate) fn expect(&mut self, index: usize, bytes: &[u8], what: &str) {
        assert_eq!(self.ask(&format!("hash {index}")), format!("hash {index} {:016x}", hash(bytes)), "{what}");
    }

    /// Has it fill a buffer.
    #[track_caller]
    pub(crate) fn fill(&mut self, index: usize, byte: u8) {
        assert_eq!(self.ask(&format!("fill {index} {byte}")), format!("filled {index}"));
    }
}

/// FNV-1a, 64 bit.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
