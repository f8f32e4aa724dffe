/* What a picture must be, computed here, and how it is drawn, by GL. */
#include "picture.h"

#include <GLES3/gl3.h>
#include <stdio.h>
#include <stdlib.h>

#define TILE 32u

/* How a tile comes about. */
enum kind { BACKGROUND, CLEARED, FLAT, TEXTURED, GRADIENT, TRIANGLE, ADDED, HIDDEN, KINDS };

struct vertex {
    float x, y, z;
    uint8_t colour[4];
};

static GLuint flat, textured, gradient;

static const char *const VERTEX_SHADER =
    "#version 300 es\n"
    "uniform vec2 size;\n"
    "layout(location = 0) in vec3 place;\n"
    "layout(location = 1) in vec4 colour;\n"
    "flat out vec4 own;\n"
    "out highp vec2 tile;\n"
    "void main() {\n"
    "    gl_Position = vec4(place.xy / size * 2.0 - 1.0, place.z, 1.0);\n"
    "    own = colour;\n"
    "    tile = place.xy / 32.0;\n"
    "}\n";

#define FRAGMENT_SHADER(body) \
    "#version 300 es\n" \
    "precision highp float;\n" \
    "uniform highp sampler2D texels;\n" \
    "flat in vec4 own;\n" \
    "in highp vec2 tile;\n" \
    "out vec4 pixel;\n" \
    "void main() { " body " }\n"

/* ---- What must be ---- */

static uint32_t colour(uint32_t seed, uint32_t i, uint32_t j) {
    uint32_t mixed = i * 0x9e3779b1u ^ j * 0x85ebca6bu ^ seed * 0xc2b2ae35u;
    mixed = (mixed ^ mixed >> 15) * 0x2c1b3c6du;
    return (mixed ^ mixed >> 13) & 0xffffff;
}

static uint32_t background(uint32_t seed) { return colour(seed, 999, 999); }
static uint32_t other(uint32_t seed, uint32_t i, uint32_t j) { return colour(seed, i + 500, j); }
static uint32_t texel(uint32_t seed, uint32_t x, uint32_t y) { return colour(seed, x, y + 500); }
static enum kind kind_of(uint32_t seed, uint32_t i, uint32_t j) { return (i + 3 * j + seed) % KINDS; }

static uint32_t sum(uint32_t one, uint32_t two) {
    uint32_t word = 0;
    for (int shift = 0; shift < 24; shift += 8) {
        uint32_t channel = (one >> shift & 255) + (two >> shift & 255);
        word |= (channel > 255 ? 255 : channel) << shift;
    }
    return word;
}

uint32_t expected(uint32_t seed, uint32_t x, uint32_t y) {
    uint32_t i = x / TILE, j = y / TILE, own = colour(seed, i, j);
    switch (kind_of(seed, i, j)) {
    case TEXTURED:
        return texel(seed, x % TILE, y % TILE);
    case GRADIENT:
        return (x & 255) << 16 | (y & 255) << 8 | ((x + y) & 255);
    case TRIANGLE:
        return x % TILE + y % TILE < TILE - 1 ? own : background(seed);
    case ADDED:
        return sum(own, other(seed, i, j));
    case BACKGROUND:
        return background(seed);
    default:
        return own;
    }
}

uint32_t count_wrong(const uint8_t *pixels, struct size size, uint32_t seed, bool flipped) {
    uint32_t wrong = 0;
    for (uint32_t y = 0; y < size.height; y++) {
        for (uint32_t x = 0; x < size.width; x++) {
            const uint8_t *at = pixels + 4 * ((size_t)y * size.width + x);
            uint32_t shown = (uint32_t)at[0] << 16 | at[1] << 8 | at[2];
            uint32_t right = expected(seed, x, flipped ? size.height - 1 - y : y);
            if (shown == right && at[3] == 255)
                continue;
            if (wrong++ < 4)
                printf("virgl-client: wrong pixel at %u,%u: %06x with alpha %u, not %06x\n", x, y, shown, at[3], right);
        }
    }
    return wrong;
}

uint64_t hash_of(const uint8_t *pixels, struct size size) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t at = 0; at < (size_t)size.width * size.height; at++) {
        const uint8_t word[4] = {pixels[4 * at + 2], pixels[4 * at + 1], pixels[4 * at], 0};
        for (int byte = 0; byte < 4; byte++)
            hash = (hash ^ word[byte]) * 0x100000001b3u;
    }
    return hash;
}

/* ---- How it is drawn ---- */

void expect_no_error(const char *what) {
    static char number[16];
    GLenum error = glGetError();
    snprintf(number, sizeof number, "GL error %x", error);
    if (error != GL_NO_ERROR)
        fail(what, number);
}

static GLuint compile(GLenum kind, const char *source) {
    static char log[1024];
    GLint good;
    GLuint shader = glCreateShader(kind);
    glShaderSource(shader, 1, &source, NULL);
    glCompileShader(shader);
    glGetShaderiv(shader, GL_COMPILE_STATUS, &good);
    glGetShaderInfoLog(shader, sizeof log, NULL, log);
    if (!good)
        fail("compiling a shader", log);
    return shader;
}

static GLuint link_program(const char *fragments) {
    static char log[1024];
    GLint good;
    GLuint program = glCreateProgram();
    glAttachShader(program, compile(GL_VERTEX_SHADER, VERTEX_SHADER));
    glAttachShader(program, compile(GL_FRAGMENT_SHADER, fragments));
    glLinkProgram(program);
    glGetProgramiv(program, GL_LINK_STATUS, &good);
    glGetProgramInfoLog(program, sizeof log, NULL, log);
    if (!good)
        fail("linking a program", log);
    return program;
}

static void upload_texture(uint32_t seed) {
    uint8_t texels[TILE * TILE][4];
    for (uint32_t at = 0; at < TILE * TILE; at++) {
        uint32_t word = texel(seed, at % TILE, at / TILE);
        texels[at][0] = word >> 16, texels[at][1] = word >> 8, texels[at][2] = word, texels[at][3] = 255;
    }
    glTexSubImage2D(GL_TEXTURE_2D, 0, 0, 0, TILE, TILE, GL_RGBA, GL_UNSIGNED_BYTE, texels);
}

void prepare_drawing(void) {
    GLuint buffer, texture;
    flat = link_program(FRAGMENT_SHADER("pixel = own;"));
    textured = link_program(FRAGMENT_SHADER("pixel = texture(texels, tile);"));
    gradient = link_program(FRAGMENT_SHADER("vec2 at = floor(gl_FragCoord.xy);"
                                            "pixel = vec4(mod(vec3(at, at.x + at.y), 256.0) / 255.0, 1.0);"));
    glGenTextures(1, &texture);
    glBindTexture(GL_TEXTURE_2D, texture);
    glTexStorage2D(GL_TEXTURE_2D, 1, GL_RGBA8, TILE, TILE);
    glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_MIN_FILTER, GL_NEAREST);
    glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_MAG_FILTER, GL_NEAREST);
    glGenBuffers(1, &buffer);
    glBindBuffer(GL_ARRAY_BUFFER, buffer);
    glVertexAttribPointer(0, 3, GL_FLOAT, GL_FALSE, sizeof(struct vertex), NULL);
    glVertexAttribPointer(1, 4, GL_UNSIGNED_BYTE, GL_TRUE, sizeof(struct vertex), (const void *)12);
    glEnableVertexAttribArray(0);
    glEnableVertexAttribArray(1);
    expect_no_error("preparing");
}

/* The corner of a tile, or a point between, as a vertex. */
static struct vertex corner(uint32_t i, uint32_t j, float x, float y, float z, uint32_t word) {
    return (struct vertex){i * TILE + x, j * TILE + y, z, {word >> 16, word >> 8, word, 255}};
}

/* Two triangles that fill a tile, or one, whose long side goes between the pixels' centres. */
static size_t add_tile(struct vertex *to, uint32_t i, uint32_t j, float side, float z, uint32_t word) {
    to[0] = corner(i, j, 0, 0, z, word);
    to[1] = corner(i, j, side, 0, z, word);
    to[2] = corner(i, j, 0, side, z, word);
    if (side != TILE)
        return 3;
    to[3] = to[2];
    to[4] = to[1];
    to[5] = corner(i, j, side, side, z, word);
    return 6;
}

/* Draws all tiles of a kind at once; those of `others` in their other colour. */
static void draw_tiles(struct size size, uint32_t seed, enum kind kind, GLuint program, float z, bool others) {
    uint32_t columns = (size.width + TILE - 1) / TILE, rows = (size.height + TILE - 1) / TILE;
    struct vertex *vertices = malloc(sizeof *vertices * 6 * columns * rows);
    size_t count = 0;
    if (!vertices)
        fail("drawing", "out of memory");
    for (uint32_t j = 0; j < rows; j++) {
        for (uint32_t i = 0; i < columns; i++) {
            uint32_t word = others ? other(seed, i, j) : colour(seed, i, j);
            if (kind_of(seed, i, j) == kind)
                count += add_tile(vertices + count, i, j, kind == TRIANGLE ? TILE - 0.5f : TILE, z, word);
        }
    }
    glBufferData(GL_ARRAY_BUFFER, sizeof *vertices * count, vertices, GL_STREAM_DRAW);
    free(vertices);
    glUseProgram(program);
    glUniform2f(glGetUniformLocation(program, "size"), size.width, size.height);
    glDrawArrays(GL_TRIANGLES, 0, count);
}

static void clear_to(uint32_t word, GLbitfield what) {
    glClearColor((word >> 16) / 255.0f, (word >> 8 & 255) / 255.0f, (word & 255) / 255.0f, 1);
    glClear(what);
}

static void clear_tiles(struct size size, uint32_t seed) {
    glEnable(GL_SCISSOR_TEST);
    for (uint32_t j = 0; j * TILE < size.height; j++) {
        for (uint32_t i = 0; i * TILE < size.width; i++) {
            if (kind_of(seed, i, j) != CLEARED)
                continue;
            glScissor(i * TILE, j * TILE, TILE, TILE);
            clear_to(colour(seed, i, j), GL_COLOR_BUFFER_BIT);
        }
    }
    glDisable(GL_SCISSOR_TEST);
}

void draw_picture(struct size size, uint32_t seed) {
    glViewport(0, 0, size.width, size.height);
    clear_to(background(seed), GL_COLOR_BUFFER_BIT | GL_DEPTH_BUFFER_BIT);
    clear_tiles(size, seed);
    upload_texture(seed);
    draw_tiles(size, seed, FLAT, flat, 0, false);
    draw_tiles(size, seed, TEXTURED, textured, 0, false);
    draw_tiles(size, seed, GRADIENT, gradient, 0, false);
    draw_tiles(size, seed, TRIANGLE, flat, 0, false);

    draw_tiles(size, seed, ADDED, flat, 0, false);
    glEnable(GL_BLEND);
    glBlendFunc(GL_ONE, GL_ONE);
    draw_tiles(size, seed, ADDED, flat, 0, true);
    glDisable(GL_BLEND);

    glEnable(GL_DEPTH_TEST);
    draw_tiles(size, seed, HIDDEN, flat, -0.5f, false);
    draw_tiles(size, seed, HIDDEN, flat, 0.5f, true);
    glDisable(GL_DEPTH_TEST);
    expect_no_error("drawing");
}
