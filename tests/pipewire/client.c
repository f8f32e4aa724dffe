/*
 * A capture client of PipeWire for the tests: it says what each buffer is that the daemon gave it, and makes a checksum of each
 * frame, taken at once, before the buffer goes back.
 *
 *   client --name NAME --frames COUNT --format YUY2|UYVY --size WxH --rate FPS [--buffers COUNT]
 *
 * It waits to be linked for as long as that takes. Its exit status is 0 only where COUNT frames arrived; 2 for bad arguments.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <pipewire/pipewire.h>
#include <spa/param/buffers.h>
#include <spa/param/video/format-utils.h>

struct options {
    const char *name;
    uint64_t frames;
    enum spa_video_format format;
    struct spa_rectangle size;
    uint32_t rate;
    uint32_t buffers;
};

struct client {
    struct options options;
    struct pw_main_loop *loop;
    struct pw_context *context;
    struct pw_core *core;
    struct pw_stream *stream;
    struct spa_hook core_listener;
    struct spa_hook stream_listener;
    uint64_t arrived;
    bool failed;
};

/* ---- Arguments ---- */

static void refuse(const char *why, const char *value) {
    fprintf(stderr,
            "client: %s '%s'; usage: client --name NAME --frames COUNT --format YUY2|UYVY --size WxH --rate FPS [--buffers COUNT]\n",
            why, value);
    exit(2);
}

static uint64_t number(const char *text, uint64_t most) {
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno || end == text || *end || value < 1 || value > most)
        refuse("not a number that fits:", text);
    return value;
}

static enum spa_video_format format_named(const char *name) {
    if (strcmp(name, "YUY2") == 0)
        return SPA_VIDEO_FORMAT_YUY2;
    if (strcmp(name, "UYVY") == 0)
        return SPA_VIDEO_FORMAT_UYVY;
    refuse("no such format:", name);
    return SPA_VIDEO_FORMAT_UNKNOWN;
}

static struct spa_rectangle size_of(const char *text) {
    struct spa_rectangle size;
    int end = 0;
    if (sscanf(text, "%5" SCNu32 "x%5" SCNu32 "%n", &size.width, &size.height, &end) != 2 || text[end])
        refuse("not a size:", text);
    return size;
}

static struct options read_options(int argc, char **argv) {
    static const struct option known[] = {
        {"name", required_argument, NULL, 'n'},  {"frames", required_argument, NULL, 'k'},
        {"format", required_argument, NULL, 'f'}, {"size", required_argument, NULL, 's'},
        {"rate", required_argument, NULL, 'r'},  {"buffers", required_argument, NULL, 'b'},
        {0},
    };
    struct options options = {.buffers = 4};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'n': options.name = optarg; break;
        case 'k': options.frames = number(optarg, UINT64_MAX); break;
        case 'f': options.format = format_named(optarg); break;
        case 's': options.size = size_of(optarg); break;
        case 'r': options.rate = (uint32_t)number(optarg, 1000); break;
        case 'b': options.buffers = (uint32_t)number(optarg, 64); break;
        default: refuse("not understood:", argv[optind - 1]);
        }
    }
    if (optind < argc)
        refuse("not understood:", argv[optind]);
    if (!options.name || !options.frames || !options.format || !options.size.width || !options.rate)
        refuse("missing:", "an option");
    return options;
}

/* ---- The end ---- */

static void end(struct client *client, bool failed) {
    client->failed |= failed;
    pw_main_loop_quit(client->loop);
}

__attribute__((format(printf, 2, 3))) static void fail(struct client *client, const char *text, ...) {
    va_list rest;
    va_start(rest, text);
    fputs("client: ", stderr);
    vfprintf(stderr, text, rest);
    fputc('\n', stderr);
    va_end(rest);
    end(client, true);
}

static void on_core_error(void *data, uint32_t id, int seq, int result, const char *message) {
    (void)seq;
    /* What goes wrong with one object only, such as a link that is taken away, is the stream's to tell. */
    if (id == PW_ID_CORE)
        fail(data, "the daemon: %s: %s", strerror(-result), message);
}

static const struct pw_core_events core_events = {PW_VERSION_CORE_EVENTS, .error = on_core_error};

/* ---- What is negotiated ---- */

static const struct spa_pod *wanted_format(struct spa_pod_builder *builder, const struct options *options) {
    const struct spa_fraction rate = SPA_FRACTION(options->rate, 1);
    return spa_pod_builder_add_object(
        builder, SPA_TYPE_OBJECT_Format, SPA_PARAM_EnumFormat,
        SPA_FORMAT_mediaType, SPA_POD_Id(SPA_MEDIA_TYPE_video),
        SPA_FORMAT_mediaSubtype, SPA_POD_Id(SPA_MEDIA_SUBTYPE_raw),
        SPA_FORMAT_VIDEO_format, SPA_POD_Id(options->format),
        SPA_FORMAT_VIDEO_size, SPA_POD_Rectangle(&options->size),
        SPA_FORMAT_VIDEO_framerate, SPA_POD_Fraction(&rate));
}

/* Each frame is to tell its number; of buffers, the count alone matters. */
static void on_param(void *data, uint32_t id, const struct spa_pod *param) {
    struct client *client = data;
    uint8_t space[1024];
    struct spa_pod_builder builder = SPA_POD_BUILDER_INIT(space, sizeof space);
    if (!param || id != SPA_PARAM_Format)
        return;
    const struct spa_pod *params[] = {
        spa_pod_builder_add_object(
            &builder, SPA_TYPE_OBJECT_ParamMeta, SPA_PARAM_Meta,
            SPA_PARAM_META_type, SPA_POD_Id(SPA_META_Header),
            SPA_PARAM_META_size, SPA_POD_Int(sizeof(struct spa_meta_header))),
        spa_pod_builder_add_object(
            &builder, SPA_TYPE_OBJECT_ParamBuffers, SPA_PARAM_Buffers,
            SPA_PARAM_BUFFERS_buffers, SPA_POD_CHOICE_RANGE_Int(client->options.buffers, 2, 64)),
    };
    int result = pw_stream_update_params(client->stream, params, SPA_N_ELEMENTS(params));
    if (result < 0)
        fail(client, "buffers refused: %s", strerror(-result));
}

static void on_state(void *data, enum pw_stream_state before, enum pw_stream_state now, const char *error) {
    (void)before;
    printf("state %s\n", pw_stream_state_as_string(now));
    if (now == PW_STREAM_STATE_ERROR)
        fail(data, "the stream: %s", error ? error : "an error without a word");
    if (now == PW_STREAM_STATE_UNCONNECTED)
        fail(data, "the stream was disconnected");
}

/* ---- Buffers and frames ---- */

static void on_buffer(void *unused, struct pw_buffer *buffer) {
    (void)unused;
    const struct spa_data *data = &buffer->buffer->datas[0];
    const char *modes[] = {"O_RDONLY", "O_WRONLY", "O_RDWR", "?"};
    char link[256] = "-";
    const char *mode = "-";
    long long size = -1;
    if (data->fd >= 0) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%" PRIi64, data->fd);
        ssize_t length = readlink(path, link, sizeof link - 1);
        link[length > 0 ? length : 0] = '\0';
        int flags = fcntl((int)data->fd, F_GETFL);
        mode = flags < 0 ? "?" : modes[flags & O_ACCMODE];
        size = lseek((int)data->fd, 0, SEEK_END);
    }
    printf("buffer type=%" PRIu32 " mode=%s size=%lld maxsize=%" PRIu32 " link=%s\n", data->type, mode, size, data->maxsize, link);
}

static uint64_t fnv(const uint8_t *bytes, size_t length) {
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t at = 0; at < length; at++)
        hash = (hash ^ bytes[at]) * 0x100000001b3;
    return hash;
}

static size_t count_nonzero(const uint8_t *bytes, size_t length) {
    size_t count = 0;
    for (size_t at = 0; at < length; at++)
        count += bytes[at] != 0;
    return count;
}

/* The checksum comes first: the source may fill the buffer again before this client is done with it. */
static void look_at(struct client *client, struct spa_buffer *buffer) {
    const struct spa_data *data = &buffer->datas[0];
    const struct spa_meta_header *header = spa_buffer_find_meta_data(buffer, SPA_META_Header, sizeof *header);
    const uint32_t offset = SPA_MIN(data->chunk->offset, data->maxsize);
    const uint32_t size = SPA_MIN(data->chunk->size, data->maxsize - offset);
    if (!data->data) {
        fail(client, "a buffer could not be mapped");
        return;
    }
    const uint8_t *bytes = SPA_PTROFF(data->data, offset, const uint8_t);
    const uint64_t sum = fnv(bytes, size);
    printf("frame seq=%" PRIi64 " size=%" PRIu32 " nonzero=%zu fnv=%016" PRIx64 "\n", header ? (int64_t)header->seq : -1, size,
           count_nonzero(bytes, size), sum);
    client->arrived++;
}

static void on_process(void *data) {
    struct client *client = data;
    struct pw_buffer *buffer;
    while (client->arrived < client->options.frames && (buffer = pw_stream_dequeue_buffer(client->stream))) {
        look_at(client, buffer->buffer);
        pw_stream_queue_buffer(client->stream, buffer);
    }
    if (client->arrived == client->options.frames)
        end(client, false);
}

static const struct pw_stream_events stream_events = {
    PW_VERSION_STREAM_EVENTS,
    .state_changed = on_state,
    .param_changed = on_param,
    .add_buffer = on_buffer,
    .process = on_process,
};

/* ---- Start ---- */

static void start(struct client *client) {
    const char *name = client->options.name;
    uint8_t space[1024];
    struct spa_pod_builder builder = SPA_POD_BUILDER_INIT(space, sizeof space);
    const struct spa_pod *params[] = {wanted_format(&builder, &client->options)};

    client->core = pw_context_connect(client->context, NULL, 0);
    if (!client->core) {
        fail(client, "cannot connect to a daemon: %s", strerror(errno));
        return;
    }
    pw_core_add_listener(client->core, &client->core_listener, &core_events, client);
    client->stream = pw_stream_new(
        client->core, name,
        pw_properties_new(PW_KEY_MEDIA_TYPE, "Video", PW_KEY_MEDIA_CATEGORY, "Capture", PW_KEY_MEDIA_ROLE, "Camera",
                          PW_KEY_NODE_NAME, name, NULL));
    if (!client->stream) {
        fail(client, "no stream: %s", strerror(errno));
        return;
    }
    pw_stream_add_listener(client->stream, &client->stream_listener, &stream_events, client);
    int result = pw_stream_connect(client->stream, PW_DIRECTION_INPUT, PW_ID_ANY, PW_STREAM_FLAG_MAP_BUFFERS, params, 1);
    if (result < 0)
        fail(client, "the stream does not connect: %s", strerror(-result));
}

int main(int argc, char **argv) {
    struct client client = {.options = read_options(argc, argv)};
    setvbuf(stdout, NULL, _IOLBF, 0);
    pw_init(NULL, NULL);
    client.loop = pw_main_loop_new(NULL);
    client.context = client.loop ? pw_context_new(pw_main_loop_get_loop(client.loop), NULL, 0) : NULL;
    if (!client.context) {
        fprintf(stderr, "client: PipeWire does not start: %s\n", strerror(errno));
        return 1;
    }
    start(&client);
    if (!client.failed)
        pw_main_loop_run(client.loop);

    /* From here on the stream's end is no news. */
    if (client.stream) {
        spa_hook_remove(&client.stream_listener);
        pw_stream_destroy(client.stream);
    }
    if (client.core) {
        spa_hook_remove(&client.core_listener);
        pw_core_disconnect(client.core);
    }
    pw_context_destroy(client.context);
    pw_main_loop_destroy(client.loop);
    pw_deinit();
    return !client.failed && client.arrived >= client.options.frames ? 0 : 1;
}
