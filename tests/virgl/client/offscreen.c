/* Pictures without a display: drawn, read back in each way that GL has for it, and compared. */
#include "picture.h"

#include <EGL/egl.h>
#include <EGL/eglext.h>
#include <GLES3/gl3.h>
#include <GLES2/gl2ext.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LONG_WAIT 60000000000ull /* ns */

static GLuint framebuffer(struct size size) {
    GLuint name, buffers[2];
    glGenFramebuffers(1, &name);
    glBindFramebuffer(GL_FRAMEBUFFER, name);
    glGenRenderbuffers(2, buffers);
    glBindRenderbuffer(GL_RENDERBUFFER, buffers[0]);
    glRenderbufferStorage(GL_RENDERBUFFER, GL_RGBA8, size.width, size.height);
    glFramebufferRenderbuffer(GL_FRAMEBUFFER, GL_COLOR_ATTACHMENT0, GL_RENDERBUFFER, buffers[0]);
    glBindRenderbuffer(GL_RENDERBUFFER, buffers[1]);
    glRenderbufferStorage(GL_RENDERBUFFER, GL_DEPTH_COMPONENT16, size.width, size.height);
    glFramebufferRenderbuffer(GL_FRAMEBUFFER, GL_DEPTH_ATTACHMENT, GL_RENDERBUFFER, buffers[1]);
    if (glCheckFramebufferStatus(GL_FRAMEBUFFER) != GL_FRAMEBUFFER_COMPLETE)
        fail("a framebuffer", "it is not complete");
    return name;
}

/* Says how a picture came out, which ends the program where it is wrong. */
static void judge(const char *way, const uint8_t *pixels, struct size size, uint32_t seed, bool flipped) {
    uint32_t wrong = count_wrong(pixels, size, seed, flipped);
    printf("virgl-client: %s %s seed=%u size=%ux%u wrong=%u hash=%016llx\n", wrong ? "WRONG" : "ok", way, seed, size.width,
           size.height, wrong, (unsigned long long)hash_of(pixels, size));
    if (wrong)
        exit(1);
}

static void wait_for_fence(void) {
    GLsync fence = glFenceSync(GL_SYNC_GPU_COMMANDS_COMPLETE, 0);
    GLenum answer = glClientWaitSync(fence, GL_SYNC_FLUSH_COMMANDS_BIT, LONG_WAIT);
    if (answer != GL_ALREADY_SIGNALED && answer != GL_CONDITION_SATISFIED)
        fail("a fence", "it was not signalled");
    glDeleteSync(fence);
}

static void read_pixels(struct size size, uint32_t seed, uint8_t *pixels) {
    glReadPixels(0, 0, size.width, size.height, GL_RGBA, GL_UNSIGNED_BYTE, pixels);
    judge("read", pixels, size, seed, false);
}

/* The GPU writes the pixels into a buffer, which is mapped when a fence says so. */
static void read_by_buffer(struct size size, uint32_t seed) {
    GLuint buffer;
    size_t len = 4ul * size.width * size.height;
    glGenBuffers(1, &buffer);
    glBindBuffer(GL_PIXEL_PACK_BUFFER, buffer);
    glBufferData(GL_PIXEL_PACK_BUFFER, len, NULL, GL_STREAM_READ);
    glReadPixels(0, 0, size.width, size.height, GL_RGBA, GL_UNSIGNED_BYTE, NULL);
    wait_for_fence();
    const uint8_t *pixels = glMapBufferRange(GL_PIXEL_PACK_BUFFER, 0, len, GL_MAP_READ_BIT);
    if (!pixels)
        fail("mapping a buffer", "it was refused");
    judge("buffer", pixels, size, seed, false);
    glUnmapBuffer(GL_PIXEL_PACK_BUFFER);
    glBindBuffer(GL_PIXEL_PACK_BUFFER, 0);
    glDeleteBuffers(1, &buffer);
}

/* A second framebuffer gets the picture upside down. */
static void read_by_blit(GLuint from, GLuint to, struct size size, uint32_t seed, uint8_t *pixels) {
    GLint width = size.width, height = size.height;
    glBindFramebuffer(GL_DRAW_FRAMEBUFFER, to);
    glBlitFramebuffer(0, 0, width, height, 0, height, width, 0, GL_COLOR_BUFFER_BIT, GL_NEAREST);
    glBindFramebuffer(GL_READ_FRAMEBUFFER, to);
    glReadPixels(0, 0, width, height, GL_RGBA, GL_UNSIGNED_BYTE, pixels);
    glBindFramebuffer(GL_FRAMEBUFFER, from);
    judge("blit", pixels, size, seed, true);
}

/*
 * A buffer that program and GPU have mapped at the same time, where the renderer has such: in a guest, host memory in the device's
 * window. What is written to it here is copied by the GPU into another that is read back through its mapping.
 */
static void share_memory(void) {
    enum { WORDS = 1 << 18 };
    const GLbitfield both = GL_MAP_PERSISTENT_BIT_EXT | GL_MAP_COHERENT_BIT_EXT;
    const GLenum targets[2] = {GL_COPY_READ_BUFFER, GL_COPY_WRITE_BUFFER};
    const GLbitfield ways[2] = {GL_MAP_WRITE_BIT, GL_MAP_READ_BIT};
    PFNGLBUFFERSTORAGEEXTPROC storage = (PFNGLBUFFERSTORAGEEXTPROC)eglGetProcAddress("glBufferStorageEXT");
    uint32_t *words[2], wrong = 0;
    GLuint buffers[2];
    if (!strstr((const char *)glGetString(GL_EXTENSIONS), "GL_EXT_buffer_storage") || !storage) {
        printf("virgl-client: no shared memory: no GL_EXT_buffer_storage\n");
        return;
    }
    glGenBuffers(2, buffers);
    for (int at = 0; at < 2; at++) {
        glBindBuffer(targets[at], buffers[at]);
        storage(targets[at], 4 * WORDS, NULL, ways[at] | both);
        words[at] = glMapBufferRange(targets[at], 0, 4 * WORDS, ways[at] | both);
        if (!words[at])
            fail("mapping shared memory", "it was refused");
    }
    for (uint32_t round = 1; round <= 3; round++) {
        for (uint32_t at = 0; at < WORDS; at++)
            words[0][at] = at * 0x9e3779b1u ^ round;
        glCopyBufferSubData(targets[0], targets[1], 0, 0, 4 * WORDS);
        wait_for_fence();
        for (uint32_t at = 0; at < WORDS; at++)
            wrong += words[1][at] != (at * 0x9e3779b1u ^ round);
    }
    glDeleteBuffers(2, buffers);
    expect_no_error("shared memory");
    printf("virgl-client: %s shared rounds=3 bytes=%d wrong=%u\n", wrong ? "WRONG" : "ok", 4 * WORDS, wrong);
    if (wrong)
        exit(1);
}

static void make_current(void) {
    static const EGLint wanted[] = {EGL_SURFACE_TYPE, 0, EGL_RENDERABLE_TYPE, EGL_OPENGL_ES3_BIT, EGL_NONE};
    static const EGLint version[] = {EGL_CONTEXT_MAJOR_VERSION, 3, EGL_NONE};
    EGLConfig config;
    EGLint count;
    EGLDisplay display = eglGetPlatformDisplay(EGL_PLATFORM_SURFACELESS_MESA, EGL_DEFAULT_DISPLAY, NULL);
    if (!eglInitialize(display, NULL, NULL))
        fail("EGL", "no surfaceless display");
    eglBindAPI(EGL_OPENGL_ES_API);
    if (!eglChooseConfig(display, wanted, &config, 1, &count) || count < 1)
        fail("EGL", "no configuration");
    EGLContext context = eglCreateContext(display, config, EGL_NO_CONTEXT, version);
    if (!eglMakeCurrent(display, EGL_NO_SURFACE, EGL_NO_SURFACE, context))
        fail("EGL", "no context of GLES 3");
}

void draw_offscreen(struct size size, uint32_t frames) {
    uint8_t *pixels = malloc(4ul * size.width * size.height);
    if (!pixels)
        fail("drawing", "out of memory");
    make_current();
    printf("virgl-client: renderer %s, %s\n", glGetString(GL_RENDERER), glGetString(GL_VERSION));
    GLuint second = framebuffer(size), first = framebuffer(size);
    prepare_drawing();
    for (uint32_t seed = 1; seed <= frames; seed++) {
        draw_picture(size, seed);
        read_pixels(size, seed, pixels);
        read_by_buffer(size, seed);
        read_by_blit(first, second, size, seed, pixels);
    }
    share_memory();
}
