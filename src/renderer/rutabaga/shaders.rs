//! Shaders that a guest sends in parts. virglrenderer 1.3 follows a null pointer when one is used before its last part has
//! come, so nothing else is taken in between; Mesa's driver sends nothing else either.
//! The numbers are those of virglrenderer's `virgl_protocol.h`.

/// `VIRGL_CCMD_CREATE_OBJECT` of a `VIRGL_OBJECT_SHADER`: the low half of a command's first word.
const CREATE_SHADER: u32 = 1 | 4 << 8;
/// Where the words of a shader say how long it is, or that this is a later part; and how many outputs it streams.
const LENGTH: usize = 3;
const OUTPUTS: usize = 5;
/// `VIRGL_OBJ_SHADER_OFFSET_CONT`.
const LATER_PART: u32 = 1 << 31;

/// How much of a context's shader has not come yet, in words; 0 where none is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Missing(u32);

impl Missing {
    /// What is missing after this stream; `None` where the stream uses anything before.
    pub(super) fn after(mut self, mut stream: &[u32]) -> Option<Self> {
        while let Some(first) = stream.first() {
            let len = (first >> 16) as usize;
            // One that does not fit is not served, nor is what comes after it.
            let Some((command, rest)) = stream.split_at_checked(len + 1) else { break };
            if first & 0xffff == CREATE_SHADER {
                self = self.after_part(command);
            } else if self != Self::default() {
                return None;
            }
            stream = rest;
        }
        Some(self)
    }

    fn after_part(self, command: &[u32]) -> Self {
        let (Some(length), Some(outputs)) = (command.get(LENGTH), command.get(OUTPUTS)) else { return self };
        let head = 6 + if *outputs == 0 { 0 } else { (*outputs as usize).saturating_mul(2).saturating_add(4) };
        let sent = command.len().saturating_sub(head) as u32;
        let all = if length & LATER_PART != 0 { self.0 } else { length.div_ceil(4) };
        Self(all.saturating_sub(sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part of `words` words.
    fn part(length: u32, words: usize) -> Vec<u32> {
        let mut part = vec![CREATE_SHADER | (5 + words as u32) << 16, 7, 0, length, 300, 0];
        part.resize(6 + words, 0x2020_2020);
        part
    }

    fn after(missing: u32, parts: &[Vec<u32>]) -> Option<u32> {
        Missing(missing).after(&parts.concat()).map(|missing| missing.0)
    }

    #[test]
    fn nothing_is_ever_let_through_between_the_parts_of_a_shader() {
        let draw = vec![8 | 2 << 16, 0, 0];
        assert_eq!(after(0, &[part(38, 10), draw.clone()]), Some(0));
        assert_eq!(after(0, &[part(41, 10), draw.clone()]), None);
        assert_eq!(after(0, &[part(80, 10)]), Some(10));
        assert_eq!(after(10, std::slice::from_ref(&draw)), None);
        assert_eq!(after(10, &[part(40 | LATER_PART, 4)]), Some(6));
        assert_eq!(after(10, &[part(40 | LATER_PART, 4), part(56 | LATER_PART, 6), draw.clone()]), Some(0));
        assert_eq!(after(10, &[part(40 | LATER_PART, 9), draw]), None);
    }

    #[test]
    fn a_stream_that_ends_in_a_command_is_never_read_past_its_end() {
        for cut in 0..16 {
            let whole = part(40, 10);
            assert_eq!(after(0, &[whole[..cut.min(whole.len() - 1)].to_vec()]), Some(0));
        }
        assert_eq!(after(0, &[vec![CREATE_SHADER]]), Some(0));
        let outputs = [CREATE_SHADER | 5 << 16, 7, 0, u32::MAX >> 1, 0, u32::MAX];
        assert_eq!(after(0, &[outputs.to_vec()]), Some((u32::MAX >> 1).div_ceil(4)));
    }
}
