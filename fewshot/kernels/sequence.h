/* A controller over a whole sequence, forward and backward, around a memory that the including file gives.

   Threads take groups of episodes and go through the whole sequence with them, so that nothing is waited for:
   the products with the weights are the group's, all else is one episode's. Every number of an episode is
   computed in the same order whatever the batch and the number of threads. Included, not linked: a kernel is
   one file to compile (see native.py). */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

/* A tile of ROWS x 3 vectors of sums is what the registers hold. */
#if defined(__AVX512F__)
#define LANES 16
#define ROWS 8
#elif defined(__AVX__)
#define LANES 8
#define ROWS 4
#elif defined(__aarch64__)
#define LANES 4
#define ROWS 8
#else
#define LANES 4
#define ROWS 4
#endif
#define PANEL (3 * LANES)
#define GROUP (2 * ROWS) /* episodes that go through the sequence together at most */

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float quad __attribute__((vector_size(16)));
typedef int64_t size;

/* Mirrored in sequence.py. Arrays are contiguous; `at` and `after` say where an episode's step is kept. */
typedef struct {
    size batch, steps, hidden, words, interface;   /* words: numbers that the memory's heads read at a step */
    size lstm, keep, threads;                      /* lstm: else feedforward; keep: for a backward pass */
    size offset_episode, offset_step;              /* strides of the offsets */
    const float *projected;                        /* (batch, step, gate) */
    const float *offsets;                          /* (batch, step, interface) at their strides */
    const float *recurrent_weight;                 /* (gate, recurrent) */
    const float *interface_weight;                 /* (interface, hidden) */
    const float *first;                            /* (batch, recurrent): what the first step is fed with */
    const float *first_cell;                       /* (batch, hidden) */
    float *outputs;                                /* (batch, step, hidden + words) */
    float *last_cell;                              /* as the first one */
    /* Kept for the backward pass: of every step, or of the last where nothing is to be kept. */
    float *cells;                                  /* (batch, step + 1, hidden) */
    float *gates;                                  /* (batch, step, gate): after their activation */
    /* Gradients in, and out. */
    const float *outputs_gradient, *last_cell_gradient;
    float *projected_gradient, *offsets_gradient, *first_gradient, *first_cell_gradient;
    float *scratch;                                /* sequence_scratch() floats */
} Sequence;

/* The memory between the controller's steps. All functions get its own description and a thread's room. Going
   forward, `begin` and `end` take an episode's state in and out, and `step` turns a raw interface into words.
   Going back likewise, from the last step to the first; `row` is the episode's place in its group, under
   which the room holds the gradients on their way. */
typedef struct {
    const void *own;
    size room;                                     /* floats that a thread needs */
    void (*begin)(const void *own, size episode);
    void (*step)(const void *own, float *room, size episode, size step, const float *interface, float *reads);
    void (*end)(const void *own, size episode);
    void (*begin_back)(const void *own, float *room, size row, size episode);
    void (*step_back)(const void *own, float *room, size row, size episode, size step,
                      const float *reads_gradient, float *interface_gradient);
    void (*end_back)(const void *own, float *room, size row, size episode);
} Memory;

typedef struct {
    size gates, recurrent, output;
} Widths;

static size round_up(size number, size multiple) { return (number + multiple - 1) / multiple * multiple; }
static size largest(size a, size b) { return a > b ? a : b; }

static Widths widths_of(const Sequence *s) {
    return (Widths){
        .gates = s->lstm ? 4 * s->hidden : s->hidden,
        .recurrent = s->lstm ? s->hidden + s->words : s->words,
        .output = s->hidden + s->words,
    };
}

/* Within a function that lays room out: so many floats from `base` on, whole vectors of them. */
#define TAKE(pointer, count) ((pointer) = base + used, used += round_up(count, LANES))

/* ---- Functions of one number ---- */

/* e^x - 1 = power * small + (power - 1), with power = 2^n and small = e^(x - n ln 2) - 1 by its series. */
static inline void exponential_parts(float x, float *power, float *small) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number, found in the low bits */
    float shifted = x * 1.44269504f + shift;
    float n = shifted - shift;
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;
    memcpy(power, &bits, sizeof bits);
    float series = fmaf(r, 1.0f / 5040, 1.0f / 720);
    series = fmaf(series, r, 1.0f / 120);
    series = fmaf(series, r, 1.0f / 24);
    series = fmaf(series, r, 1.0f / 6);
    series = fmaf(series, r, 0.5f);
    *small = fmaf(series * r, r, r);
}

static inline float exponential(float x) {
    float power, small;
    exponential_parts(x, &power, &small);
    return fmaf(power, small, power);
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

static inline float hyperbolic_tangent(float x) {
    float power, small;
    x = x < -10.0f ? -10.0f : x;
    x = x > 10.0f ? 10.0f : x;
    exponential_parts(2.0f * x, &power, &small);
    float less_one = fmaf(power, small, power - 1.0f);
    return less_one / (less_one + 2.0f);
}

/* ---- Vectors ---- */

static inline lanes load(const float *from) {
    lanes vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

static inline void store(float *to, lanes vector) { memcpy(to, &vector, sizeof vector); }

static inline float sum_of_lanes(lanes vector) {
    quad parts[LANES / 4], sum;
    memcpy(parts, &vector, sizeof parts);
    sum = parts[0];
    for (int i = 1; i < LANES / 4; i++) sum += parts[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* ---- Products with the weights ---- */

/* A matrix (depth, width) at any strides as tiles (depth, tile), the last one narrower, zero beyond `width`. */
static void pack_tile(float *to, const float *from, size depth, size width, size depth_stride,
                      size width_stride, size tile) {
    size inside = width < tile ? width : tile;
    if (inside < tile) memset(to, 0, depth * tile * sizeof(float));
    if (width_stride == 1)
        for (size d = 0; d < depth; d++)
            for (size j = 0; j < inside; j++) to[d * tile + j] = from[d * depth_stride + j];
    else
        for (size j = 0; j < inside; j++)
            for (size d = 0; d < depth; d++) to[d * tile + j] = from[d * depth_stride + j * width_stride];
}

static size panel_width(size width, size start) {
    return width - start < PANEL ? round_up(width - start, LANES) : PANEL;
}

static void pack_panels(float *to, const float *from, size depth, size width, size depth_stride,
                        size width_stride, size threads) {
#pragma omp parallel for num_threads(threads)
    for (size n = 0; n < width; n += PANEL)
        pack_tile(to + n * depth, from + n * width_stride, depth, width - n, depth_stride, width_stride,
                  panel_width(width, n));
}

/* The first `depth` numbers of rows that lie `stride` apart. */
static void pack_rows(float *to, const float *from, size depth, size count, size stride) {
    for (size row = 0; row < count; row += ROWS)
        pack_tile(to + row * depth, from + row * stride, depth, count - row, 1, stride, ROWS);
}

static size packed_size(size depth, size width) { return depth * round_up(width, LANES); }

static inline __attribute__((always_inline)) void
sum_products(float *out, const float *rows, const float *panel, size depth, const int vectors) {
    lanes sum[ROWS][3];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < vectors; j++) sum[i][j] = (lanes){0};
    for (size d = 0; d < depth; d++) {
        lanes weights[3];
        for (int j = 0; j < vectors; j++) weights[j] = load(panel + (d * vectors + j) * LANES);
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < vectors; j++) sum[i][j] += rows[d * ROWS + i] * weights[j];
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < vectors; j++) store(out + (i * vectors + j) * LANES, sum[i][j]);
}

/* out (count, width) = rows x panels, both packed. */
static void multiply(float *out, const float *rows, const float *panels, size count, size depth, size width) {
    float tile[ROWS * PANEL];
    for (size n = 0; n < width; n += PANEL)
        for (size row = 0; row < count; row += ROWS) {
            const float *left = rows + row * depth, *panel = panels + n * depth;
            size padded = panel_width(width, n), inside = width - n < padded ? width - n : padded;
            if (padded == PANEL)
                sum_products(tile, left, panel, depth, 3);
            else if (padded == 2 * LANES)
                sum_products(tile, left, panel, depth, 2);
            else
                sum_products(tile, left, panel, depth, 1);
            for (size i = 0; i < ROWS && row + i < count; i++)
                memcpy(out + (row + i) * width + n, tile + i * padded, inside * sizeof(float));
        }
}

/* ---- The controller ---- */

static void controller_forward(const Sequence *s, const float *product, const float *projected,
                               const float *cell_before, float *gates, float *cell, float *output) {
    size hidden = s->hidden;
    if (!s->lstm) {
#pragma omp simd
        for (size j = 0; j < hidden; j++) {
            float x = product[j] + projected[j];
            output[j] = gates[j] = x < 0 ? 0 : x;
        }
        return;
    }
#pragma omp simd
    for (size j = 0; j < 3 * hidden; j++) gates[j] = sigmoid(product[j] + projected[j]);
#pragma omp simd
    for (size j = 0; j < hidden; j++) {
        float candidate = hyperbolic_tangent(product[3 * hidden + j] + projected[3 * hidden + j]);
        gates[3 * hidden + j] = candidate;
        float now = gates[j] * cell_before[j] + gates[hidden + j] * candidate;
        cell[j] = now;
        output[j] = gates[2 * hidden + j] * hyperbolic_tangent(now);
    }
}

/* cell_gradient: of the cell after the step, then before it. */
static void controller_backward(const Sequence *s, const float *output_gradient, const float *gates,
                                const float *cell_before, const float *cell, float *cell_gradient,
                                float *gradient) {
    size hidden = s->hidden;
    if (!s->lstm) {
#pragma omp simd
        for (size j = 0; j < hidden; j++) gradient[j] = gates[j] > 0 ? output_gradient[j] : 0;
        return;
    }
#pragma omp simd
    for (size j = 0; j < hidden; j++) {
        float keep = gates[j], write = gates[hidden + j], show = gates[2 * hidden + j];
        float candidate = gates[3 * hidden + j], shown = hyperbolic_tangent(cell[j]);
        float of_cell = cell_gradient[j] + output_gradient[j] * show * (1 - shown * shown);
        cell_gradient[j] = of_cell * keep;
        gradient[j] = of_cell * cell_before[j] * keep * (1 - keep);
        gradient[hidden + j] = of_cell * candidate * write * (1 - write);
        gradient[2 * hidden + j] = output_gradient[j] * shown * show * (1 - show);
        gradient[3 * hidden + j] = of_cell * write * (1 - candidate * candidate);
    }
}

/* ---- The sequence ---- */

/* Where an episode's step lies in what is kept: with and without a place for the start. */
static size at(const Sequence *s, size episode, size step) {
    return s->keep ? episode * s->steps + step : episode;
}
static size after(const Sequence *s, size episode, size steps) {
    return s->keep ? episode * (s->steps + 1) + steps : episode;
}

typedef struct { /* what is computed and forgotten, for one thread */
    float *rows, *product;  /* of the products with the weights, for a group of episodes */
    float *carried, *cell;  /* gradients on their way back, likewise */
    float *room;            /* the memory's */
} Scratch;

/* Lays the scratch of one thread out from `base`; gives how many floats it takes. */
static size lay_out(const Sequence *s, const Memory *memory, Scratch *t, float *base) {
    Widths z = widths_of(s);
    size widest = largest(largest(z.gates, z.recurrent), largest(s->interface, s->hidden)), used = 0;
    TAKE(t->rows, GROUP * widest);
    TAKE(t->product, GROUP * widest);
    TAKE(t->carried, GROUP * z.output);
    TAKE(t->cell, GROUP * s->hidden);
    TAKE(t->room, memory->room);
    return used;
}

static size packed_total(const Sequence *s) { /* forward's or backward's, whichever is larger */
    Widths z = widths_of(s);
    return largest(packed_size(z.recurrent, z.gates), packed_size(z.gates, z.recurrent)) +
           largest(packed_size(s->hidden, s->interface), packed_size(s->interface, s->hidden));
}

static size group_rows(const Sequence *s) { return s->batch >= s->threads * GROUP ? GROUP : ROWS; }

static size group_count(const Sequence *s) { return (s->batch + group_rows(s) - 1) / group_rows(s); }

static void group_forward(const Sequence *s, const Memory *memory, const Scratch *t,
                          const float *recurrent_weight, const float *interface_weight, size start,
                          size count) {
    Widths z = widths_of(s);
    size hidden = s->hidden, output_stride = s->steps * z.output;
    for (size r = 0; r < count; r++) {
        size episode = start + r;
        memory->begin(memory->own, episode);
        if (s->lstm)
            memcpy(s->cells + after(s, episode, 0) * hidden, s->first_cell + episode * hidden,
                   hidden * sizeof(float));
    }
    for (size step = 0; step < s->steps; step++) {
        float *outputs = s->outputs + (start * s->steps + step) * z.output;
        if (step == 0)
            pack_rows(t->rows, s->first + start * z.recurrent, z.recurrent, count, z.recurrent);
        else
            pack_rows(t->rows, outputs - z.recurrent, z.recurrent, count, output_stride);
        multiply(t->product, t->rows, recurrent_weight, count, z.recurrent, z.gates);
        for (size r = 0; r < count; r++) {
            size episode = start + r, place = episode * s->steps + step;
            controller_forward(s, t->product + r * z.gates, s->projected + place * z.gates,
                               s->cells + after(s, episode, step) * hidden,
                               s->gates + at(s, episode, step) * z.gates,
                               s->cells + after(s, episode, step + 1) * hidden, outputs + r * output_stride);
        }
        pack_rows(t->rows, outputs, hidden, count, output_stride);
        multiply(t->product, t->rows, interface_weight, count, hidden, s->interface);
        for (size r = 0; r < count; r++) {
            size episode = start + r;
            float *interface = t->product + r * s->interface;
            const float *offset = s->offsets + episode * s->offset_episode + step * s->offset_step;
            for (size j = 0; j < s->interface; j++) interface[j] += offset[j];
            memory->step(memory->own, t->room, episode, step, interface,
                         outputs + r * output_stride + hidden);
        }
    }
    for (size r = 0; r < count; r++) {
        size episode = start + r;
        memory->end(memory->own, episode);
        if (s->lstm)
            memcpy(s->last_cell + episode * hidden, s->cells + after(s, episode, s->steps) * hidden,
                   hidden * sizeof(float));
    }
}

static void group_backward(const Sequence *s, const Memory *memory, const Scratch *t,
                           const float *recurrent_weight, const float *interface_weight, size start,
                           size count) {
    Widths z = widths_of(s);
    size hidden = s->hidden;
    memset(t->carried, 0, count * z.output * sizeof(float));
    for (size r = 0; r < count; r++) {
        size episode = start + r;
        memory->begin_back(memory->own, t->room, r, episode);
        if (s->lstm)
            memcpy(t->cell + r * hidden, s->last_cell_gradient + episode * hidden, hidden * sizeof(float));
    }
    for (size step = s->steps - 1; step >= 0; step--) {
        for (size r = 0; r < count; r++) {
            size episode = start + r, place = episode * s->steps + step;
            float *carried = t->carried + r * z.output;
            for (size j = 0; j < z.output; j++) carried[j] += s->outputs_gradient[place * z.output + j];
            memory->step_back(memory->own, t->room, r, episode, step, carried + hidden,
                              s->offsets_gradient + place * s->interface);
        }
        pack_rows(t->rows, s->offsets_gradient + (start * s->steps + step) * s->interface, s->interface,
                  count, s->steps * s->interface);
        multiply(t->product, t->rows, interface_weight, count, s->interface, hidden);
        for (size r = 0; r < count; r++) {
            size episode = start + r, place = episode * s->steps + step;
            float *carried = t->carried + r * z.output;
            for (size j = 0; j < hidden; j++) carried[j] += t->product[r * hidden + j];
            controller_backward(s, carried, s->gates + place * z.gates,
                                s->cells + after(s, episode, step) * hidden,
                                s->cells + after(s, episode, step + 1) * hidden, t->cell + r * hidden,
                                s->projected_gradient + place * z.gates);
        }
        pack_rows(t->rows, s->projected_gradient + (start * s->steps + step) * z.gates, z.gates, count,
                  s->steps * z.gates);
        multiply(t->product, t->rows, recurrent_weight, count, z.gates, z.recurrent);
        for (size r = 0; r < count; r++) {
            float *carried = t->carried + r * z.output;
            memset(carried, 0, z.output * sizeof(float));
            memcpy(carried + z.output - z.recurrent, t->product + r * z.recurrent,
                   z.recurrent * sizeof(float));
        }
    }
    for (size r = 0; r < count; r++) {
        size episode = start + r;
        memcpy(s->first_gradient + episode * z.recurrent, t->carried + (r + 1) * z.output - z.recurrent,
               z.recurrent * sizeof(float));
        memory->end_back(memory->own, t->room, r, episode);
        if (s->lstm)
            memcpy(s->first_cell_gradient + episode * hidden, t->cell + r * hidden, hidden * sizeof(float));
    }
}

static size sequence_scratch(const Sequence *s, const Memory *memory) {
    Scratch t;
    return packed_total(s) + s->threads * lay_out(s, memory, &t, s->scratch);
}

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

static void for_all_groups(const Sequence *s, const Memory *memory, int forward) {
    Widths z = widths_of(s);
    float *recurrent_weight = s->scratch, *interface_weight, *threads_scratch = s->scratch + packed_total(s);
    if (forward) {
        interface_weight = recurrent_weight + packed_size(z.recurrent, z.gates);
        pack_panels(recurrent_weight, s->recurrent_weight, z.recurrent, z.gates, 1, z.recurrent, s->threads);
        pack_panels(interface_weight, s->interface_weight, s->hidden, s->interface, 1, s->hidden, s->threads);
    } else {
        interface_weight = recurrent_weight + packed_size(z.gates, z.recurrent);
        pack_panels(recurrent_weight, s->recurrent_weight, z.gates, z.recurrent, z.recurrent, 1, s->threads);
        pack_panels(interface_weight, s->interface_weight, s->interface, s->hidden, s->hidden, 1, s->threads);
    }
    size rows = group_rows(s);
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (size group = 0; group < group_count(s); group++) {
        Scratch t;
        size floats = lay_out(s, memory, &t, threads_scratch);
        lay_out(s, memory, &t, threads_scratch + omp_get_thread_num() * floats);
        size start = group * rows, count = s->batch - start < rows ? s->batch - start : rows;
        (forward ? group_forward : group_backward)(s, memory, &t, recurrent_weight, interface_weight, start,
                                                   count);
    }
}
