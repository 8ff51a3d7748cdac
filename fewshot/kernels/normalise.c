/* Batch norm, ReLU and 2x2 max pooling as one operation, with its gradient and the gradient of that.

   Maps are float32 in channels-last order: [group * images][height][width][channels], the images of a group
   side by side; each group is normalised by its own statistics. Channels are a multiple of LANES. Sums are
   float32 within a row, double between rows, and are combined image by image, so that the result does not
   depend on the number of threads.

   Per channel, with N positions in a group, x the maps, m their mean and r = 1 / sqrt(variance + epsilon):

     n = (x - m) r,  y = scale n + shift,  out = S max(y, 0)

   where S picks the first greatest of each 2x2 window (or everything, if there is no pooling). `code` keeps
   which of the window's positions it was, or CLOSED where the ReLU lets nothing through. For the gradient g
   of `out`, let u be g put back at the picked positions, zero elsewhere, A = mean(u), B = mean(u n):

     d_shift = N A,  d_scale = N B,  d_x = scale r (u - A - n B)

   For the gradients v, v_scale, v_shift of these three, V = mean(v), W = mean(v n), Q = mean(v u):

     dd_g     = scale r (v - V - n W) + v_scale n + v_shift, at the picked positions
     dd_scale = N r T,  T = Q - V A - W B
     dd_x     = r (h - mean(h) - n mean(h n)) - scale r^2 T n,  h = -scale r (B v + W u) + v_scale u
*/

#if defined(__clang__)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#define EPSILON 1e-5
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, CLOSED = 255 };

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t masks __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

typedef struct {
    int64_t groups, images, height, width, channels, window; /* window: 2 with pooling, else 1 */
} shape;

static int64_t positions(const shape *s) { return s->height * s->width; }
static int64_t cells(const shape *s) { return (s->height / s->window) * (s->width / s->window); }

INLINE lanes load(const float *from) { return *(const lanes *)from; }
INLINE void store(lanes values, float *to) { *(lanes *)to = values; }
INLINE masks places(const uint8_t *code) { return __builtin_convertvector(*(const bytes *)code, masks); }
INLINE lanes only(masks which, lanes values) { return (lanes)(which & (masks)values); }
INLINE lanes choose(masks which, lanes yes, lanes no)
{
    return (lanes)((which & (masks)yes) | (~which & (masks)no));
}

INLINE void add(lanes values, float *to) { store(load(to) + values, to); }

/* Adds a row's sums to the image's and begins the next row. */
static void finish_row(int64_t count, float *row, double *totals)
{
    for (int64_t i = 0; i < count; i++) {
        totals[i] += row[i];
        row[i] = 0;
    }
}

/* The sum over a group's images, in their order; an image's: [terms][channels]. */
static void sum_images(const shape *s, int64_t group, int64_t terms, const double *parts, double *total)
{
    const int64_t count = terms * s->channels;
    memset(total, 0, sizeof(double) * (size_t)count);
    for (int64_t image = group * s->images; image < (group + 1) * s->images; image++)
        for (int64_t i = 0; i < count; i++)
            total[i] += parts[image * count + i];
}

/* --- Statistics ------------------------------------------------------------------------------------------ */

/* Mean and sum of squared deviations of one image, row by row; room: [2][channels]. */
static void image_moments(const shape *s, const float *maps, double *mean, double *squares, float *room)
{
    const int64_t channels = s->channels, size = s->width * channels;
    float *centre = room, *sum = room + channels;
    memset(mean, 0, sizeof(double) * (size_t)channels);
    memset(squares, 0, sizeof(double) * (size_t)channels);
    for (int64_t y = 0; y < s->height; y++) {
        const float *row = maps + y * size;
        memset(sum, 0, sizeof(float) * (size_t)channels);
        for (int64_t x = 0; x < size; x += channels)
            for (int64_t c = 0; c < channels; c += LANES)
                add(load(row + x + c), sum + c);
        for (int64_t c = 0; c < channels; c++) {
            centre[c] = sum[c] / (float)s->width;
            sum[c] = 0;
        }
        for (int64_t x = 0; x < size; x += channels)
            for (int64_t c = 0; c < channels; c += LANES) {
                const lanes away = load(row + x + c) - load(centre + c);
                add(away * away, sum + c);
            }
        /* What joins has a mean of its own (Chan, Golub and LeVeque 1979). */
        const double share = 1.0 / (double)(y + 1), weight = share * (double)(y * s->width);
        for (int64_t c = 0; c < channels; c++) {
            const double away = centre[c] - mean[c];
            mean[c] += away * share;
            squares[c] += sum[c] + away * away * weight;
        }
    }
}

/* Over the images of each group: mean and (biased) variance, [groups][channels]; room: [2][channels]. */
static void group_moments(const shape *s, const double *parts, double *room, float *mean, float *variance)
{
    const int64_t channels = s->channels;
    const double count = (double)positions(s);
    for (int64_t group = 0; group < s->groups; group++) {
        double *all = room, *squares = room + channels;
        memset(room, 0, sizeof(double) * (size_t)(2 * channels));
        for (int64_t image = 0; image < s->images; image++) {
            const double *part = parts + (group * s->images + image) * 2 * channels;
            const double share = 1.0 / (double)(image + 1), weight = share * (double)image * count;
            for (int64_t c = 0; c < channels; c++) {
                const double away = part[c] - all[c];
                all[c] += away * share;
                squares[c] += part[channels + c] + away * away * weight;
            }
        }
        for (int64_t c = 0; c < channels; c++) {
            mean[group * channels + c] = (float)all[c];
            variance[group * channels + c] = (float)(squares[c] / ((double)s->images * count));
        }
    }
}

/* --- Windows --------------------------------------------------------------------------------------------- */

/* Where a window's positions are, from its first one, in floats. */
#define POSITIONS(s) {0, (s)->channels, (s)->width * (s)->channels, ((s)->width + 1) * (s)->channels}

/* Of row y of windows: the offsets of a first position and of what a window becomes, for each vector from c. */
#define FOR_EACH_WINDOW(s, y, c, x, o)                                                                       \
    for (int64_t column_ = 0; column_ < (s)->width / (s)->window; column_++)                                 \
        for (int64_t c = 0, x = ((y) * (s)->width + column_) * (s)->window * (s)->channels,                  \
                  o = ((y) * ((s)->width / (s)->window) + column_) * (s)->channels;                          \
             c < (s)->channels; c += LANES, x += LANES, o += LANES)

/* The offsets of the pixels of an odd last row and column, which are in no window. */
#define FOR_EACH_LEFT_OVER(s, c, x)                                                                          \
    for (int64_t row_ = 0; row_ < (s)->height; row_++)                                                       \
        for (int64_t column_ = row_ / (s)->window < (s)->height / (s)->window                                \
                                ? (s)->width / (s)->window * (s)->window                                     \
                                : 0;                                                                         \
             column_ < (s)->width; column_++)                                                                \
            for (int64_t c = 0, x = (row_ * (s)->width + column_) * (s)->channels; c < (s)->channels;        \
                 c += LANES, x += LANES)

/* --- Forward --------------------------------------------------------------------------------------------- */

INLINE void image_forward(const shape *s, const int count, const float *maps, const float *mean,
                          const float *slopes, const float *shifts, float *out, uint8_t *code)
{
    const int64_t at[4] = POSITIONS(s);
    for (int64_t y = 0; y < s->height / s->window; y++)
        FOR_EACH_WINDOW(s, y, c, x, o)
        {
            const lanes centre = load(mean + c), slope = load(slopes + c), shift = load(shifts + c);
            lanes best = (load(maps + x) - centre) * slope + shift;
            masks place = {0};
            for (int k = 1; k < count; k++) {
                const lanes value = (load(maps + x + at[k]) - centre) * slope + shift;
                const masks better = (value > best) | (value != value);
                best = choose(better, value, best);
                place = (better & k) | (~better & place);
            }
            const masks open = best > 0;
            store(only(~(best <= 0), best), out + o); /* so that NaN stays NaN */
            *(bytes *)(code + o) = __builtin_convertvector((open & place) | (~open & CLOSED), bytes);
        }
}

/* max(slope (x - mean) + shift, 0), pooled; mean, slope and shift: [groups][channels]. */
int affine_relu(int64_t threads, int64_t groups, int64_t images, int64_t height, int64_t width,
                int64_t channels, int64_t window, const float *maps, const float *mean, const float *slope,
                const float *shift, float *out, uint8_t *code)
{
    const shape s = {groups, images, height, width, channels, window};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < groups * images; image++) {
        const float *map = maps + image * positions(&s) * channels;
        const int64_t i = image / images * channels, o = image * cells(&s) * channels;
        if (window == 2)
            image_forward(&s, 4, map, mean + i, slope + i, shift + i, out + o, code + o);
        else
            image_forward(&s, 1, map, mean + i, slope + i, shift + i, out + o, code + o);
    }
    return 0;
}

/* mean, variance, spread (r above): [groups][channels].
   scratch: [groups * images + 1][2][channels] doubles, then [groups * images + groups][2][channels] floats. */
int forward(int64_t threads, int64_t groups, int64_t images, int64_t height, int64_t width, int64_t channels,
            int64_t window, const float *maps, const float *scale, const float *shift, float *out,
            uint8_t *code, float *mean, float *variance, float *spread, double *scratch)
{
    const shape s = {groups, images, height, width, channels, window};
    float *rows = (float *)(scratch + (groups * images + 1) * 2 * channels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < groups * images; image++) {
        double *moments = scratch + image * 2 * channels;
        image_moments(&s, maps + image * positions(&s) * channels, moments, moments + channels,
                      rows + image * 2 * channels);
    }
    double *room = scratch + groups * images * 2 * channels;
    group_moments(&s, scratch, room, mean, variance);
    float *slope = rows;
    for (int64_t i = 0; i < groups * channels; i++) {
        spread[i] = (float)(1.0 / sqrt((double)variance[i] + EPSILON));
        slope[i] = scale[i] * spread[i];
    }
    return affine_relu(threads, groups, images, height, width, channels, window, maps, mean, slope, shift,
                       out, code);
}

/* --- Backward -------------------------------------------------------------------------------------------- */

/* totals, and row for a row's: [2][channels], the sums of u and of u (x - m) over one image. */
INLINE void image_sums(const shape *s, const int count, const float *maps, const float *mean,
                       const float *gradient, const uint8_t *code, float *row, double *totals)
{
    const int64_t at[4] = POSITIONS(s), channels = s->channels;
    memset(row, 0, sizeof(float) * (size_t)(2 * channels));
    memset(totals, 0, sizeof(double) * (size_t)(2 * channels));
    for (int64_t y = 0; y < s->height / s->window; y++) {
        FOR_EACH_WINDOW(s, y, c, x, o)
        {
            const masks place = places(code + o);
            lanes picked = load(maps + x);
            for (int k = 1; k < count; k++)
                picked = choose(place == k, load(maps + x + at[k]), picked);
            const lanes g = only(place != CLOSED, load(gradient + o));
            add(g, row + c);
            add(g * (picked - load(mean + c)), row + channels + c);
        }
        finish_row(2 * channels, row, totals);
    }
}

typedef struct { /* per channel; of_x is of x - m */
    const float *of_u, *of_x, *constant;
} terms;

/* d_maps = of_u u + of_x (x - m) + constant. */
INLINE void image_backward(const shape *s, const int count, const float *maps, const float *mean,
                           const float *gradient, const uint8_t *code, terms of, float *d_maps)
{
    const int64_t at[4] = POSITIONS(s);
    for (int64_t y = 0; y < s->height / s->window; y++)
        FOR_EACH_WINDOW(s, y, c, x, o)
        {
            const lanes centre = load(mean + c), of_x = load(of.of_x + c), constant = load(of.constant + c);
            const masks place = places(code + o);
            const lanes g = load(gradient + o) * load(of.of_u + c);
            for (int k = 0; k < count; k++)
                store(only(place == k, g) + ((load(maps + x + at[k]) - centre) * of_x + constant),
                      d_maps + x + at[k]);
        }
    FOR_EACH_LEFT_OVER(s, c, x)
        store((load(maps + x) - load(mean + c)) * load(of.of_x + c) + load(of.constant + c), d_maps + x);
}

/* gradient: of out; d_maps, d_scale, d_shift: what it is made into.
   scratch: as in `forward`. */
int backward(int64_t threads, int64_t groups, int64_t images, int64_t height, int64_t width, int64_t channels,
             int64_t window, const float *gradient, const float *maps, const float *scale, const float *mean,
             const float *spread, const uint8_t *code, float *d_maps, float *d_scale, float *d_shift,
             double *scratch)
{
    const shape s = {groups, images, height, width, channels, window};
    const double count = (double)(images * positions(&s));
    float *rows = (float *)(scratch + (groups * images + 1) * 2 * channels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < groups * images; image++) {
        const float *map = maps + image * positions(&s) * channels, *m = mean + image / images * channels;
        const int64_t o = image * cells(&s) * channels;
        float *row = rows + image * 2 * channels;
        double *totals = scratch + image * 2 * channels;
        if (window == 2)
            image_sums(&s, 4, map, m, gradient + o, code + o, row, totals);
        else
            image_sums(&s, 1, map, m, gradient + o, code + o, row, totals);
    }
    double *sums = scratch + groups * images * 2 * channels;
    float *of_u = rows, *of_x = of_u + groups * channels, *constant = of_x + groups * channels;
    for (int64_t group = 0; group < groups; group++) {
        sum_images(&s, group, 2, scratch, sums);
        for (int64_t c = 0; c < channels; c++) {
            const int64_t i = group * channels + c;
            const double r = spread[i], weighted = sums[channels + c] * r;
            d_shift[i] = (float)sums[c];
            d_scale[i] = (float)weighted;
            of_u[i] = (float)(scale[i] * r);
            of_x[i] = (float)(-scale[i] * r * r * weighted / count);
            constant[i] = (float)(-scale[i] * r * sums[c] / count);
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < groups * images; image++) {
        const int64_t x = image * positions(&s) * channels, o = image * cells(&s) * channels;
        const int64_t i = image / images * channels;
        const terms of = {of_u + i, of_x + i, constant + i};
        if (window == 2)
            image_backward(&s, 4, maps + x, mean + i, gradient + o, code + o, of, d_maps + x);
        else
            image_backward(&s, 1, maps + x, mean + i, gradient + o, code + o, of, d_maps + x);
    }
    return 0;
}

/* --- Backward of the backward ---------------------------------------------------------------------------- */

/* totals, and row for a row's: [3][channels], the sums of v, of v (x - m) and of v u over one image. */
INLINE void image_sums_twice(const shape *s, const int count, const float *maps, const float *mean,
                             const float *gradient, const uint8_t *code, const float *v, float *row,
                             double *totals)
{
    const int64_t at[4] = POSITIONS(s), channels = s->channels;
    memset(row, 0, sizeof(float) * (size_t)(3 * channels));
    memset(totals, 0, sizeof(double) * (size_t)(3 * channels));
    for (int64_t y = 0; y < s->height / s->window; y++) {
        FOR_EACH_WINDOW(s, y, c, x, o)
        {
            const lanes centre = load(mean + c);
            const masks place = places(code + o);
            lanes plain = {0}, weighted = {0}, picked = {0};
            for (int k = 0; k < count; k++) {
                const lanes value = load(v + x + at[k]);
                plain += value;
                weighted += value * (load(maps + x + at[k]) - centre);
                picked = choose(place == k, value, picked);
            }
            add(plain, row + c);
            add(weighted, row + channels + c);
            add(picked * load(gradient + o), row + 2 * channels + c);
        }
        finish_row(3 * channels, row, totals);
    }
    FOR_EACH_LEFT_OVER(s, c, x)
    {
        add(load(v + x), row + c);
        add(load(v + x) * (load(maps + x) - load(mean + c)), row + channels + c);
    }
    finish_row(3 * channels, row, totals);
}

typedef struct { /* per channel; of_x is of x - m */
    const float *of_v, *of_u, *of_x, *constant; /* of dd_maps */
    const float *picked_of_v, *picked_constant; /* of dd_gradient, whose of_x is the of_u above */
} terms_twice;

INLINE void image_backward_twice(const shape *s, const int count, const float *maps, const float *mean,
                                 const float *gradient, const uint8_t *code, const float *v, terms_twice of,
                                 float *dd_maps, float *dd_gradient)
{
    const int64_t at[4] = POSITIONS(s);
    for (int64_t y = 0; y < s->height / s->window; y++)
        FOR_EACH_WINDOW(s, y, c, x, o)
        {
            const lanes centre = load(mean + c), of_v = load(of.of_v + c), of_u = load(of.of_u + c);
            const lanes of_x = load(of.of_x + c), constant = load(of.constant + c);
            const lanes picked_of_v = load(of.picked_of_v + c),
                        picked_constant = load(of.picked_constant + c);
            const masks place = places(code + o);
            const lanes g = load(gradient + o) * of_u;
            lanes picked = {0};
            for (int k = 0; k < count; k++) {
                const lanes away = load(maps + x + at[k]) - centre, value = load(v + x + at[k]);
                const lanes here = picked_of_v * value + of_u * away + picked_constant;
                picked = choose(place == k, here, picked);
                store(only(place == k, g) + of_v * value + of_x * away + constant, dd_maps + x + at[k]);
            }
            store(picked, dd_gradient + o);
        }
    FOR_EACH_LEFT_OVER(s, c, x)
        store(load(of.of_v + c) * load(v + x) + load(of.of_x + c) * (load(maps + x) - load(mean + c)) +
                  load(of.constant + c),
              dd_maps + x);
}

/* v, v_scale, v_shift: gradients of `backward`'s d_maps, d_scale and d_shift, of which the last two are given.
   scratch: as in `forward`, but [3]. */
int backward_twice(int64_t threads, int64_t groups, int64_t images, int64_t height, int64_t width,
                   int64_t channels, int64_t window, const float *v, const float *v_scale,
                   const float *v_shift, const float *gradient, const float *maps, const float *scale,
                   const float *mean, const float *spread, const uint8_t *code, const float *d_scale,
                   const float *d_shift, float *dd_gradient, float *dd_maps, float *dd_scale, double *scratch)
{
    const shape s = {groups, images, height, width, channels, window};
    const double count = (double)(images * positions(&s));
    float *rows = (float *)(scratch + (groups * images + 1) * 3 * channels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < groups * images; image++) {
        const int64_t x = image * positions(&s) * channels, o = image * cells(&s) * channels;
        const float *m = mean + image / images * channels;
        float *row = rows + image * 3 * channels;
        double *totals = scratch + image * 3 * channels;
        if (window == 2)
            image_sums_twice(&s, 4, maps + x, m, gradient + o, code + o, v + x, row, totals);
        else
            image_sums_twice(&s, 1, maps + x, m, gradient + o, code + o, v + x, row, totals);
    }
    double *sums = scratch + groups * images * 3 * channels;
    const int64_t size = groups * channels;
    float *of_v = rows, *of_u = of_v + size, *of_x = of_u + size;
    float *constant = of_x + size, *picked_of_v = constant + size, *picked_constant = picked_of_v + size;
    for (int64_t group = 0; group < groups; group++) {
        sum_images(&s, group, 3, scratch, sums);
        for (int64_t c = 0; c < channels; c++) {
            const int64_t i = group * channels + c;
            const double r = spread[i], factor = scale[i] * r;
            const double A = d_shift[i] / count, B = d_scale[i] / count;
            const double V = sums[c] / count, W = sums[channels + c] * r / count;
            const double T = sums[2 * channels + c] / count - V * A - W * B;
            const double of_u_in_h = v_scale[i] - factor * W;
            const double mean_h = of_u_in_h * A - factor * B * V;
            const double mean_hn = of_u_in_h * B - factor * B * W;
            dd_scale[i] = (float)(count * r * T);
            of_v[i] = (float)(-factor * B * r);
            of_u[i] = (float)(r * of_u_in_h);
            of_x[i] = (float)(-r * r * (mean_hn + factor * T));
            constant[i] = (float)(-r * mean_h);
            picked_of_v[i] = (float)factor;
            picked_constant[i] = (float)(v_shift[i] - factor * V);
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < groups * images; image++) {
        const int64_t x = image * positions(&s) * channels, o = image * cells(&s) * channels;
        const int64_t i = image / images * channels;
        const terms_twice of = {of_v + i,     of_u + i,        of_x + i,
                                constant + i, picked_of_v + i, picked_constant + i};
        if (window == 2)
            image_backward_twice(&s, 4, maps + x, mean + i, gradient + o, code + o, v + x, of, dd_maps + x,
                                 dd_gradient + o);
        else
            image_backward_twice(&s, 1, maps + x, mean + i, gradient + o, code + o, v + x, of, dd_maps + x,
                                 dd_gradient + o);
    }
    return 0;
}
