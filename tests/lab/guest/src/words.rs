//! What the words of a buffer are that host and guest write by turns. The tests on the host compute the same.

/// The host's word at `offset`, in bytes, of a buffer in the round `seed`; the guest writes its complement there. No two words of
/// buffers of up to 64 MiB in 1,000 rounds are alike, and none is zero.
pub(crate) fn word(seed: u32, buffer: usize, offset: usize) -> u64 {
    u64::from(seed + 1) << 36 | (buffer as u64) << 28 | offset as u64
}
