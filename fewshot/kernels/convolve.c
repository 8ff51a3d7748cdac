/* 3x3 convolutions padded by one, of groups of images with a kernel each, and both their gradients.
 *
 * Arrays, each contiguous: maps (group, image, row, column, channel); kernels (group, 3, 3, in, out).
 * A padded copy of a few images at a time makes the place of a tap one offset, the same for every pixel; what
 * is left is a small matrix product, whose sums stay in registers.
 */

#if defined(__clang__)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* As many sums as the processor has registers for, less a few for what is multiplied: PIXELS times VECTORS of
 * the maps, CHANNELS times NARROW of the kernels' gradient (measured: the best of some shapes).
 */
#if defined(__AVX512F__)
enum { LANES = 16, VECTORS = 4, PIXELS = 7, NARROW = 2, CHANNELS = 8 };
#elif defined(__AVX__)
enum { LANES = 8, VECTORS = 2, PIXELS = 6, NARROW = 2, CHANNELS = 4 };
#else
enum { LANES = 4, VECTORS = 2, PIXELS = 4, NARROW = 2, CHANNELS = 4 };
#endif

enum {
    SIDE = 3,
    TAPS = SIDE * SIDE,
    BLOCK = 64,        /* pixels whose gradient stays in the first-level cache meanwhile */
    SCRATCH = 1 << 15, /* floats of padded images at a time: they stay in the second-level cache */
};

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    int64_t groups, images, rows, columns, channels; /* images: of one group */
} Maps;

static int64_t padded_size(const Maps *maps) {
    return (maps->rows + 2) * (maps->columns + 2) * maps->channels;
}

/* How many images go together. */
static int64_t images_together(const Maps *maps) {
    int64_t fitting = SCRATCH / padded_size(maps);
    fitting = fitting < 1 ? 1 : fitting;
    return fitting < maps->images ? fitting : maps->images;
}

/* The frame of zeros is there from calloc, and is never written to. */
static void copy_inside(const Maps *maps, const float *from, int64_t images, float *padded) {
    int64_t row_size = maps->columns * maps->channels;
    for (int64_t image = 0; image < images; image++) {
        float *to = padded + image * padded_size(maps) + (maps->columns + 3) * maps->channels;
        for (int64_t row = 0; row < maps->rows; row++) {
            memcpy(to, from, sizeof(float) * row_size);
            from += row_size;
            to += row_size + 2 * maps->channels;
        }
    }
}

/* Pixels whose values are sums over the same taps: where each reads (the corner of its window, in the padded
 * images) and where it is written; of each tap, the offset within the window and the kernel's matrix.
 */
typedef struct {
    int64_t pixels, *reads, *writes;
    int taps;
    int64_t offsets[TAPS], matrices[TAPS];
} Pattern;

static inline __attribute__((always_inline)) void sum_tile(
    const Pattern *pattern, int64_t first, const float *padded, int64_t channels, const float *kernel,
    int64_t width, float *out, int vectors
) {
    const float *corners[PIXELS];
    float *places[PIXELS];
    for (int pixel = 0; pixel < PIXELS; pixel++) { /* the last ones again where a tile is not full */
        int64_t index = first + pixel < pattern->pixels ? first + pixel : pattern->pixels - 1;
        corners[pixel] = padded + pattern->reads[index];
        places[pixel] = out + pattern->writes[index];
    }
    lanes sums[PIXELS][VECTORS];
    for (int pixel = 0; pixel < PIXELS; pixel++)
        for (int vector = 0; vector < vectors; vector++) sums[pixel][vector] = (lanes){0};
    for (int tap = 0; tap < pattern->taps; tap++) {
        int64_t offset = pattern->offsets[tap];
        const float *row = kernel + pattern->matrices[tap] * channels * width;
        for (int64_t channel = 0; channel < channels; channel++, row += width, offset++) {
            lanes weights[VECTORS];
#pragma GCC unroll 8
            for (int vector = 0; vector < vectors; vector++)
                weights[vector] = *(const lanes *)(row + vector * LANES);
#pragma GCC unroll 8
            for (int pixel = 0; pixel < PIXELS; pixel++) {
#pragma GCC unroll 8
                for (int vector = 0; vector < vectors; vector++)
                    sums[pixel][vector] += corners[pixel][offset] * weights[vector];
            }
        }
    }
    for (int pixel = 0; pixel < PIXELS; pixel++)
        for (int vector = 0; vector < vectors; vector++)
            *(lanes *)(places[pixel] + vector * LANES) = sums[pixel][vector];
}

static void sum_pattern(
    const Pattern *pattern, const float *padded, int64_t channels, const float *kernel, int64_t width,
    float *out
) {
    int64_t done = 0;
    for (; done + VECTORS * LANES <= width; done += VECTORS * LANES)
        for (int64_t first = 0; first < pattern->pixels; first += PIXELS)
            sum_tile(pattern, first, padded, channels, kernel + done, width, out + done, VECTORS);
    for (; done < width; done += LANES)
        for (int64_t first = 0; first < pattern->pixels; first += PIXELS)
            sum_tile(pattern, first, padded, channels, kernel + done, width, out + done, 1);
}

/* The pixels of `images` images of `to` in phase (row, column) modulo the stride; `from` is what they read.
 *
 * Forward there is one phase: an output pixel's window begins at its place times the stride. For the maps'
 * gradient, input pixel stride * m + phase is reached through the taps with (phase + 1 - tap) divisible by
 * the stride, from output pixel m + (phase + 1 - tap) / stride.
 */
static void fill_pattern(
    Pattern *pattern, const Maps *from, const Maps *to, int64_t images, int64_t stride, int backward,
    int64_t row_phase, int64_t column_phase
) {
    int64_t padded_columns = from->columns + 2;
    int64_t step = backward ? stride : 1, reach = backward ? 1 : stride;
    pattern->pixels = 0;
    for (int64_t image = 0; image < images; image++)
        for (int64_t row = row_phase; row < to->rows; row += step)
            for (int64_t column = column_phase; column < to->columns; column += step) {
                int64_t place = (row / step * reach) * padded_columns + column / step * reach;
                pattern->reads[pattern->pixels] = image * padded_size(from) + place * from->channels;
                pattern->writes[pattern->pixels++] =
                    ((image * to->rows + row) * to->columns + column) * to->channels;
            }
    pattern->taps = 0;
    for (int64_t y = 0; y < SIDE; y++)
        for (int64_t x = 0; x < SIDE; x++) {
            int64_t down = y, right = x;
            if (backward) {
                down = row_phase + 1 - y, right = column_phase + 1 - x;
                if (down % stride || right % stride) continue;
                down = 1 + down / stride, right = 1 + right / stride;
            }
            pattern->offsets[pattern->taps] = (down * padded_columns + right) * from->channels;
            pattern->matrices[pattern->taps++] = y * SIDE + x;
        }
}

/* to = the convolution of `from`; backward: `from` is the output's gradient, `to` the input's, and the
 * kernels' matrices come transposed: (group, 3, 3, out, in). to's channels are a multiple of LANES;
 * kernel_stride: floats from one group's kernel to the next, 0 where they share one. Returns 1 where there is
 * no memory for the copies.
 */
int convolve(
    const float *from_values, const float *kernels, float *to_values, int64_t groups, int64_t images,
    int64_t from_rows, int64_t from_columns, int64_t from_channels, int64_t to_rows,
    int64_t to_columns, int64_t to_channels, int64_t kernel_stride, int64_t stride, int64_t backward,
    int64_t threads
) {
    Maps from = {groups, images, from_rows, from_columns, from_channels};
    Maps to = {groups, images, to_rows, to_columns, to_channels};
    int64_t together = images_together(&from), chunks = (images + together - 1) / together;
    int64_t from_image = from_rows * from_columns * from_channels;
    int64_t to_image = to_rows * to_columns * to_channels;
    int64_t phases = backward ? stride : 1;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
    for (int64_t group = 0; group < groups; group++) {
        float *padded = calloc(together * padded_size(&from), sizeof(float));
        int64_t *indices = malloc(2 * together * to_rows * to_columns * sizeof(int64_t));
        if (!padded || !indices) failed = 1;
        for (int64_t chunk = 0; chunk < chunks && !failed; chunk++) {
            int64_t first = chunk * together, count = images - first;
            count = count < together ? count : together;
            first += group * images;
            copy_inside(&from, from_values + first * from_image, count, padded);
            Pattern pattern = {.reads = indices, .writes = indices + together * to_rows * to_columns};
            for (int64_t row_phase = 0; row_phase < phases; row_phase++)
                for (int64_t column_phase = 0; column_phase < phases; column_phase++) {
                    fill_pattern(&pattern, &from, &to, count, stride, backward, row_phase, column_phase);
                    if (pattern.pixels)
                        sum_pattern(
                            &pattern, padded, from_channels, kernels + group * kernel_stride, to_channels,
                            to_values + first * to_image
                        );
                }
        }
        free(padded);
        free(indices);
    }
    return failed;
}

/* Add what `pixels` pixels give to `rows` rows (channels of the maps) of a tap's matrix. */
static inline __attribute__((always_inline)) void add_tile(
    const float *padded, const int64_t *reads, const float *gradient, int64_t pixels, int64_t width,
    float *matrix, int rows, int vectors
) {
    lanes sums[CHANNELS][VECTORS];
    for (int row = 0; row < rows; row++)
        for (int vector = 0; vector < vectors; vector++) sums[row][vector] = (lanes){0};
    for (int64_t pixel = 0; pixel < pixels; pixel++, gradient += width) {
        const float *channel = padded + reads[pixel];
        lanes values[VECTORS];
#pragma GCC unroll 8
        for (int vector = 0; vector < vectors; vector++)
            values[vector] = *(const lanes *)(gradient + vector * LANES);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
#pragma GCC unroll 8
            for (int vector = 0; vector < vectors; vector++)
                sums[row][vector] += channel[row] * values[vector];
        }
    }
    for (int row = 0; row < rows; row++)
        for (int vector = 0; vector < vectors; vector++)
            *(lanes *)(matrix + row * width + vector * LANES) += sums[row][vector];
}

static inline __attribute__((always_inline)) void add_rows(
    const float *padded, const int64_t *reads, const float *gradient, int64_t pixels, int64_t width,
    float *matrix, int rows, int vectors
) {
    int64_t done = 0;
    for (; done + vectors * LANES <= width; done += vectors * LANES)
        add_tile(padded, reads, gradient + done, pixels, width, matrix + done, rows, vectors);
    for (; done < width; done += LANES)
        add_tile(padded, reads, gradient + done, pixels, width, matrix + done, rows, 1);
}

/* The kernels' gradients; the gradient's channels are a multiple of LANES. Returns as `convolve` does. */
int kernel_gradient(
    const float *maps_values, const float *gradient, float *kernels, int64_t groups, int64_t images,
    int64_t rows, int64_t columns, int64_t channels, int64_t out_rows, int64_t out_columns,
    int64_t width, int64_t stride, int64_t threads
) {
    Maps maps = {groups, images, rows, columns, channels};
    Maps out = {groups, images, out_rows, out_columns, width};
    int64_t together = images_together(&maps), out_pixels = out_rows * out_columns;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
    for (int64_t group = 0; group < groups; group++) {
        float *kernel = kernels + group * TAPS * channels * width;
        memset(kernel, 0, sizeof(float) * TAPS * channels * width);
        float *padded = calloc(together * padded_size(&maps), sizeof(float));
        int64_t *indices = malloc(2 * together * out_pixels * sizeof(int64_t));
        if (!padded || !indices) failed = 1;
        for (int64_t first = 0; first < images && !failed; first += together) {
            int64_t count = images - first < together ? images - first : together;
            int64_t before = group * images + first;
            copy_inside(&maps, maps_values + before * rows * columns * channels, count, padded);
            Pattern pattern = {.reads = indices, .writes = indices + together * out_pixels};
            fill_pattern(&pattern, &maps, &out, count, stride, 0, 0, 0);
            const float *values = gradient + before * out_pixels * width;
            for (int64_t block = 0; block < pattern.pixels; block += BLOCK) {
                int64_t pixels = pattern.pixels - block < BLOCK ? pattern.pixels - block : BLOCK;
                const int64_t *reads = pattern.reads + block;
                for (int tap = 0; tap < TAPS; tap++) {
                    const float *corner = padded + pattern.offsets[tap];
                    float *matrix = kernel + tap * channels * width;
                    int64_t channel = 0;
                    for (; channel + CHANNELS <= channels; channel += CHANNELS)
                        add_rows(
                            corner + channel, reads, values + block * width, pixels, width,
                            matrix + channel * width, CHANNELS, NARROW
                        );
                    for (; channel < channels; channel++)
                        add_rows(
                            corner + channel, reads, values + block * width, pixels, width,
                            matrix + channel * width, 1, VECTORS
                        );
                }
            }
        }
        free(padded);
        free(indices);
    }
    return failed;
}

/* Channels come in vectors of so many. */
int lanes_of_a_vector(void) { return LANES; }
