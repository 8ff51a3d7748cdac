/* Images of episodes, from uint8 rows to normalised float32 in one pass.

   An image is looked up, turned by quarter turns, distorted where a map is given, converted and normalised
   while it is in the first cache; nothing of it is written but the result. Without a map the result is that
   of plain torch to the last bit: pixel * scale + offset, rounded twice. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif

enum { TILE = 16, TILE_BYTES = TILE * TILE, BLOCK = 16, AHEAD = 2, CACHE_LINE = 64 };

/* Rows lie anywhere in the image set: asked for a few images ahead, they are there in time. */
static inline void fetch(const uint8_t *image, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += CACHE_LINE) __builtin_prefetch(image + i);
}

/* One round of a perfect shuffle: it rotates the bits of a byte's place in the tile by one. */
static inline void shuffle(const uint8_t *restrict from, uint8_t *restrict to) {
    for (int i = 0; i < TILE_BYTES / 2; i++) {
        to[2 * i] = from[i];
        to[2 * i + 1] = from[TILE_BYTES / 2 + i];
    }
}

/* Four rounds swap the row's four bits with the column's: that is the transpose, and no byte moves alone. */
static void transpose_tile(const uint8_t *from, ptrdiff_t from_row, uint8_t *to, ptrdiff_t to_row) {
    uint8_t a[TILE_BYTES], b[TILE_BYTES];
    for (int row = 0; row < TILE; row++) memcpy(a + row * TILE, from + row * from_row, TILE);
    shuffle(a, b);
    shuffle(b, a);
    shuffle(a, b);
    shuffle(b, a);
    for (int row = 0; row < TILE; row++) memcpy(to + row * to_row, a + row * TILE, TILE);
}

/* Square planes; rows may run backwards (a negative distance between them). */
static void transpose(const uint8_t *from, ptrdiff_t from_row, uint8_t *to, ptrdiff_t to_row, int64_t side) {
    if (side < TILE) {
        for (int64_t y = 0; y < side; y++)
            for (int64_t x = 0; x < side; x++) to[y * to_row + x] = from[x * from_row + y];
        return;
    }
    /* The last tiles end with the plane and overlap those before: never a byte outside. */
    for (int64_t i = 0; i < side; i += TILE) {
        int64_t y = i + TILE <= side ? i : side - TILE;
        for (int64_t j = 0; j < side; j += TILE) {
            int64_t x = j + TILE <= side ? j : side - TILE;
            transpose_tile(from + x * from_row + y, from_row, to + y * to_row + x, to_row);
        }
    }
}

/* The plane turned counter-clockwise, in `room` unless it is upright. */
static const uint8_t *turned(const uint8_t *plane, int64_t turn, int64_t side, uint8_t *room) {
    int64_t pixels = side * side;
    if (turn == 1) {
        transpose(plane, side, room + (side - 1) * side, -side, side);
    } else if (turn == 2) {
        for (int64_t i = 0; i < pixels; i++) room[i] = plane[pixels - 1 - i];
    } else if (turn == 3) {
        transpose(plane + (side - 1) * side, -side, room, side, side);
    } else {
        return plane;
    }
    return room;
}

/* Where each pixel of a distorted image comes from: the cell of its four neighbours, and how far into it.
   There is room for BLOCK - 1 more than the pixels. */
typedef struct {
    int32_t *cell;
    float *across, *down;
} Places;

/* map: (2, 3) from output to input, in coordinates that span -1..1 over the image. The cells begin one pixel
   outside; what lies further out is moved to the rim, where all is paper. Rows are written in whole blocks:
   what is too much is written again by the next row. */
static void find_places(const float *map, int64_t height, int64_t width, Places places) {
    double half_width = 0.5 * (double)width, half_height = 0.5 * (double)height;
    float x_step = map[0], y_step = (float)(map[3] * half_height / half_width);
    float x_end = (float)width, y_end = (float)height;
    int32_t row_cells = (int32_t)width + 3;
    for (int64_t row = 0; row < height; row++) {
        double down = ((double)row + 0.5) / half_height - 1, first = 0.5 / half_width - 1;
        float x_first = (float)((map[0] * first + map[1] * down + map[2] + 1) * half_width - 0.5);
        float y_first = (float)((map[3] * first + map[4] * down + map[5] + 1) * half_height - 0.5);
        for (int64_t column = 0; column < width; column += BLOCK) {
            int32_t *restrict cell = places.cell + row * width + column;
            float *restrict across = places.across + row * width + column;
            float *restrict down_cell = places.down + row * width + column;
            for (int i = 0; i < BLOCK; i++) {
                float x = x_first + x_step * (float)((int32_t)column + i);
                float y = y_first + y_step * (float)((int32_t)column + i);
                x = x > -1 ? x : -1; /* also where it is not a number */
                y = y > -1 ? y : -1;
                x = x < x_end ? x : x_end;
                y = y < y_end ? y : y_end;
                float left = floorf(x), top = floorf(y);
                cell[i] = ((int32_t)top + 1) * row_cells + (int32_t)left + 1;
                across[i] = x - left;
                down_cell[i] = y - top;
            }
        }
    }
}

/* Each pixel with its right, lower and lower right neighbour in one number: one look-up finds all four. */
static void pack_cells(const uint8_t *plane, int64_t height, int64_t width, uint8_t *padded,
                       uint32_t *cells) {
    int64_t row = width + 3;
    memset(padded, 0, (size_t)((height + 3) * row));
    for (int64_t y = 0; y < height; y++)
        memcpy(padded + (y + 1) * row + 1, plane + y * width, (size_t)width);
    const uint8_t *restrict upper = padded, *restrict lower = padded + row;
    uint32_t *restrict cell = cells;
    for (int64_t i = 0; i < (height + 2) * row - 1; i++)
        cell[i] = (uint32_t)upper[i] | (uint32_t)upper[i + 1] << 8 | (uint32_t)lower[i] << 16 |
                  (uint32_t)lower[i + 1] << 24;
}

static inline float byte_of(uint32_t cell, int number) {
    return (float)(int32_t)(cell >> 8 * number & 255);
}

static inline void interpolate(const uint32_t *cells, Places places, int64_t first, int count, float scale,
                               float offset, float *restrict out) {
    const int32_t *restrict cell = places.cell + first;
    const float *restrict across = places.across + first, *restrict down = places.down + first;
    uint32_t found[BLOCK];
    for (int i = 0; i < count; i++) found[i] = cells[cell[i]];
    for (int i = 0; i < count; i++) {
        float upper = byte_of(found[i], 0) + across[i] * (byte_of(found[i], 1) - byte_of(found[i], 0));
        float lower = byte_of(found[i], 2) + across[i] * (byte_of(found[i], 3) - byte_of(found[i], 2));
        out[first + i] = (upper + down[i] * (lower - upper)) * scale + offset;
    }
}

/* Working memory of a thread; all but `turned` only where images are distorted. */
typedef struct {
    Places places;
    uint32_t *cells;
    uint8_t *padded, *turned;
} Room;

/* How many bytes a room takes. */
static size_t room_bytes(int64_t height, int64_t width, int distorted) {
    size_t pixels = (size_t)(height * width), padded = (size_t)((height + 3) * (width + 3));
    size_t bytes = distorted ? 3 * 4 * (pixels + BLOCK - 1) + 4 * padded + padded + pixels : pixels;
    return (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
}

static Room room_at(uint8_t *start, int64_t height, int64_t width, int distorted) {
    size_t pixels = (size_t)(height * width), padded = (size_t)((height + 3) * (width + 3));
    Room room = {{NULL, NULL, NULL}, NULL, NULL, start};
    if (distorted) {
        room.places.cell = (int32_t *)start;
        room.places.across = (float *)start + (pixels + BLOCK - 1);
        room.places.down = room.places.across + (pixels + BLOCK - 1);
        room.cells = (uint32_t *)(room.places.down + (pixels + BLOCK - 1));
        room.padded = (uint8_t *)(room.cells + padded);
        room.turned = room.padded + padded;
    }
    return room;
}

/* images: (image, channel, height, width); rows, turns: (episode, shown), turns NULL where all are upright,
   and otherwise images are square; maps: (episode, shown, 2, 3) or NULL; scale, offset: (channel).
   The first `support` images of an episode go to `support_out`, the others to `query_out`.
   Returns 0, or 1 where memory ran out and nothing was done. The rows are the caller's to check. */
int gather_images(const uint8_t *images, int64_t channels, int64_t height, int64_t width, const int64_t *rows,
                  const int64_t *turns, const float *maps, int64_t episodes, int64_t shown, int64_t support,
                  const float *scale, const float *offset, float *support_out, float *query_out,
                  int64_t threads) {
    int64_t pixels = height * width, size = channels * pixels, total = episodes * shown;
    size_t bytes = room_bytes(height, width, maps != NULL);
    uint8_t *rooms = malloc(bytes * (size_t)threads);
    if (!rooms) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < total; i++) {
        Room room = room_at(rooms + bytes * (size_t)omp_get_thread_num(), height, width, maps != NULL);
        int64_t episode = i / shown, place = i % shown;
        float *out = place < support ? support_out + (episode * support + place) * size
                                     : query_out + (episode * (shown - support) + place - support) * size;
        if (i + AHEAD < total) fetch(images + rows[i + AHEAD] * size, size);
        if (maps) find_places(maps + i * 6, height, width, room.places);
        for (int64_t channel = 0; channel < channels; channel++, out += pixels) {
            const uint8_t *plane = images + rows[i] * size + channel * pixels;
            float times = scale[channel], plus = offset[channel];
            if (turns) plane = turned(plane, turns[i], width, room.turned);
            if (maps) {
                int64_t first = 0;
                pack_cells(plane, height, width, room.padded, room.cells);
                for (; first + BLOCK <= pixels; first += BLOCK)
                    interpolate(room.cells, room.places, first, BLOCK, times, plus, out);
                interpolate(room.cells, room.places, first, (int)(pixels - first), times, plus, out);
            } else {
                for (int64_t p = 0; p < pixels; p++) out[p] = (float)plane[p] * times + plus;
            }
        }
    }
    free(rooms);
    return 0;
}
