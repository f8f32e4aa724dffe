/*
 * A GL program that knows what it must see: for the tests of a renderer, in a guest or beside it.
 *
 *   virgl-client draw [WIDTH HEIGHT FRAMES]    without a display; says `virgl-client: ok ...` of each picture that came back right
 *   virgl-client show                          on the first display; a picture for each number on its input, until that ends or
 *                                              says something else
 *
 * Its exit status is 0 only where all was as it must be; 2 for bad arguments.
 */
#include "picture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void fail(const char *what, const char *why) {
    printf("virgl-client: FAILED %s: %s\n", what, why);
    exit(1);
}

static _Noreturn void refuse(void) {
    fputs("usage: virgl-client draw [WIDTH HEIGHT FRAMES] | virgl-client show\n", stderr);
    exit(2);
}

static uint32_t number(const char *text) {
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*end || value < 1 || value > 4096)
        refuse();
    return value;
}

int main(int count, char **arguments) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count == 2 && !strcmp(arguments[1], "show"))
        show_on_screen();
    else if (count == 2 && !strcmp(arguments[1], "draw"))
        draw_offscreen((struct size){256, 128}, 2);
    else if (count == 5 && !strcmp(arguments[1], "draw"))
        draw_offscreen((struct size){number(arguments[2]), number(arguments[3])}, number(arguments[4]));
    else
        refuse();
    puts("virgl-client: ok all");
    return 0;
}
