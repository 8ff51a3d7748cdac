/* 3x3 convolutions (stride 1, padded by one) with 16 products where the definition takes 36: Lavin and Gray
   2016, "Fast Algorithms for Convolutional Neural Networks", F(2x2, 3x3); and the gradient by the weights.

   Maps are float32 in channels-last order, [images][height][width][channels], channels a multiple of LANES. The
   4x4 window around each 2x2 tile of the output is transformed; so are the weights; the transforms meet in 16
   matrix products over the channels, of many tiles at a time; what comes out is transformed back. With

     B' = 1  0 -1  0      G = 1    0    0        A' = 1  1  1  0
          0  1  1  0          1/2  1/2  1/2           0  1 -1 -1
          0 -1  1  0          1/2 -1/2  1/2
          0  1  0 -1          0    0    1

   a tile is A' [(G w G') . (B' x B)] A, summed over channels. The gradient by the weights is therefore
   G' [(B' x B) . (A y A')] G of the output's gradient y, summed over tiles.

   Work is cut into pieces of which each is computed in the same way by whatever thread. */

#if defined(__clang__)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* As many sums as the processor has registers for, less what is multiplied: ROWS times VECTORS of the maps,
   CHANNELS times NARROW of the weights' gradient. */
#if defined(__AVX512F__)
enum { LANES = 16, VECTORS = 4, ROWS = 7, NARROW = 2, CHANNELS = 8 };
#elif defined(__AVX__)
enum { LANES = 8, VECTORS = 2, ROWS = 6, NARROW = 2, CHANNELS = 4 };
#else
enum { LANES = 4, VECTORS = 2, ROWS = 4, NARROW = 2, CHANNELS = 4 };
#endif

enum {
    POINTS = 16,   /* of a transform, 4x4 */
    TOGETHER = 56, /* tiles whose transforms stay in the second-level cache; with some over, see `multiply` */
    ROOM = TOGETHER + 7, /* as in winograd.py */
};

#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    int64_t images, height, width, from, to; /* channels */
} shape;

INLINE lanes load(const float *from) { return *(const lanes *)from; }
INLINE void store(lanes values, float *to) { *(lanes *)to = values; }

static int64_t tiles_down(const shape *s) { return (s->height + 1) / 2; }
static int64_t tiles_across(const shape *s) { return (s->width + 1) / 2; }
static int64_t tiles(const shape *s) { return s->images * tiles_down(s) * tiles_across(s); }

/* Where the side x side values of a tile are that begin so many (0 or -1) before it; NULL outside the map. */
static void find(const shape *s, const float *maps, int64_t channels, int64_t tile, int side, int before,
                 const float **at)
{
    const int64_t of_image = tiles_down(s) * tiles_across(s), in_image = tile % of_image,
                  image = tile / of_image;
    const int64_t top = in_image / tiles_across(s) * 2 - before,
                  left = in_image % tiles_across(s) * 2 - before;
    for (int i = 0; i < side * side; i++) {
        const int64_t y = top + i / side, x = left + i % side;
        const int inside = y >= 0 && y < s->height && x >= 0 && x < s->width;
        at[i] = inside ? maps + ((image * s->height + y) * s->width + x) * channels : NULL;
    }
}

/* --- Transforms: of one tile, for all channels. A point's matrix begins every `apart` floats. ------ */

INLINE lanes load_inside(const float *at, int64_t c) { return at ? load(at + c) : (lanes){0}; }

static void transform_window(const float *const *at, int64_t channels, float *to, int64_t apart)
{
    for (int64_t c = 0; c < channels; c += LANES) {
        lanes rows[4][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const lanes a = load_inside(at[j], c), b = load_inside(at[4 + j], c);
            const lanes d = load_inside(at[8 + j], c), e = load_inside(at[12 + j], c);
            rows[0][j] = a - d, rows[1][j] = b + d, rows[2][j] = d - b, rows[3][j] = b - e;
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const lanes *row = rows[i];
            store(row[0] - row[2], to + (4 * i) * apart + c);
            store(row[1] + row[2], to + (4 * i + 1) * apart + c);
            store(row[2] - row[1], to + (4 * i + 2) * apart + c);
            store(row[1] - row[3], to + (4 * i + 3) * apart + c);
        }
    }
}

static void transform_back(const float *from, int64_t apart, int64_t channels, float *const *at)
{
    for (int64_t c = 0; c < channels; c += LANES) {
        lanes rows[2][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const lanes a = load(from + j * apart + c), b = load(from + (4 + j) * apart + c);
            const lanes d = load(from + (8 + j) * apart + c), e = load(from + (12 + j) * apart + c);
            rows[0][j] = a + b + d, rows[1][j] = b - d - e;
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const lanes *row = rows[i];
            if (at[2 * i])
                store(row[0] + row[1] + row[2], at[2 * i] + c);
            if (at[2 * i + 1])
                store(row[1] - row[2] - row[3], at[2 * i + 1] + c);
        }
    }
}

static void transform_gradient(const float *const *at, int64_t channels, float *to, int64_t apart)
{
    for (int64_t c = 0; c < channels; c += LANES) {
        lanes rows[4][2];
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            const lanes a = load_inside(at[j], c), b = load_inside(at[2 + j], c);
            rows[0][j] = a, rows[1][j] = a + b, rows[2][j] = a - b, rows[3][j] = -b;
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const lanes *row = rows[i];
            store(row[0], to + (4 * i) * apart + c);
            store(row[0] + row[1], to + (4 * i + 1) * apart + c);
            store(row[0] - row[1], to + (4 * i + 2) * apart + c);
            store(-row[1], to + (4 * i + 3) * apart + c);
        }
    }
}

/* weights: [3][3][size]; to: [4][4][size]. */
static void transform_weights(const float *weights, int64_t size, float *to)
{
    for (int64_t i = 0; i < size; i++) {
        float rows[4][3];
        for (int j = 0; j < 3; j++) {
            const float a = weights[j * size + i], b = weights[(3 + j) * size + i];
            const float d = weights[(6 + j) * size + i];
            rows[0][j] = a, rows[1][j] = (a + b + d) / 2, rows[2][j] = (a - b + d) / 2, rows[3][j] = d;
        }
        for (int k = 0; k < 4; k++) {
            const float *row = rows[k];
            to[4 * k * size + i] = row[0];
            to[(4 * k + 1) * size + i] = (row[0] + row[1] + row[2]) / 2;
            to[(4 * k + 2) * size + i] = (row[0] - row[1] + row[2]) / 2;
            to[(4 * k + 3) * size + i] = row[2];
        }
    }
}

/* points: [4][4][size]; weights: [3][3][size]. */
static void transform_weights_back(const float *points, int64_t size, float *weights)
{
    for (int64_t i = 0; i < size; i++) {
        float rows[3][4];
        for (int j = 0; j < 4; j++) {
            const float a = points[j * size + i], b = points[(4 + j) * size + i];
            const float d = points[(8 + j) * size + i], e = points[(12 + j) * size + i];
            rows[0][j] = a + (b + d) / 2, rows[1][j] = (b - d) / 2, rows[2][j] = (b + d) / 2 + e;
        }
        for (int k = 0; k < 3; k++) {
            const float *row = rows[k];
            weights[3 * k * size + i] = row[0] + (row[1] + row[2]) / 2;
            weights[(3 * k + 1) * size + i] = (row[1] - row[2]) / 2;
            weights[(3 * k + 2) * size + i] = (row[1] + row[2]) / 2 + row[3];
        }
    }
}

/* --- Products --------------------------------------------------------------------------------------------- */

INLINE void multiply_tile(const int vectors, const float *left, const float *right, int64_t from, int64_t to,
                          float *out)
{
    lanes sums[ROWS][VECTORS];
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < vectors; v++)
            sums[row][v] = (lanes){0};
    for (int64_t channel = 0; channel < from; channel++, right += to) {
        lanes weights[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            weights[v] = load(right + v * LANES);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sums[row][v] += left[row * from + channel] * weights[v];
    }
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < vectors; v++)
            store(sums[row][v], out + row * to + v * LANES);
}

/* out [rows][to] = left [rows][from] right [from][to]; up to ROWS - 1 rows more are computed, of whatever is
   there, which nobody reads. */
static void multiply(const float *left, const float *right, int64_t rows, int64_t from, int64_t to,
                     float *out)
{
    int64_t done = 0;
    for (; done + VECTORS * LANES <= to; done += VECTORS * LANES)
        for (int64_t row = 0; row < rows; row += ROWS)
            multiply_tile(VECTORS, left + row * from, right + done, from, to, out + row * to + done);
    for (; done < to; done += LANES)
        for (int64_t row = 0; row < rows; row += ROWS)
            multiply_tile(1, left + row * from, right + done, from, to, out + row * to + done);
}

INLINE void add_tile(const int vectors, const float *left, const float *right, int64_t rows, int64_t from,
                     int64_t to, float *out)
{
    lanes sums[CHANNELS][NARROW];
    for (int channel = 0; channel < CHANNELS; channel++)
        for (int v = 0; v < vectors; v++)
            sums[channel][v] = load(out + channel * to + v * LANES);
    for (int64_t row = 0; row < rows; row++, left += from, right += to) {
        lanes values[NARROW];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            values[v] = load(right + v * LANES);
#pragma GCC unroll 8
        for (int channel = 0; channel < CHANNELS; channel++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sums[channel][v] += left[channel] * values[v];
    }
    for (int channel = 0; channel < CHANNELS; channel++)
        for (int v = 0; v < vectors; v++)
            store(sums[channel][v], out + channel * to + v * LANES);
}

/* out [from][to] += the transpose of left [rows][from], times right [rows][to]. */
static void add_product(const float *left, const float *right, int64_t rows, int64_t from, int64_t to,
                        float *out)
{
    for (int64_t channel = 0; channel < from; channel += CHANNELS) {
        int64_t done = 0;
        for (; done + NARROW * LANES <= to; done += NARROW * LANES)
            add_tile(NARROW, left + channel, right + done, rows, from, to, out + channel * to + done);
        for (; done < to; done += LANES)
            add_tile(1, left + channel, right + done, rows, from, to, out + channel * to + done);
    }
}

/* --- What is called --------------------------------------------------------------------------------------- */

/* out = the convolution of maps by weights: [3][3][from][to].
   points: [16][from][to]; room: [threads][16][ROOM][from + to]. */
int convolve(int64_t threads, int64_t images, int64_t height, int64_t width, int64_t from, int64_t to,
             const float *maps, const float *weights, float *out, float *points, float *room)
{
    const shape s = {images, height, width, from, to};
    const int64_t blocks = (tiles(&s) + TOGETHER - 1) / TOGETHER;
    transform_weights(weights, from * to, points);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t thread = 0; thread < threads; thread++) {
        float *left = room + thread * POINTS * ROOM * (from + to), *product = left + POINTS * ROOM * from;
        for (int64_t block = thread * blocks / threads; block < (thread + 1) * blocks / threads; block++) {
            const int64_t first = block * TOGETHER, rest = tiles(&s) - first;
            const int64_t count = rest < TOGETHER ? rest : TOGETHER;
            const float *at[16];
            for (int64_t tile = 0; tile < count; tile++) {
                find(&s, maps, from, first + tile, 4, 1, at);
                transform_window(at, from, left + tile * from, ROOM * from);
            }
            for (int point = 0; point < POINTS; point++)
                multiply(left + point * ROOM * from, points + point * from * to, count, from, to,
                         product + point * ROOM * to);
            for (int64_t tile = 0; tile < count; tile++) {
                find(&s, out, to, first + tile, 2, 0, at);
                transform_back(product + tile * to, ROOM * to, to, (float *const *)at);
            }
        }
    }
    return 0;
}

/* weights [3][3][from][to] = the gradient by them, given the output's. The tiles are cut into `parts`, each
   summed apart. sums: [parts][16][from][to]; room: [parts][16][ROOM][from + to]. */
int weights_gradient(int64_t threads, int64_t images, int64_t height, int64_t width, int64_t from, int64_t to,
                     int64_t parts, const float *maps, const float *gradient, float *weights, float *sums,
                     float *room)
{
    const shape s = {images, height, width, from, to};
    const int64_t blocks = (tiles(&s) + TOGETHER - 1) / TOGETHER, size = from * to;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        float *left = room + part * POINTS * ROOM * (from + to), *right = left + POINTS * ROOM * from;
        float *sum = sums + part * POINTS * size;
        memset(sum, 0, sizeof(float) * (size_t)(POINTS * size));
        for (int64_t block = part * blocks / parts; block < (part + 1) * blocks / parts; block++) {
            const int64_t first = block * TOGETHER, rest = tiles(&s) - first;
            const int64_t count = rest < TOGETHER ? rest : TOGETHER;
            const float *at[16];
            for (int64_t tile = 0; tile < count; tile++) {
                find(&s, maps, from, first + tile, 4, 1, at);
                transform_window(at, from, left + tile * from, ROOM * from);
                find(&s, gradient, to, first + tile, 2, 0, at);
                transform_gradient(at, to, right + tile * to, ROOM * to);
            }
            for (int point = 0; point < POINTS; point++)
                add_product(left + point * ROOM * from, right + point * ROOM * to, count, from, to,
                            sum + point * size);
        }
    }
    for (int64_t part = 1; part < parts; part++)
        for (int64_t i = 0; i < POINTS * size; i++)
            sums[i] += sums[part * POINTS * size + i];
    transform_weights_back(sums, size, weights);
    return 0;
}
