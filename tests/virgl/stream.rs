//! virgl's command streams as a guest's Mesa writes them: 32-bit words, each command one word of header and its arguments.
//! The numbers are the public protocol's (`virgl_protocol.h`, and Mesa's `p_defines.h` for what they describe).

/// Commands.
mod command {
    pub(super) const CREATE_OBJECT: u32 = 1;
    pub(super) const BIND_OBJECT: u32 = 2;
    pub(super) const SET_VIEWPORT_STATE: u32 = 4;
    pub(super) const SET_FRAMEBUFFER_STATE: u32 = 5;
    pub(super) const SET_VERTEX_BUFFERS: u32 = 6;
    pub(super) const CLEAR: u32 = 7;
    pub(super) const DRAW_VBO: u32 = 8;
    pub(super) const RESOURCE_INLINE_WRITE: u32 = 9;
    pub(super) const RESOURCE_COPY_REGION: u32 = 17;
    pub(super) const BIND_SHADER: u32 = 31;
    pub(super) const PIPE_RESOURCE_CREATE: u32 = 48;
}

/// Objects of a context.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Object {
    Blend = 1,
    Rasterizer = 2,
    DepthStencilAlpha = 3,
    Shader = 4,
    VertexElements = 5,
    Surface = 8,
}

/// Stages of a pipeline.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    Vertex = 0,
    Fragment = 1,
}

/// Kinds of resources.
pub(crate) mod target {
    pub(crate) const BUFFER: u32 = 0;
    pub(crate) const TEXTURE_2D: u32 = 2;
}

/// Formats of pixels and vertices. The first two are the wire's as well.
pub(crate) mod format {
    pub(crate) const B8G8R8A8: u32 = 1;
    pub(crate) const B8G8R8X8: u32 = 2;
    pub(crate) const R32G32B32A32_FLOAT: u32 = 31;
    pub(crate) const R8: u32 = 64;
    pub(crate) const R8G8B8A8: u32 = 67;
}

/// What a resource is for.
pub(crate) mod bind {
    pub(crate) const RENDER_TARGET: u32 = 1 << 1;
    pub(crate) const SAMPLER_VIEW: u32 = 1 << 3;
    pub(crate) const VERTEX_BUFFER: u32 = 1 << 4;
    /// Of queries' answers.
    pub(crate) const CUSTOM: u32 = 1 << 17;
}

/// Part of a texture or buffer: first column, row and layer, and how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    pub(crate) origin: [u32; 3],
    pub(crate) size: [u32; 3],
}

impl Region {
    /// Of the first layer: x, y, width, height.
    pub(crate) fn flat([x, y, width, height]: [u32; 4]) -> Self {
        Self { origin: [x, y, 0], size: [width, height, 1] }
    }
}

/// A corner of a triangle: where it is, from -1 to 1, and its colour.
pub(crate) type Vertex = ([f32; 2], [f32; 4]);

/// How long a vertex is in a buffer: two vectors of four.
pub(crate) const VERTEX_LEN: u32 = 32;

const VERTEX_SHADER: &str = "VERT
DCL IN[0]
DCL IN[1]
DCL OUT[0], POSITION
DCL OUT[1], COLOR
  0: MOV OUT[1], IN[1]
  1: MOV OUT[0], IN[0]
  2: END
";

const FRAGMENT_SHADER: &str = "FRAG
DCL IN[0], COLOR, CONSTANT
DCL OUT[0], COLOR
  0: MOV OUT[0], IN[0]
  1: END
";

/// Commands in a row.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stream {
    words: Vec<u32>,
}

impl Stream {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A command with any numbers, right or wrong.
    pub(crate) fn command(mut self, command: u32, object: u32, arguments: &[u32]) -> Self {
        self.words.push(command | object << 8 | (arguments.len() as u32) << 16);
        self.words.extend(arguments);
        self
    }

    /// Words that need not be a command.
    pub(crate) fn raw(mut self, words: &[u32]) -> Self {
        self.words.extend(words);
        self
    }

    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    pub(crate) fn create(self, object: Object, handle: u32, arguments: &[u32]) -> Self {
        self.command(command::CREATE_OBJECT, object as u32, &[&[handle], arguments].concat())
    }

    pub(crate) fn bind(self, object: Object, handle: u32) -> Self {
        self.command(command::BIND_OBJECT, object as u32, &[handle])
    }

    /// A surface to draw on: the first level and layer of a texture.
    pub(crate) fn surface(self, handle: u32, resource: u32, format: u32) -> Self {
        self.create(Object::Surface, handle, &[resource, format, 0, 0])
    }

    /// Draws on this surface from now on.
    pub(crate) fn framebuffer(self, surface: u32) -> Self {
        self.command(command::SET_FRAMEBUFFER_STATE, 0, &[1, 0, surface])
    }

    /// Fills the surface: red, green, blue, alpha.
    pub(crate) fn clear(self, colour: [f32; 4]) -> Self {
        let [red, green, blue, alpha] = colour.map(f32::to_bits);
        self.command(command::CLEAR, 0, &[1 << 2, red, green, blue, alpha, 0, 0, 0])
    }

    /// A shader as TGSI text.
    pub(crate) fn shader(self, handle: u32, stage: Stage, text: &str) -> Self {
        let mut bytes = [text.as_bytes(), &[0]].concat();
        let len = bytes.len() as u32;
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let text = bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let arguments: Vec<u32> = [stage as u32, len, 300, 0].into_iter().chain(text).collect();
        self.create(Object::Shader, handle, &arguments)
    }

    pub(crate) fn bind_shader(self, handle: u32, stage: Stage) -> Self {
        self.command(command::BIND_SHADER, 0, &[handle, stage as u32])
    }

    /// Everything that drawing takes but for the surface and the vertices, on a picture of this size; made as objects from
    /// `first` on.
    pub(crate) fn pipeline(self, first: u32, width: u32, height: u32) -> Self {
        let one = 1f32.to_bits();
        let [blend, depth, raster, vertex, fragment, elements] = [0, 1, 2, 3, 4, 5].map(|number| first + number);
        let all_channels = 0xf << 27;
        let (half_width, half_height, half) = (width as f32 / 2.0, height as f32 / 2.0, 0.5);
        let viewport = [half_width, half_height, half, half_width, half_height, half].map(f32::to_bits);
        self.create(Object::Blend, blend, &[0, 0, all_channels, 0, 0, 0, 0, 0, 0, 0])
            .bind(Object::Blend, blend)
            .create(Object::DepthStencilAlpha, depth, &[0; 4])
            .bind(Object::DepthStencilAlpha, depth)
            // Clipped by depth; the middle of a pixel decides.
            .create(Object::Rasterizer, raster, &[1 << 1 | 1 << 29, one, 0, 0, one, 0, 0, 0])
            .bind(Object::Rasterizer, raster)
            .shader(vertex, Stage::Vertex, VERTEX_SHADER)
            .bind_shader(vertex, Stage::Vertex)
            .shader(fragment, Stage::Fragment, FRAGMENT_SHADER)
            .bind_shader(fragment, Stage::Fragment)
            // Offset, divisor, buffer, format of each of the two vectors.
            .create(
                Object::VertexElements,
                elements,
                &[0, 0, 0, format::R32G32B32A32_FLOAT, VERTEX_LEN / 2, 0, 0, format::R32G32B32A32_FLOAT],
            )
            .bind(Object::VertexElements, elements)
            .command(command::SET_VIEWPORT_STATE, 0, &[&[0], &viewport[..]].concat())
    }

    /// Writes vertices into a buffer by the stream itself.
    pub(crate) fn write_vertices(self, buffer: u32, vertices: &[Vertex]) -> Self {
        let vector = |(place, colour): &Vertex| [[place[0], place[1], 0.0, 1.0], *colour];
        let words: Vec<u32> = vertices.iter().flat_map(vector).flatten().map(f32::to_bits).collect();
        self.inline_write(buffer, 0, Region::flat([0, 0, words.len() as u32 * 4, 1]), &words)
    }

    /// Writes into a resource what follows in the stream; `stride` is in bytes.
    pub(crate) fn inline_write(self, resource: u32, stride: u32, region: Region, data: &[u32]) -> Self {
        let ([x, y, z], [width, height, depth]) = (region.origin, region.size);
        let head = [resource, 0, 0, stride, 0, x, y, z, width, height, depth];
        self.command(command::RESOURCE_INLINE_WRITE, 0, &[&head, data].concat())
    }

    /// Draws triangles of a buffer's first `count` vertices.
    pub(crate) fn triangles(self, buffer: u32, count: u32) -> Self {
        self.command(command::SET_VERTEX_BUFFERS, 0, &[VERTEX_LEN, 0, buffer]).command(
            command::DRAW_VBO,
            0,
            &[0, count, 4, 0, 1, 0, 0, 0, 0, 0, count.wrapping_sub(1), 0],
        )
    }

    /// Copies a part of one texture to a place in another.
    pub(crate) fn copy(self, to: u32, [x, y]: [u32; 2], from: u32, part: Region) -> Self {
        let ([from_x, from_y, from_z], [width, height, depth]) = (part.origin, part.size);
        let arguments = [to, 0, x, y, 0, from, 0, from_x, from_y, from_z, width, height, depth];
        self.command(command::RESOURCE_COPY_REGION, 0, &arguments)
    }

    /// Makes a buffer that a blob can be made of, and that is mapped for as long as it lives.
    pub(crate) fn blob_buffer(self, blob_id: u32, len: u32) -> Self {
        let persistent_and_coherent = 1 << 1 | 1 << 2;
        let usage = bind::VERTEX_BUFFER;
        let arguments = [target::BUFFER, format::R8, usage, len, 1, 1, 1, 0, 0, persistent_and_coherent, blob_id];
        self.command(command::PIPE_RESOURCE_CREATE, 0, &arguments)
    }
}
