/* Batch norm, ReLU and 2x2 max pooling as one operation, with its gradient and the gradient of that.

   Maps are float32 in channels-last order: [group * images][height][width][channels], the images of a group
   side by side; each group is normalised by its own statistics. Sums are float32 within a few rows, double
   between them, and are combined image by image, so the result does not depend on the number of threads.

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

#ifdef __GNUC__
#pragma GCC optimize("fp-contract=fast")
#endif

#include <math.h>
#include <stdint.h>

#define EPSILON 1e-5
enum { CLOSED = 255, CHUNK = 4096, LONGEST = 256 };

typedef struct {
    long groups, images, height, width, channels, window; /* window: 2 with pooling, else 1 */
} shape;

static long pixels(const shape *s) { return s->height * s->width; }
static long cells(const shape *s) { return (s->height / s->window) * (s->width / s->window); }

/* --- Statistics ------------------------------------------------------------------------------------------ */

/* Mean and sum of squared deviations of one image, in two sweeps over pieces that stay in the first cache. */
static void image_moments(const shape *s, const float *restrict maps, double *restrict mean,
                          double *restrict squares, float *restrict part)
{
    const long channels = s->channels, total = pixels(s);
    long piece = CHUNK / channels;
    piece = piece < 1 ? 1 : piece > LONGEST ? LONGEST : piece;
    float *restrict centre = part, *restrict sum = part + channels;
    for (long c = 0; c < channels; c++)
        mean[c] = squares[c] = 0;
    for (long begin = 0; begin < total; begin += piece) {
        const long count = begin + piece < total ? piece : total - begin;
        const float *restrict rows = maps + begin * channels;
        for (long c = 0; c < channels; c++)
            sum[c] = 0;
        for (long p = 0; p < count; p++)
#pragma omp simd
            for (long c = 0; c < channels; c++)
                sum[c] += rows[p * channels + c];
        for (long c = 0; c < channels; c++) {
            centre[c] = sum[c] / (float)count;
            sum[c] = 0;
        }
        for (long p = 0; p < count; p++)
#pragma omp simd
            for (long c = 0; c < channels; c++) {
                const float deviation = rows[p * channels + c] - centre[c];
                sum[c] += deviation * deviation;
            }
        /* What joins has its own mean (Chan, Golub and LeVeque 1979). */
        const double share = (double)count / (double)(begin + count);
        for (long c = 0; c < channels; c++) {
            const double away = centre[c] - mean[c];
            mean[c] += away * share;
            squares[c] += sum[c] + away * away * share * (double)begin;
        }
    }
}

/* Over the images of each group: mean and (biased) variance, [groups][channels]. */
static void group_moments(const shape *s, const double *image_parts, float *mean, float *variance)
{
    const long channels = s->channels;
    for (long group = 0; group < s->groups; group++)
        for (long c = 0; c < channels; c++) {
            double all = 0, squares = 0;
            for (long image = 0; image < s->images; image++) {
                const double *part = image_parts + (group * s->images + image) * 2 * channels;
                const double share = 1.0 / (double)(image + 1), away = part[c] - all;
                all += away * share;
                squares += part[channels + c] + away * away * share * (double)image * (double)pixels(s);
            }
            mean[group * channels + c] = (float)all;
            variance[group * channels + c] = (float)(squares / (double)(s->images * pixels(s)));
        }
}

/* --- Windows --------------------------------------------------------------------------------------------- */

typedef struct {
    long at[4]; /* where a window's positions are, from its first one, in floats */
} taps;

static taps taps_of(const shape *s)
{
    const long across = s->channels, down = s->width * s->channels;
    return (taps){{0, across, down, down + across}};
}

/* Calls `at_cell(x, o)` with the offsets in an image of a window's first float and of what it becomes. */
#define FOR_EACH_CELL(s, x, o)                                                                                 \
    for (long row_ = 0, o = 0; row_ < (s)->height / (s)->window; row_++)                                       \
        for (long column_ = 0, x = row_ * (s)->window * (s)->width * (s)->channels;                            \
             column_ < (s)->width / (s)->window;                                                               \
             column_++, x += (s)->window * (s)->channels, o += (s)->channels)

/* The pixels of an odd last row and column, which are in no window. */
#define FOR_EACH_LEFT_OVER(s, x)                                                                               \
    for (long row_ = 0; row_ < (s)->height; row_++)                                                            \
        for (long column_ = row_ < (s)->height / (s)->window * (s)->window                                     \
                                ? (s)->width / (s)->window * (s)->window                                       \
                                : 0,                                                                           \
                  x = (row_ * (s)->width + column_) * (s)->channels;                                           \
             column_ < (s)->width; column_++, x += (s)->channels)

#define INLINE static inline __attribute__((always_inline))

/* --- Forward --------------------------------------------------------------------------------------------- */

INLINE void image_forward(const shape *s, const int count, const float *restrict maps,
                          const float *restrict slope, const float *restrict offset, float *restrict out,
                          uint8_t *restrict code)
{
    const taps tap = taps_of(s);
    FOR_EACH_CELL(s, x, o)
    {
#pragma omp simd
        for (long c = 0; c < s->channels; c++) {
            float best = maps[x + c] * slope[c] + offset[c];
            int place = 0;
            for (int k = 1; k < count; k++) {
                const float value = maps[x + tap.at[k] + c] * slope[c] + offset[c];
                const int better = (value > best) | (value != value);
                best = better ? value : best;
                place = better ? k : place;
            }
            out[o + c] = best <= 0 ? 0 : best; /* so that NaN stays NaN */
            code[o + c] = (uint8_t)(best > 0 ? place : CLOSED);
        }
    }
}

/* max(slope x + offset, 0), pooled; slope and offset: [groups][channels]. */
void affine_relu(long threads, long groups, long images, long height, long width, long channels, long window,
                 const float *maps, const float *slope, const float *offset, float *out, uint8_t *code)
{
    const shape s = {groups, images, height, width, channels, window};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < groups * images; image++) {
        const float *map = maps + image * pixels(&s) * channels;
        const long row = image / images * channels, begin = image * cells(&s) * channels;
        if (window == 2)
            image_forward(&s, 4, map, slope + row, offset + row, out + begin, code + begin);
        else
            image_forward(&s, 1, map, slope + row, offset + row, out + begin, code + begin);
    }
}

/* scratch: [groups * images][3][channels] doubles. mean, variance, spread (r above): [groups][channels]. */
void forward(long threads, long groups, long images, long height, long width, long channels, long window,
             const float *maps, const float *scale, const float *shift, float *out, uint8_t *code,
             float *mean, float *variance, float *spread, double *scratch)
{
    const shape s = {groups, images, height, width, channels, window};
    float *part = (float *)(scratch + groups * images * 2 * channels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < groups * images; image++) {
        double *moments = scratch + image * 2 * channels;
        image_moments(&s, maps + image * pixels(&s) * channels, moments, moments + channels,
                      part + image * 2 * channels);
    }
    group_moments(&s, scratch, mean, variance);
    float *slope = part, *offset = part + groups * channels;
    for (long c = 0; c < groups * channels; c++) {
        spread[c] = (float)(1.0 / sqrt((double)variance[c] + EPSILON));
        slope[c] = scale[c] * spread[c];
        offset[c] = shift[c] - mean[c] * slope[c];
    }
    affine_relu(threads, groups, images, height, width, channels, window, maps, slope, offset, out, code);
}

/* --- Backward -------------------------------------------------------------------------------------------- */

/* Adds to total what part holds, [terms][channels], and clears it. */
static void flush(long count, float *restrict part, double *restrict total)
{
    for (long i = 0; i < count; i++) {
        total[i] += part[i];
        part[i] = 0;
    }
}

/* Sums of u and of u (x - m) over one image. */
INLINE void image_sums(const shape *s, const int count, const float *restrict maps,
                       const float *restrict mean, const float *restrict gradient,
                       const uint8_t *restrict code, double *restrict total, float *restrict part)
{
    const taps tap = taps_of(s);
    const long channels = s->channels;
    float *restrict plain = part, *restrict weighted = part + channels;
    for (long i = 0; i < 2 * channels; i++)
        total[i] = part[i] = 0;
    long since = 0;
    FOR_EACH_CELL(s, x, o)
    {
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            const int place = code[o + c];
            float picked = maps[x + c];
            for (int k = 1; k < count; k++)
                picked = place == k ? maps[x + tap.at[k] + c] : picked;
            const float g = place == CLOSED ? 0 : gradient[o + c];
            plain[c] += g;
            weighted[c] += g * (picked - mean[c]);
        }
        if (++since == LONGEST) {
            flush(2 * channels, part, total);
            since = 0;
        }
    }
    flush(2 * channels, part, total);
}

/* out = of_u u + of_x (x - m) + constant, everywhere. */
INLINE void image_backward(const shape *s, const int count, const float *restrict maps,
                           const float *restrict mean, const float *restrict gradient,
                           const uint8_t *restrict code, const float *restrict of_u,
                           const float *restrict of_x, const float *restrict constant, float *restrict out)
{
    const taps tap = taps_of(s);
    const long channels = s->channels;
    FOR_EACH_CELL(s, x, o)
    {
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            const int place = code[o + c];
            const float g = gradient[o + c] * of_u[c];
            for (int k = 0; k < count; k++) {
                const long i = x + tap.at[k] + c;
                out[i] = (place == k ? g : 0) + of_x[c] * (maps[i] - mean[c]) + constant[c];
            }
        }
    }
    if (count > 1)
        FOR_EACH_LEFT_OVER(s, x)
        {
#pragma omp simd
            for (long c = 0; c < channels; c++)
                out[x + c] = of_x[c] * (maps[x + c] - mean[c]) + constant[c];
        }
}

/* The sum over a group's images of one term, in their order. */
static double over_images(const shape *s, const double *totals, long terms, long group, long term, long c)
{
    double sum = 0;
    for (long image = 0; image < s->images; image++)
        sum += totals[((group * s->images + image) * terms + term) * s->channels + c];
    return sum;
}

/* gradient: of out; d_maps, d_scale, d_shift: what it is made into.
   scratch: [groups * images][3][channels] doubles + [groups][2][channels] doubles. */
void backward(long threads, long groups, long images, long height, long width, long channels, long window,
              const float *gradient, const float *maps, const float *scale, const float *mean,
              const float *spread, const uint8_t *code, float *d_maps, float *d_scale, float *d_shift,
              double *scratch)
{
    const shape s = {groups, images, height, width, channels, window};
    const double positions = (double)(images * pixels(&s));
    float *part = (float *)(scratch + groups * images * 2 * channels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < groups * images; image++) {
        const float *map = maps + image * pixels(&s) * channels, *m = mean + image / images * channels;
        const long o = image * cells(&s) * channels;
        double *total = scratch + image * 2 * channels;
        float *p = part + image * 2 * channels;
        if (window == 2)
            image_sums(&s, 4, map, m, gradient + o, code + o, total, p);
        else
            image_sums(&s, 1, map, m, gradient + o, code + o, total, p);
    }
    float *of_u = (float *)(scratch + groups * images * 3 * channels);
    float *of_x = of_u + groups * channels, *constant = of_x + groups * channels;
    for (long group = 0; group < groups; group++)
        for (long c = 0; c < channels; c++) {
            const long i = group * channels + c;
            const double r = spread[i], sum = over_images(&s, scratch, 2, group, 0, c);
            const double weighted = over_images(&s, scratch, 2, group, 1, c) * r;
            d_shift[i] = (float)sum;
            d_scale[i] = (float)weighted;
            of_u[i] = (float)(scale[i] * r);
            of_x[i] = (float)(-scale[i] * r * r * weighted / positions);
            constant[i] = (float)(-scale[i] * r * sum / positions);
        }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < groups * images; image++) {
        const long x = image * pixels(&s) * channels, o = image * cells(&s) * channels;
        const long i = image / images * channels;
        if (window == 2)
            image_backward(&s, 4, maps + x, mean + i, gradient + o, code + o, of_u + i, of_x + i, constant + i,
                           d_maps + x);
        else
            image_backward(&s, 1, maps + x, mean + i, gradient + o, code + o, of_u + i, of_x + i, constant + i,
                           d_maps + x);
    }
}

/* --- Backward of the backward ---------------------------------------------------------------------------- */

/* Sums of v, of v (x - m) and of v u over one image. */
INLINE void image_sums_twice(const shape *s, const int count, const float *restrict maps,
                             const float *restrict mean, const float *restrict gradient,
                             const uint8_t *restrict code, const float *restrict v, double *restrict total,
                             float *restrict part)
{
    const taps tap = taps_of(s);
    const long channels = s->channels;
    float *restrict plain = part, *restrict weighted = part + channels, *restrict met = part + 2 * channels;
    for (long i = 0; i < 3 * channels; i++)
        total[i] = part[i] = 0;
    long since = 0;
    FOR_EACH_CELL(s, x, o)
    {
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            const int place = code[o + c];
            float sum = 0, product = 0, picked = 0;
            for (int k = 0; k < count; k++) {
                const long i = x + tap.at[k] + c;
                sum += v[i];
                product += v[i] * (maps[i] - mean[c]);
                picked = place == k ? v[i] : picked;
            }
            plain[c] += sum;
            weighted[c] += product;
            met[c] += picked * gradient[o + c];
        }
        if (++since == LONGEST / count) {
            flush(3 * channels, part, total);
            since = 0;
        }
    }
    if (count > 1)
        FOR_EACH_LEFT_OVER(s, x)
        {
#pragma omp simd
            for (long c = 0; c < channels; c++) {
                plain[c] += v[x + c];
                weighted[c] += v[x + c] * (maps[x + c] - mean[c]);
            }
        }
    flush(3 * channels, part, total);
}

typedef struct { /* per channel */
    const float *of_v, *of_u, *of_x, *constant; /* of dd_maps; of_x is of x - m */
    const float *picked_of_v, *picked_constant; /* of dd_gradient, which shares of_u: there it is of x - m */
} coefficients;

INLINE void image_backward_twice(const shape *s, const int count, const float *restrict maps,
                                 const float *restrict mean, const float *restrict gradient,
                                 const uint8_t *restrict code, const float *restrict v, coefficients of,
                                 float *restrict dd_maps, float *restrict dd_gradient)
{
    const taps tap = taps_of(s);
    const long channels = s->channels;
    FOR_EACH_CELL(s, x, o)
    {
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            const int place = code[o + c];
            const float g = gradient[o + c] * of.of_u[c];
            float picked = 0;
            for (int k = 0; k < count; k++) {
                const long i = x + tap.at[k] + c;
                const float away = maps[i] - mean[c];
                const float here = of.picked_of_v[c] * v[i] + of.of_u[c] * away + of.picked_constant[c];
                picked = place == k ? here : picked;
                dd_maps[i] = (place == k ? g : 0) + of.of_v[c] * v[i] + of.of_x[c] * away + of.constant[c];
            }
            dd_gradient[o + c] = picked;
        }
    }
    if (count > 1)
        FOR_EACH_LEFT_OVER(s, x)
        {
#pragma omp simd
            for (long c = 0; c < channels; c++)
                dd_maps[x + c] =
                    of.of_v[c] * v[x + c] + of.of_x[c] * (maps[x + c] - mean[c]) + of.constant[c];
        }
}

/* v, v_scale, v_shift: gradients of `backward`'s d_maps, d_scale and d_shift, of which the last two are given.
   scratch: [groups * images][5][channels] doubles + [groups][3][channels] doubles. */
void backward_twice(long threads, long groups, long images, long height, long width, long channels,
                    long window, const float *v, const float *v_scale, const float *v_shift,
                    const float *gradient, const float *maps, const float *scale, const float *mean,
                    const float *spread, const uint8_t *code, const float *d_scale, const float *d_shift,
                    float *dd_gradient, float *dd_maps, float *dd_scale, double *scratch)
{
    const shape s = {groups, images, height, width, channels, window};
    const double positions = (double)(images * pixels(&s));
    float *part = (float *)(scratch + groups * images * 3 * channels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < groups * images; image++) {
        const long x = image * pixels(&s) * channels, o = image * cells(&s) * channels;
        const float *m = mean + image / images * channels;
        double *total = scratch + image * 3 * channels;
        float *p = part + image * 3 * channels;
        if (window == 2)
            image_sums_twice(&s, 4, maps + x, m, gradient + o, code + o, v + x, total, p);
        else
            image_sums_twice(&s, 1, maps + x, m, gradient + o, code + o, v + x, total, p);
    }
    float *of_v = (float *)(scratch + groups * images * 5 * channels);
    float *of_u = of_v + groups * channels, *of_x = of_u + groups * channels;
    float *constant = of_x + groups * channels;
    float *picked_of_v = constant + groups * channels, *picked_constant = picked_of_v + groups * channels;
    for (long group = 0; group < groups; group++)
        for (long c = 0; c < channels; c++) {
            const long i = group * channels + c;
            const double r = spread[i], factor = scale[i] * r;
            const double A = d_shift[i] / positions, B = d_scale[i] / positions;
            const double V = over_images(&s, scratch, 3, group, 0, c) / positions;
            const double W = over_images(&s, scratch, 3, group, 1, c) * r / positions;
            const double Q = over_images(&s, scratch, 3, group, 2, c) / positions;
            const double T = Q - V * A - W * B;
            const double of_u_in_h = v_scale[i] - factor * W;
            const double mean_h = -factor * B * V + of_u_in_h * A;
            const double mean_hn = -factor * B * W + of_u_in_h * B;
            dd_scale[i] = (float)(positions * r * T);
            of_v[i] = (float)(-factor * B * r);
            of_u[i] = (float)(r * of_u_in_h);
            of_x[i] = (float)(-r * r * (mean_hn + factor * T));
            constant[i] = (float)(-r * mean_h);
            picked_of_v[i] = (float)factor;
            picked_constant[i] = (float)(v_shift[i] - factor * V);
        }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < groups * images; image++) {
        const long x = image * pixels(&s) * channels, o = image * cells(&s) * channels;
        const long i = image / images * channels;
        const coefficients of = {of_v + i,     of_u + i,        of_x + i,
                                 constant + i, picked_of_v + i, picked_constant + i};
        if (window == 2)
            image_backward_twice(&s, 4, maps + x, mean + i, gradient + o, code + o, v + x, of, dd_maps + x,
                                 dd_gradient + o);
        else
            image_backward_twice(&s, 1, maps + x, mean + i, gradient + o, code + o, v + x, of, dd_maps + x,
                                 dd_gradient + o);
    }
}
