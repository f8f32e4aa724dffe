//! Whether a guest has seen what the host has: its frames against those of a native client, by number and checksum.

use std::collections::HashSet;

use crate::client::Frame;

/// How many frames a guest takes.
pub(crate) const FRAMES: u32 = 10;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) frames: usize,
    /// Frames that the native client has seen, too, byte for byte.
    pub(crate) equal: usize,
    /// Different pictures.
    pub(crate) distinct: usize,
}

/// # Errors
/// What is wrong with the guest's frames.
pub(crate) fn judge(guest: &[Frame], host: &[Frame]) -> Result<Verdict, String> {
    let known: HashSet<&Frame> = host.iter().collect();
    let sums: HashSet<u64> = guest.iter().map(|frame| frame.sum).collect();
    let equal = guest.iter().filter(|frame| known.contains(frame)).count();
    let verdict = Verdict { frames: guest.len(), equal, distinct: sums.len() };
    let wanted = FRAMES as usize;
    if verdict.frames != wanted || equal + 2 < wanted || verdict.distinct + 1 < wanted {
        let shown = |frames: &[Frame]| frames.iter().take(3).map(|frame| format!("{frame:?} ")).collect::<String>();
        return Err(format!("{verdict:?}; the guest: {}; the host: {}", shown(guest), shown(host)));
    }
    // The pictures have next to no zeros: whole frames of them, or holes, would be the device's.
    match guest.iter().find(|frame| frame.size == 0 || frame.nonzero * 100 < frame.size * 99) {
        Some(frame) => Err(format!("zeros in {frame:?}")),
        None => Ok(verdict),
    }
}

#[test]
fn frames_that_differ_are_not_taken_for_equal() {
    let frame = |seq: i64| Frame { seq, size: 100, nonzero: 99, sum: 7 + seq as u64 };
    let host: Vec<Frame> = (0..30).map(frame).collect();
    let guest = &host[5..15];
    assert_eq!(judge(guest, &host), Ok(Verdict { frames: 10, equal: 10, distinct: 10 }));
    let with = |changes: &[(usize, Frame)]| {
        let mut guest = guest.to_vec();
        changes.iter().for_each(|(at, frame)| guest[*at] = *frame);
        judge(&guest, &host).map(|verdict| (verdict.equal, verdict.distinct))
    };
    // Two pictures may be torn, and one may come twice.
    assert_eq!(with(&[(0, frame(90)), (1, frame(91))]), Ok((8, 10)));
    assert_eq!(with(&[(0, frame(6))]), Ok((10, 9)));
    assert!(with(&[(0, frame(90)), (1, frame(91)), (2, frame(92))]).is_err());
    assert!(with(&[(0, frame(6)), (2, frame(6))]).is_err());
    assert!(with(&[(0, Frame { nonzero: 98, ..frame(90) })]).is_err());
    assert!(with(&[(0, Frame { nonzero: 0, size: 0, ..frame(90) })]).is_err());
    assert!(with(&[0, 1, 2].map(|at| (at, Frame { sum: 3, ..guest[at] }))).is_err());
    assert!(judge(&guest[..9], &host).is_err());
    assert!(judge(&vec![Frame { seq: 0, size: 0, nonzero: 0, sum: 0 }; 10], &host).is_err());
    assert!(judge(guest, &[]).is_err());
}
