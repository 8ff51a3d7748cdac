/* A 3x3 convolution of images of few channels with ReLU and 2x2 max pooling, its gradient by the weights, and
   the moments of the images' 3x3 patches, from which those of the maps before the ReLU follow.

   Images are float32, [images][channels][rows][columns], padded with a frame of zeros, which counts in rows and
   columns; a patch's values ("taps") are in the order of a kernel's weights, [channels][3][3]. Maps are in
   channels-last order, [images][height][width]["wide" maps], a multiple of LANES. `code` keeps which of a
   window's positions was the greatest, or CLOSED where the ReLU lets nothing through.
   Sums over an image are float32 within a few rows and double between them; images are combined in their
   order, so that the result does not depend on the number of threads. */

#if defined(__clang__)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, VECTORS = 4 };
#elif defined(__AVX__)
enum { LANES = 8, VECTORS = 2 };
#else
enum { LANES = 4, VECTORS = 2 };
#endif

enum {
    SIDE = 3,
    AREA = SIDE * SIDE,
    CLOSED = 255,
    CELLS = 64, /* whose gradients are summed in float32 before they join the others */
};

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t masks __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    int64_t images, channels, rows, columns, stride, window, wide; /* window: 2 with pooling, else 1 */
} shape;

static int64_t convolved(const shape *s, int64_t side) { return (side - SIDE) / s->stride + 1; }
static int64_t pooled(const shape *s, int64_t side) { return convolved(s, side) / s->window; }
static int64_t cells(const shape *s) { return pooled(s, s->rows) * pooled(s, s->columns); }

static void sum_images(int64_t images, int64_t count, const double *parts, double *total)
{
    memset(total, 0, sizeof(double) * (size_t)count);
    for (int64_t image = 0; image < images; image++)
        for (int64_t i = 0; i < count; i++)
            total[i] += parts[image * count + i];
}

/* --- Patches ---------------------------------------------------------------------------------------------- */

/* sums: [taps + 1][taps], of products of two taps and, in the last row, of the taps alone. room: [taps +
   1][places] floats, for the patches of a few rows: a tap's values side by side, then zeros. */
static void image_moments(const shape *s, const float *image, const float *centre, float *room,
                          int64_t places, double *sums)
{
    const int64_t taps = s->channels * AREA, across = convolved(s, s->columns), down = convolved(s, s->rows);
    const int64_t together = places / across;
    memset(sums, 0, sizeof(double) * (size_t)((taps + 1) * taps));
    memset(room, 0, sizeof(float) * (size_t)(taps * places));
    for (int64_t x = 0; x < places; x++)
        room[taps * places + x] = 1;
    for (int64_t first = 0; first < down; first += together) {
        const int64_t count = first + together < down ? together : down - first;
        for (int64_t tap = 0; tap < taps; tap++) {
            float *to = room + tap * places;
            const int64_t top = tap / AREA * s->rows + first * s->stride + tap % AREA / SIDE;
            const float *from = image + top * s->columns;
            for (int64_t y = 0; y < count; y++, to += across, from += s->stride * s->columns)
                for (int64_t x = 0; x < across; x++)
                    to[x] = from[tap % SIDE + x * s->stride] - centre[tap / AREA];
            memset(to, 0, sizeof(float) * (size_t)((together - count) * across));
        }
        for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t other = tap; other <= taps; other++) {
                const float *left = room + tap * places, *right = room + other * places;
                lanes sum = {0};
                for (int64_t x = 0; x < places; x += LANES)
                    sum += *(const lanes *)(left + x) * *(const lanes *)(right + x);
                float flat = 0;
                for (int lane = 0; lane < LANES; lane++)
                    flat += sum[lane];
                sums[other * taps + tap] += flat;
            }
    }
}

/* total: [taps + 1][taps], as above; of the products the lower triangle. centre: [channels], taken from each
   value before. room: [images][taps + 1][places], parts: [images][taps + 1][taps]; places: those of a row of
   patches or more, a multiple of 16. */
int patch_moments(int64_t threads, int64_t images, int64_t channels, int64_t rows, int64_t columns,
                  int64_t stride, int64_t places, const float *padded, const float *centre, float *room,
                  double *parts, double *total)
{
    const shape s = {images, channels, rows, columns, stride, 1, 0};
    const int64_t taps = channels * AREA, count = (taps + 1) * taps;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < images; image++)
        image_moments(&s, padded + image * channels * rows * columns, centre,
                      room + image * (taps + 1) * places, places, parts + image * count);
    sum_images(images, count, parts, total);
    return 0;
}

/* --- Forward ---------------------------------------------------------------------------------------------- */

INLINE lanes choose(masks which, lanes yes, lanes no)
{
    return (lanes)((which & (masks)yes) | (~which & (masks)no));
}

/* Values before the ReLU of `vectors` vectors of maps, at positions whose patches are `at` from a corner. */
INLINE void convolve(const shape *s, const int positions, const int vectors, const float *corner,
                     const int64_t *at, const float *weights, const float *offsets, lanes sums[4][VECTORS])
{
    for (int k = 0; k < positions; k++)
        for (int v = 0; v < vectors; v++)
            sums[k][v] = *(const lanes *)(offsets + v * LANES);
    for (int64_t channel = 0; channel < s->channels; channel++, corner += s->rows * s->columns)
#pragma GCC unroll 9
        for (int tap = 0; tap < AREA; tap++, weights += s->wide) {
            const float *value = corner + tap / SIDE * s->columns + tap % SIDE;
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
#pragma GCC unroll 4
                for (int k = 0; k < positions; k++)
                    sums[k][v] += value[at[k]] * *(const lanes *)(weights + v * LANES);
        }
}

INLINE void finish(lanes best, masks place, float *out, uint8_t *code)
{
    const masks open = best > 0;
    *(lanes *)out = (lanes)(~(masks)(best <= 0) & (masks)best); /* so that NaN stays NaN */
    *(bytes *)code = __builtin_convertvector((open & place) | (~open & CLOSED), bytes);
}

/* Of four positions the first greatest, with pooling, or each of `positions` side by side. */
INLINE void cell_forward(const shape *s, const int pool, const int positions, const int vectors,
                         const float *corner, const int64_t *at, const float *weights, const float *offsets,
                         float *out, uint8_t *code)
{
    lanes sums[4][VECTORS];
    convolve(s, positions, vectors, corner, at, weights, offsets, sums);
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
        lanes best = sums[0][v];
        masks place = {0};
#pragma GCC unroll 4
        for (int k = 1; k < positions && pool; k++) {
            const lanes value = sums[k][v];
            const masks better = (value > best) | (value != value);
            best = choose(better, value, best);
            place = (better & k) | (~better & place);
        }
        finish(best, place, out + v * LANES, code + v * LANES);
#pragma GCC unroll 4
        for (int k = 1; k < positions && !pool; k++)
            finish(sums[k][v], (masks){0}, out + k * s->wide + v * LANES, code + k * s->wide + v * LANES);
    }
}

/* All maps of a cell; `vectors` at a time as far as they go. */
INLINE void cells_forward(const shape *s, const int pool, const int positions, const float *corner,
                          const int64_t *at, const float *weights, const float *offsets, float *out,
                          uint8_t *code)
{
    int64_t map = 0;
    for (; map + VECTORS * LANES <= s->wide; map += VECTORS * LANES)
        cell_forward(s, pool, positions, VECTORS, corner, at, weights + map, offsets + map, out + map,
                     code + map);
    for (; map < s->wide; map += LANES)
        cell_forward(s, pool, positions, 1, corner, at, weights + map, offsets + map, out + map, code + map);
}

INLINE void image_forward(const shape *s, const int pool, const float *image, const float *weights,
                          const float *offsets, float *out, uint8_t *code)
{
    const int64_t right = s->stride, down = s->stride * s->columns, across = pooled(s, s->columns);
    const int64_t window[4] = {0, right, down, down + right}, row[4] = {0, right, 2 * right, 3 * right};
    for (int64_t y = 0; y < pooled(s, s->rows); y++, out += across * s->wide, code += across * s->wide) {
        const float *corner = image + s->window * y * down;
        int64_t x = 0;
        for (; !pool && x + 4 <= across; x += 4)
            cells_forward(s, 0, 4, corner + x * right, row, weights, offsets, out + x * s->wide,
                          code + x * s->wide);
        for (; x < across; x++)
            cells_forward(s, pool, pool ? 4 : 1, corner + s->window * x * right, window, weights, offsets,
                          out + x * s->wide, code + x * s->wide);
    }
}

/* weights: [taps][wide]. */
int forward(int64_t threads, int64_t images, int64_t channels, int64_t rows, int64_t columns, int64_t stride,
            int64_t window, int64_t wide, const float *padded, const float *weights, const float *offsets,
            float *out, uint8_t *code)
{
    const shape s = {images, channels, rows, columns, stride, window, wide};
    const int64_t size = cells(&s) * wide;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < images; image++) {
        const float *values = padded + image * channels * rows * columns;
        if (window == 2)
            image_forward(&s, 1, values, weights, offsets, out + image * size, code + image * size);
        else
            image_forward(&s, 0, values, weights, offsets, out + image * size, code + image * size);
    }
    return 0;
}

/* --- Backward --------------------------------------------------------------------------------------------- */

/* sums: [taps + 1][wide], of the gradient times each tap and, in the last row, of the gradient alone. */
INLINE void image_backward(const shape *s, const int positions, const float *image, const float *gradient,
                           const uint8_t *code, double *sums)
{
    const int64_t taps = s->channels * AREA, across = pooled(s, s->columns);
    const int64_t right = s->stride, down = s->stride * s->columns, at[4] = {0, right, down, down + right};
    memset(sums, 0, sizeof(double) * (size_t)((taps + 1) * s->wide));
    const int64_t high = pooled(s, s->rows), together = across < CELLS ? CELLS / across : 1;
    for (int64_t first = 0; first < high; first += together)
        for (int64_t map = 0; map < s->wide; map += LANES)
            for (int64_t channel = 0; channel < s->channels; channel++) {
                lanes met[AREA], plain = {0};
                for (int tap = 0; tap < AREA; tap++)
                    met[tap] = (lanes){0};
                for (int64_t y = first; y < first + together && y < high; y++)
                    for (int64_t x = 0; x < across; x++) {
                        const int64_t o = (y * across + x) * s->wide + map;
                        const float *corner =
                            image + channel * s->rows * s->columns + s->window * (y * down + x * right);
                        const lanes value = *(const lanes *)(gradient + o);
                        const masks place = __builtin_convertvector(*(const bytes *)(code + o), masks);
#pragma GCC unroll 4
                        for (int k = 0; k < positions; k++) {
                            const lanes here = (lanes)((masks)(place == k) & (masks)value);
                            plain += here;
#pragma GCC unroll 9
                            for (int tap = 0; tap < AREA; tap++)
                                met[tap] += here * corner[at[k] + tap / SIDE * s->columns + tap % SIDE];
                        }
                    }
                for (int tap = 0; tap < AREA; tap++)
                    for (int lane = 0; lane < LANES; lane++)
                        sums[(channel * AREA + tap) * s->wide + map + lane] += met[tap][lane];
                for (int lane = 0; lane < LANES && channel == 0; lane++)
                    sums[taps * s->wide + map + lane] += plain[lane];
            }
}

/* parts: [images][taps + 1][wide]; total: [taps + 1][wide], as above. */
int backward(int64_t threads, int64_t images, int64_t channels, int64_t rows, int64_t columns, int64_t stride,
             int64_t window, int64_t wide, const float *padded, const float *gradient, const uint8_t *code,
             double *parts, double *total)
{
    const shape s = {images, channels, rows, columns, stride, window, wide};
    const int64_t size = cells(&s) * wide, count = (channels * AREA + 1) * wide;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < images; image++) {
        const float *values = padded + image * channels * rows * columns;
        if (window == 2)
            image_backward(&s, 4, values, gradient + image * size, code + image * size,
                           parts + image * count);
        else
            image_backward(&s, 1, values, gradient + image * size, code + image * size,
                           parts + image * count);
    }
    sum_images(images, count, parts, total);
    return 0;
}
