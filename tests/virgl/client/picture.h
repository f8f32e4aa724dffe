/*
 * Pictures that are the same on every renderer: tiles of 32x32 pixels, each drawn in one of several ways that leave nothing to a
 * renderer's judgement. Colours are 0xRRGGBB; y counts upwards, as GL has it.
 */
#ifndef PICTURE_H
#define PICTURE_H

#include <stdbool.h>
#include <stdint.h>

struct size {
    uint32_t width;
    uint32_t height;
};

/* Ends the program with a line that says why. */
_Noreturn void fail(const char *what, const char *why) __attribute__((cold));

/* Ends the program where GL has something to complain of. */
void expect_no_error(const char *what);

/* What a pixel must be. */
uint32_t expected(uint32_t seed, uint32_t x, uint32_t y);

/* Makes the programs, the texture and the vertex buffer, for the current context. */
void prepare_drawing(void);

/* Draws the whole picture into the current framebuffer, which has a depth buffer. */
void draw_picture(struct size size, uint32_t seed);

/* Counts pixels, as glReadPixels gives them (RGBA), that are not as they must be; `flipped` turns what must be upside down. */
uint32_t count_wrong(const uint8_t *pixels, struct size size, uint32_t seed, bool flipped);

/* FNV-1a (64 bit) of the pixels as words 0x00RRGGBB, least byte first. */
uint64_t hash_of(const uint8_t *pixels, struct size size);

/* The two jobs; each ends the program where something is wrong. */
void draw_offscreen(struct size size, uint32_t frames);
void show_on_screen(void);

#endif
