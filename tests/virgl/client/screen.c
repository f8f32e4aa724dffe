/*
 * Pictures on a display: the GPU draws into a buffer, the kernel shows it, the first by setting a mode, each other by a flip.
 */
#include "picture.h"

#include <EGL/egl.h>
#include <EGL/eglext.h>
#include <GLES3/gl3.h>
#include <fcntl.h>
#include <gbm.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xf86drm.h>
#include <xf86drmMode.h>

#define LONG_WAIT 60000 /* ms */

struct screen {
    int card;
    uint32_t connector;
    uint32_t crtc;
    drmModeModeInfo mode;
    struct gbm_device *device;
    struct gbm_surface *surface;
    struct gbm_bo *shown;
    EGLDisplay display;
    EGLSurface window;
};

/* The first display that is connected, in the mode that it prefers. */
static void find_display(struct screen *screen) {
    drmModeRes *resources = drmModeGetResources(screen->card);
    if (!resources || resources->count_crtcs < 1)
        fail("a display", "the card has none");
    screen->crtc = resources->crtcs[0];
    for (int at = 0; at < resources->count_connectors && !screen->connector; at++) {
        drmModeConnector *connector = drmModeGetConnector(screen->card, resources->connectors[at]);
        if (connector && connector->connection == DRM_MODE_CONNECTED && connector->count_modes > 0) {
            screen->connector = connector->connector_id;
            screen->mode = connector->modes[0];
        }
        drmModeFreeConnector(connector);
    }
    drmModeFreeResources(resources);
    if (!screen->connector)
        fail("a display", "none is connected");
}

/* The configuration whose pixels a display takes. */
static EGLConfig configuration(EGLDisplay display) {
    static const EGLint wanted[] = {EGL_SURFACE_TYPE, EGL_WINDOW_BIT, EGL_RENDERABLE_TYPE, EGL_OPENGL_ES3_BIT,
                                    EGL_RED_SIZE, 8, EGL_DEPTH_SIZE, 16, EGL_NONE};
    EGLConfig configs[64];
    EGLint count, format;
    if (!eglChooseConfig(display, wanted, configs, 64, &count))
        fail("EGL", "no configuration");
    for (EGLint at = 0; at < count; at++) {
        eglGetConfigAttrib(display, configs[at], EGL_NATIVE_VISUAL_ID, &format);
        if (format == GBM_FORMAT_XRGB8888)
            return configs[at];
    }
    fail("EGL", "no configuration with XRGB8888");
}

static void open_window(struct screen *screen) {
    static const EGLint version[] = {EGL_CONTEXT_MAJOR_VERSION, 3, EGL_NONE};
    screen->device = gbm_create_device(screen->card);
    if (!screen->device)
        fail("GBM", "no device");
    screen->display = eglGetPlatformDisplay(EGL_PLATFORM_GBM_KHR, screen->device, NULL);
    if (!eglInitialize(screen->display, NULL, NULL))
        fail("EGL", "no display on GBM");
    eglBindAPI(EGL_OPENGL_ES_API);
    EGLConfig config = configuration(screen->display);
    screen->surface = gbm_surface_create(screen->device, screen->mode.hdisplay, screen->mode.vdisplay, GBM_FORMAT_XRGB8888,
                                         GBM_BO_USE_SCANOUT | GBM_BO_USE_RENDERING);
    if (!screen->surface)
        fail("GBM", "no surface");
    screen->window = eglCreatePlatformWindowSurface(screen->display, config, screen->surface, NULL);
    EGLContext context = eglCreateContext(screen->display, config, EGL_NO_CONTEXT, version);
    if (!eglMakeCurrent(screen->display, screen->window, screen->window, context))
        fail("EGL", "no context of GLES 3 with a window");
}

/* The kernel's name of a buffer, kept with it. */
static uint32_t framebuffer_of(struct screen *screen, struct gbm_bo *buffer) {
    uint32_t name = (uintptr_t)gbm_bo_get_user_data(buffer);
    const uint32_t handles[4] = {gbm_bo_get_handle(buffer).u32}, strides[4] = {gbm_bo_get_stride(buffer)}, offsets[4] = {0};
    if (name)
        return name;
    if (drmModeAddFB2(screen->card, gbm_bo_get_width(buffer), gbm_bo_get_height(buffer), GBM_FORMAT_XRGB8888, handles, strides,
                      offsets, &name, 0))
        fail("a framebuffer", "the kernel refuses it");
    gbm_bo_set_user_data(buffer, (void *)(uintptr_t)name, NULL);
    return name;
}

static void flipped(int card, unsigned sequence, unsigned seconds, unsigned microseconds, void *waits) {
    (void)card, (void)sequence, (void)seconds, (void)microseconds;
    *(bool *)waits = false;
}

static void flip(struct screen *screen, uint32_t name) {
    bool waits = true;
    drmEventContext events = {.version = 2, .page_flip_handler = flipped};
    if (drmModePageFlip(screen->card, screen->crtc, name, DRM_MODE_PAGE_FLIP_EVENT, &waits))
        fail("a flip", "the kernel refuses it");
    while (waits) {
        struct pollfd card = {.fd = screen->card, .events = POLLIN};
        if (poll(&card, 1, LONG_WAIT) != 1 || drmHandleEvent(screen->card, &events))
            fail("a flip", "it does not come");
    }
}

static void show(struct screen *screen, uint32_t seed) {
    struct size size = {screen->mode.hdisplay, screen->mode.vdisplay};
    draw_picture(size, seed);
    if (!eglSwapBuffers(screen->display, screen->window))
        fail("EGL", "it does not swap");
    struct gbm_bo *buffer = gbm_surface_lock_front_buffer(screen->surface);
    if (!buffer)
        fail("GBM", "no front buffer");
    uint32_t name = framebuffer_of(screen, buffer);
    if (screen->shown) {
        flip(screen, name);
        gbm_surface_release_buffer(screen->surface, screen->shown);
    } else if (drmModeSetCrtc(screen->card, screen->crtc, name, 0, 0, &screen->connector, 1, &screen->mode)) {
        fail("a mode", "the kernel refuses it");
    }
    screen->shown = buffer;
    printf("virgl-client: shown seed=%u size=%ux%u\n", seed, size.width, size.height);
}

void show_on_screen(void) {
    struct screen screen = {.card = open("/dev/dri/card0", O_RDWR | O_CLOEXEC)};
    char line[32];
    if (screen.card < 0)
        fail("/dev/dri/card0", "it cannot be opened");
    find_display(&screen);
    open_window(&screen);
    printf("virgl-client: renderer %s, %s\n", glGetString(GL_RENDERER), glGetString(GL_VERSION));
    prepare_drawing();
    printf("virgl-client: screen %ux%u\n", screen.mode.hdisplay, screen.mode.vdisplay);
    while (fgets(line, sizeof line, stdin)) {
        uint32_t seed = strtoul(line, NULL, 10);
        if (!seed)
            break;
        show(&screen, seed);
    }
}
