//! Guests of QEMU whose virtio-gpu is `virtio-gpu-uring serve`: Debian's QEMUs and its kernel, nothing in between. QEMU 10.0 and
//! 11.1 show what a guest draws; 11.1 maps the host's buffers for a guest, too. `tests/qemu/prepare` makes all that is needed.
#![cfg(target_arch = "x86_64")]

mod blobs;
mod daemon;
mod displays;
mod endings;
mod host;
mod machine;
mod picture;
mod qmp;

/// The guest program's pictures and words, as it computes them itself.
#[expect(dead_code, reason = "nobody sees a cursor beside QEMU")]
#[path = "../lab/guest/src/pattern.rs"]
mod pattern;
#[path = "../lab/guest/src/words.rs"]
mod word;
