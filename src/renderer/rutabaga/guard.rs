//! What keeps OpenGL streams from virglrenderer 1.3 that are known to bring it, and the VMM, down: a shader that is used before its
//! last part has come, or whose head counts outputs that are not there; and a question that only a GPU's driver can answer.
//! Mesa's driver sends none of them. The numbers are those of `virgl_protocol.h` and of Mesa's `p_defines.h`.

/// `VIRGL_CCMD_CREATE_OBJECT` of a `VIRGL_OBJECT_SHADER`: the low half of a command's first word.
const CREATE_SHADER: u32 = 1 | 4 << 8;
/// `VIRGL_CCMD_GET_PIPE_RESOURCE_LAYOUT`.
const GET_LAYOUT: u32 = 63;
/// `VIRGL_CCMD_NOP`, `TRANSFER3D` and `END_TRANSFERS`: what Mesa's driver begins a stream with, also in the middle of a shader.
const BETWEEN: [u32; 3] = [0, 43, 44];
/// `VIRGL_CCMD_SET_SUB_CTX`, which it goes on with.
const SET_SUB_CONTEXT: u32 = 28;
/// `VIRGL_CCMD_CREATE_SUB_CTX` and `DESTROY_SUB_CTX`: each may change which one is current.
const SUB_CONTEXTS: [u32; 2] = [29, 30];
/// `VIRGL_OBJ_SHADER_OFFSET_CONT`.
const LATER_PART: u32 = 1 << 31;
/// `PIPE_SHADER_COMPUTE`, whose head has the size of its memory where others count their outputs.
const COMPUTE: u32 = 5;
/// `PIPE_MAX_SO_OUTPUTS`.
const MOST_OUTPUTS: u32 = 64;
/// What the text of a shader begins with, in all its stages.
const STAGES: [&[u8; 4]; 5] = [b"VERT", b"FRAG", b"GEOM", b"TESS", b"COMP"];

/// A shader that has not come whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    handle: u32,
    stage: u32,
    /// Words that are still to come.
    missing: u32,
}

/// What has come of a context's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Guard {
    /// Whether virglrenderer has a GPU.
    gpu: bool,
    /// The shader that is on its way, if there is one.
    shader: Option<Part>,
    /// The current sub-context, where that is known: shaders are on their way in one of them.
    sub_context: Option<u32>,
}

impl Guard {
    pub(super) fn new(gpu: bool) -> Self {
        Self { gpu, shader: None, sub_context: None }
    }

    /// What has come after this stream; `None` where the stream is not to be let through.
    pub(super) fn after(mut self, mut stream: &[u32]) -> Option<Self> {
        while let Some(first) = stream.first() {
            let len = (first >> 16) as usize;
            // One that does not fit is not served, nor is what comes after it.
            let Some((command, rest)) = stream.split_at_checked(len + 1) else { break };
            let kind = first & 0xff;
            match self.shader {
                _ if first & 0xffff == CREATE_SHADER => self = self.after_part(command)?,
                None if kind == SET_SUB_CONTEXT => self.sub_context = command.get(1).copied(),
                None if SUB_CONTEXTS.contains(&kind) => self.sub_context = None,
                None if self.gpu || kind != GET_LAYOUT => {}
                Some(_) if BETWEEN.contains(&kind) => {}
                Some(_) if kind == SET_SUB_CONTEXT && self.sub_context.is_some_and(|id| command[1..] == [id]) => {}
                _ => return None,
            }
            stream = rest;
        }
        Some(self)
    }

    fn after_part(self, command: &[u32]) -> Option<Self> {
        let &[_, handle, stage, length, _, outputs, ref text @ ..] = command else { return None };
        let later = length & LATER_PART != 0;
        let missing = match self.shader {
            Some(part) => (later && (part.handle, part.stage) == (handle, stage)).then_some(part.missing)?,
            // One of which nothing is on its way is refused by virglrenderer.
            None if later => return Some(self),
            None => length.div_ceil(4),
        };
        let outputs = if stage == COMPUTE { 0 } else { outputs };
        let head = match outputs {
            0 => 0,
            1..=MOST_OUTPUTS => 4 + 2 * outputs as usize,
            _ => return None,
        };
        let text = text.get(head..)?;
        let begins = |word: &u32| STAGES.iter().any(|stage| **stage == word.to_le_bytes());
        if !later && !text.first().is_some_and(begins) {
            return None;
        }
        let missing = missing.saturating_sub(text.len() as u32);
        Some(Self { shader: (missing > 0).then_some(Part { handle, stage, missing }), ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAW: [u32; 3] = [8 | 2 << 16, 0, 0];

    /// A part of `words` words of a shader of `length` bytes, or the part from there on.
    fn part(handle: u32, stage: u32, length: u32, words: usize) -> Vec<u32> {
        let mut part = vec![CREATE_SHADER | (5 + words as u32) << 16, handle, stage, length, 300, 0];
        part.resize(6 + words, u32::from_le_bytes(*b"VERT"));
        part
    }

    fn missing(before: Guard, parts: &[&[u32]]) -> Option<u32> {
        let after = before.after(&parts.concat())?;
        Some(after.shader.map_or(0, |part| part.missing))
    }

    #[test]
    fn nothing_is_ever_let_through_between_the_parts_of_a_shader() {
        let none = Guard::default();
        assert_eq!(missing(none, &[&part(7, 0, 38, 10), &DRAW]), Some(0));
        assert_eq!(missing(none, &[&part(7, 0, 41, 10), &DRAW]), None);
        let ten = none.after(&part(7, 0, 80, 10)).expect("the first part");
        assert_eq!(missing(ten, &[]), Some(10));
        assert_eq!(missing(ten, &[&DRAW]), None);
        assert_eq!(missing(ten, &[&part(7, 0, 40 | LATER_PART, 4)]), Some(6));
        let rest = [part(7, 0, 40 | LATER_PART, 4), part(7, 0, 56 | LATER_PART, 6)];
        assert_eq!(missing(ten, &[&rest[0], &rest[1], &DRAW]), Some(0));
        assert_eq!(missing(ten, &[&rest[0], &DRAW]), None);
        // Neither another shader, nor another's part, makes up for it.
        for other in
            [part(8, 1, 40, 10), part(7, 0, 40, 10), part(8, 0, 40 | LATER_PART, 10), part(7, 1, 40 | LATER_PART, 10)]
        {
            assert_eq!(missing(ten, &[&other]), None, "{:?}", &other[..4]);
        }
    }

    #[test]
    fn what_mesa_begins_a_stream_with_never_parts_a_shader_but_another_sub_context_does() {
        let none = Guard::default();
        let (set, create) = (|id: u32| [SET_SUB_CONTEXT | 1 << 16, id], [SUB_CONTEXTS[0] | 1 << 16, 1]);
        let transfers = [43 | 2 << 16, 0, 0, 44 | 1 << 16, 0, 0];
        let first = part(7, 0, 80, 10);
        let last = part(7, 0, 40 | LATER_PART, 10);
        let ten = none.after(&[&create[..], &set(1), &first].concat()).expect("the first part");
        assert_eq!(missing(ten, &[&transfers, &set(1), &last, &DRAW]), Some(0));
        assert_eq!(missing(ten, &[&set(2), &last]), None);
        assert_eq!(missing(ten, &[&create, &last]), None);
        // Which one is current nobody knows after it was made or ended.
        let ten = none.after(&[&set(1)[..], &create, &first].concat()).expect("the first part");
        assert_eq!(missing(ten, &[&set(1), &last]), None);
    }

    #[test]
    fn a_head_that_counts_what_is_not_there_is_never_let_through() {
        let none = Guard::default();
        for outputs in [1, 2, 3, 65, u32::MAX] {
            let mut shader = part(7, 0, 40, 10);
            shader[5] = outputs;
            // Its text begins where the head says that it has not ended.
            shader[7..].fill(u32::from_le_bytes(*b"\nDCL"));
            assert_eq!(missing(none, &[&shader]), None, "{outputs}");
        }
        let mut streaming = part(7, 0, 40, 16);
        streaming[5] = 1;
        assert_eq!(missing(none, &[&streaming, &DRAW]), Some(0));
        let mut compute = part(7, COMPUTE, 40, 10);
        (compute[5], compute[6]) = (1024, u32::from_le_bytes(*b"COMP"));
        assert_eq!(missing(none, &[&compute, &DRAW]), Some(0));
        assert_eq!(missing(none, &[&part(7, 0, 0, 0)]), None, "no text");
    }

    #[test]
    fn nobody_is_ever_asked_for_what_only_a_gpu_knows() {
        let ask = [GET_LAYOUT | 2 << 16, 0, 0];
        assert_eq!(missing(Guard::new(false), &[&DRAW, &ask]), None);
        assert_eq!(missing(Guard::new(true), &[&DRAW, &ask]), Some(0));
    }

    #[test]
    fn a_stream_that_ends_in_a_command_is_never_read_past_its_end() {
        let whole = part(7, 0, 40, 10);
        for cut in 0..whole.len() {
            assert_eq!(missing(Guard::default(), &[&whole[..cut]]), Some(0));
        }
        assert_eq!(missing(Guard::default(), &[&[CREATE_SHADER]]), None);
    }
}
