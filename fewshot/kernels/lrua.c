/* A controller with a least recently used memory over a whole sequence, forward and backward.

   The equations are those of fewshot/memory (Santoro et al. 2016, equations 2 to 8, and the table of lrua.py);
   the gradients follow below, step by step, with usage passing none. Threads take groups of episodes and go
   through the whole sequence with them, so that nothing is waited for. Every number of an episode is computed
   in the same order whatever the batch and the number of threads.

   An episode's memory is held with its slots in the lanes of vectors: (slot / LANES, word, LANES). Slots are
   padded to whole vectors and heads to whole groups of HEADS; what is padded is zero and stays so. */

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
#define HEADS 4

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float quad __attribute__((vector_size(16)));
typedef int64_t size;

static const float EPSILON_SQUARED = 1e-16f; /* of fewshot/memory/addressing.py */

/* Mirrored in lrua.py. Arrays are contiguous; `at` below says where an episode's step lies in what is kept. */
typedef struct {
    size batch, steps, hidden, heads, word, slots;
    size lstm, apart, sharp, shared, keep, threads; /* all but threads: 0 or 1 */
    size offset_episode, offset_step;               /* strides of the offsets */
    float usage_decay, strength_offset;
    const float *projected;                       /* (batch, step, gate) */
    const float *offsets;                         /* (batch, step, interface) at their strides */
    const float *recurrent_weight;                /* (gate, recurrent) */
    const float *interface_weight;                /* (interface, hidden) */
    const float *first;                           /* (batch, recurrent): what the first step is fed with */
    const float *first_cell;                      /* (batch, hidden) */
    const float *first_memory;                    /* (batch, slot, word) */
    const float *first_read_weights;              /* (batch, head, slot) */
    float *usage;                                 /* (batch, slot): the start's, then the end's */
    float *outputs;                               /* (batch, step, hidden + words) */
    float *last_cell, *last_memory, *last_read_weights; /* as the first ones */
    /* Kept for the backward pass: of every step, or of the last where nothing is to be kept. */
    float *memories;                              /* (batch, step + 1, padded slot x word) */
    float *read_weights;                          /* (batch, step + 1, padded head, padded slot) */
    float *cells;                                 /* (batch, step + 1, hidden) */
    float *gates;                                 /* (batch, step, gate): after their activation */
    float *interfaces;                            /* (batch, step, interface + head if sharp): likewise */
    float *cosines;                               /* (batch, step, padded head, padded slot) */
    float *inverses;                              /* (batch, step, padded slot): 1 / length of the word */
    int32_t *chosen;                              /* (batch, step, head): least used slots, the least first */
    /* Gradients in: of the outputs and the last state; out: of all that is const above but the weights. */
    const float *outputs_gradient;
    const float *last_cell_gradient, *last_memory_gradient, *last_read_weights_gradient;
    float *projected_gradient, *offsets_gradient, *first_gradient;
    float *first_cell_gradient, *first_memory_gradient, *first_read_weights_gradient;
    float *scratch;                               /* lrua_scratch() floats */
} Scan;

typedef struct {
    size words, gates, recurrent, vectors, interface, activated, output;
    size slots, vector_count, heads, weights, memory;
} Sizes;

static size round_up(size number, size multiple) { return (number + multiple - 1) / multiple * multiple; }
static size largest(size a, size b) { return a > b ? a : b; }

static Sizes sizes_of(const Scan *s) {
    Sizes z;
    z.words = s->heads * s->word;
    z.gates = s->lstm ? 4 * s->hidden : s->hidden;
    z.recurrent = s->lstm ? s->hidden + z.words : z.words;
    z.vectors = z.words * (1 + s->apart);
    z.interface = z.vectors + s->heads * (1 + s->sharp);
    z.activated = z.interface + s->heads * s->sharp;
    z.output = s->hidden + z.words;
    z.slots = round_up(s->slots, LANES);
    z.vector_count = z.slots / LANES;
    z.heads = round_up(s->heads, HEADS);
    z.weights = z.heads * z.slots;
    z.memory = z.slots * s->word;
    return z;
}

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

/* ---- Products with the weights ---- */

static inline lanes load(const float *from) {
    lanes vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

static inline void store(float *to, lanes vector) { memcpy(to, &vector, sizeof vector); }

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

/* ---- The memory: slots in the lanes ---- */

static void to_lanes(float *to, const float *memory, size slots, size word, size padded) {
    memset(to, 0, padded * word * sizeof(float));
    for (size i = 0; i < slots; i++)
        for (size w = 0; w < word; w++) to[(i / LANES * word + w) * LANES + i % LANES] = memory[i * word + w];
}

static void from_lanes(float *to, const float *memory, size slots, size word) {
    for (size i = 0; i < slots; i++)
        for (size w = 0; w < word; w++) to[i * word + w] = memory[(i / LANES * word + w) * LANES + i % LANES];
}

static void erase(float *memory, size slot, size word) {
    float *first = memory + slot / LANES * word * LANES + slot % LANES;
    for (size w = 0; w < word; w++) first[w * LANES] = 0;
}

/* Vectors of the heads (head, word) as (group of heads, word, HEADS), zero beyond `heads`; and back. */
static void to_groups(float *to, const float *vectors, size heads, size word) {
    for (size head = 0; head < round_up(heads, HEADS); head++)
        for (size w = 0; w < word; w++)
            to[(head / HEADS * word + w) * HEADS + head % HEADS] =
                head < heads ? vectors[head * word + w] : 0;
}

static void from_groups(float *to, const float *groups, size heads, size word) {
    for (size head = 0; head < heads; head++)
        for (size w = 0; w < word; w++)
            to[head * word + w] = groups[(head / HEADS * word + w) * HEADS + head % HEADS];
}

static inline float sum_of_lanes(lanes vector) {
    quad parts[LANES / 4], sum;
    memcpy(parts, &vector, sizeof parts);
    sum = parts[0];
    for (int i = 1; i < LANES / 4; i++) sum += parts[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* to(i) = factors(i) from(i) + sum over heads of weights(head, i) vectors(head); `to` may be `from`. */
static void spread(float *to, const float *from, const float *factors, const float *weights,
                   const float *vectors, const Sizes *z, size word) {
    for (size group = 0; group < z->heads; group += HEADS, from = to)
        for (size v = 0; v < z->vector_count; v++) {
            lanes weight[HEADS], factor = group ? (lanes){0} + 1 : load(factors + v * LANES);
            for (int j = 0; j < HEADS; j++) weight[j] = load(weights + (group + j) * z->slots + v * LANES);
            for (size w = 0; w < word; w++) {
                size place = (v * word + w) * LANES;
                const float *vector = vectors + group * word + w * HEADS;
                lanes sum = factor * load(from + place);
                for (int j = 0; j < HEADS; j++) sum += vector[j] * weight[j];
                store(to + place, sum);
            }
        }
}

/* gradient(i) += sum over heads of (weights(head, i) vectors(head) + pull(head, i) keys(head))
                  - factors(i) memory(i) */
static void spread_back(float *gradient, const float *weights, const float *vectors, const float *pull,
                        const float *keys, const float *factors, const float *memory, const Sizes *z,
                        size word) {
    for (size group = 0; group < z->heads; group += HEADS)
        for (size v = 0; v < z->vector_count; v++) {
            lanes weight[HEADS], pulled[HEADS], factor = group ? (lanes){0} : load(factors + v * LANES);
            for (int j = 0; j < HEADS; j++) {
                weight[j] = load(weights + (group + j) * z->slots + v * LANES);
                pulled[j] = load(pull + (group + j) * z->slots + v * LANES);
            }
            for (size w = 0; w < word; w++) {
                size place = (v * word + w) * LANES, part = group * word + w * HEADS;
                lanes sum = load(gradient + place) - factor * load(memory + place), other = (lanes){0};
                for (int j = 0; j < HEADS; j++) {
                    sum += vectors[part + j] * weight[j];
                    other += keys[part + j] * pulled[j];
                }
                store(gradient + place, sum + other);
            }
        }
}

/* products(head, i) = vectors(head) . memory(i) */
static void compare(float *products, const float *vectors, const float *memory, const Sizes *z, size word) {
    for (size group = 0; group < z->heads; group += HEADS)
        for (size v = 0; v < z->vector_count; v++) {
            lanes sum[HEADS];
            for (int j = 0; j < HEADS; j++) sum[j] = (lanes){0};
            for (size w = 0; w < word; w++) {
                lanes words = load(memory + (v * word + w) * LANES);
                const float *vector = vectors + group * word + w * HEADS;
                for (int j = 0; j < HEADS; j++) sum[j] += vector[j] * words;
            }
            for (int j = 0; j < HEADS; j++) store(products + (group + j) * z->slots + v * LANES, sum[j]);
        }
}

/* vectors(head) = sum over i of weights(head, i) memory(i) */
static void gather(float *vectors, const float *weights, const float *memory, const Sizes *z, size word) {
    for (size group = 0; group < z->heads; group += HEADS)
        for (size w = 0; w < word; w++) {
            lanes sum[HEADS];
            for (int j = 0; j < HEADS; j++) sum[j] = (lanes){0};
            for (size v = 0; v < z->vector_count; v++) {
                lanes words = load(memory + (v * word + w) * LANES);
                for (int j = 0; j < HEADS; j++)
                    sum[j] += load(weights + (group + j) * z->slots + v * LANES) * words;
            }
            for (int j = 0; j < HEADS; j++) vectors[group * word + w * HEADS + j] = sum_of_lanes(sum[j]);
        }
}

/* The `count` slots of smallest usage, the least first; of equals the lower one. `left` is room for a copy. */
static void choose_least_used(int32_t *chosen, const float *usage, float *left, size slots, size count) {
    memcpy(left, usage, slots * sizeof(float));
    for (size j = 0; j < count; j++) {
        float least = INFINITY;
#pragma omp simd reduction(min : least)
        for (size i = 0; i < slots; i++) least = left[i] < least ? left[i] : least;
        size best = 0;
        while (best < slots - 1 && left[best] != least) best++;
        chosen[j] = (int32_t)best;
        left[best] = INFINITY;
    }
}

/* write_weights = gate * read_weights + (1 - gate) * least_used */
static void weigh_writes(float *write_weights, const float *read_weights, const float *gate,
                         const int32_t *chosen, const Scan *s, const Sizes *z) {
    memset(write_weights, 0, z->weights * sizeof(float));
    for (size head = 0; head < s->heads; head++) {
        float *row = write_weights + head * z->slots;
        for (size i = 0; i < s->slots; i++) row[i] = gate[head] * read_weights[head * z->slots + i];
        if (s->shared)
            for (size j = 0; j < s->heads; j++) row[chosen[j]] += 1 - gate[head];
        else
            row[chosen[head]] += 1 - gate[head];
    }
}

static float inverse_length(const float *vector, size word) {
    float square = 0;
#pragma omp simd reduction(+ : square)
    for (size w = 0; w < word; w++) square += vector[w] * vector[w];
    return 1.0f / sqrtf(square + EPSILON_SQUARED);
}

/* ---- One step of one episode ---- */

typedef struct { /* what is computed and forgotten, for one thread */
    float *rows, *product;                     /* of the products with the weights, for a group of episodes */
    float *weights[3];                         /* (padded head, padded slot) each */
    float *groups[3];                          /* (group of heads, word, HEADS) each */
    float *vectors;                            /* (head, word) */
    float *slots;                              /* (padded slot) */
    float *carried, *cell, *memory, *reading;  /* gradients on their way back, for a group of episodes */
} Scratch;

/* memory, read_weights: after the step; they may lie where those before it lie. */
static void access_forward(const Scan *s, const Sizes *z, const Scratch *t, const float *memory_before,
                           float *memory, float *usage, const float *read_weights_before,
                           const float *interface, int32_t *chosen, float *read_weights, float *cosines,
                           float *inverses, float *reads) {
    size word = s->word;
    const float *keys = interface, *adds = interface + z->vectors - z->words;
    const float *gate = interface + z->vectors, *strength = gate + s->heads;
    float *write_weights = t->weights[0], *grouped = t->groups[0], *kept = t->slots;

    choose_least_used(chosen, usage, t->slots, s->slots, s->heads);
    weigh_writes(write_weights, read_weights_before, gate, chosen, s, z);
    for (size i = 0; i < z->slots; i++) kept[i] = 1;
    kept[chosen[0]] = 0;
    to_groups(grouped, adds, s->heads, word);
    spread(memory, memory_before, kept, write_weights, grouped, z, word);

    to_groups(grouped, keys, s->heads, word);
    compare(cosines, grouped, memory, z, word);
    for (size v = 0; v < z->vector_count; v++) {
        lanes square = (lanes){0} + EPSILON_SQUARED;
        for (size w = 0; w < word; w++) {
            lanes words = load(memory + (v * word + w) * LANES);
            square += words * words;
        }
        store(inverses + v * LANES, square);
    }
#pragma omp simd
    for (size i = 0; i < z->slots; i++) inverses[i] = 1.0f / sqrtf(inverses[i]);

    memset(read_weights, 0, z->weights * sizeof(float));
#pragma omp simd
    for (size i = 0; i < s->slots; i++) usage[i] *= s->usage_decay;
    for (size head = 0; head < s->heads; head++) {
        float *cosine = cosines + head * z->slots, *weight = read_weights + head * z->slots;
        const float *written = write_weights + head * z->slots;
        float inverse = inverse_length(keys + head * word, word);
        float sharpness = s->sharp ? strength[head] : 1.0f;
        float most = -INFINITY, total = 0;
#pragma omp simd reduction(max : most)
        for (size i = 0; i < s->slots; i++) {
            cosine[i] *= inverse * inverses[i];
            most = cosine[i] > most ? cosine[i] : most;
        }
#pragma omp simd reduction(+ : total)
        for (size i = 0; i < s->slots; i++) {
            weight[i] = exponential(sharpness * (cosine[i] - most));
            total += weight[i];
        }
        float share = 1.0f / total;
#pragma omp simd
        for (size i = 0; i < s->slots; i++) {
            weight[i] *= share;
            usage[i] += weight[i] + written[i];
        }
    }
    gather(grouped, read_weights, memory, z, word);
    from_groups(reads, grouped, s->heads, word);
}

/* memory_gradient, reading_gradient: of the memory and the read weights after the step, then before it. */
static void access_backward(const Scan *s, const Sizes *z, const Scratch *t, const float *memory,
                            float *memory_gradient, float *reading_gradient, const float *reads_gradient,
                            const float *read_weights_before, const float *interface, const int32_t *chosen,
                            const float *read_weights, const float *cosines, const float *inverses,
                            float *interface_gradient) {
    size word = s->word;
    const float *keys = interface, *adds = interface + z->vectors - z->words;
    const float *gate = interface + z->vectors, *strength = gate + s->heads, *slope = strength + s->heads;
    float *keys_gradient = interface_gradient, *adds_gradient = interface_gradient + z->vectors - z->words;
    float *gate_gradient = interface_gradient + z->vectors, *strength_gradient = gate_gradient + s->heads;
    float *grouped = t->groups[0], *found = t->groups[1], *shrink = t->slots;

    /* reads = read_weights x memory */
    float *of_reads = t->weights[0], *grouped_reads = t->groups[2];
    to_groups(grouped_reads, reads_gradient, s->heads, word);
    compare(of_reads, grouped_reads, memory, z, word);
    for (size i = 0; i < z->weights; i++) reading_gradient[i] += of_reads[i];

    /* read_weights = softmax(strength * cosine); cosine = key . word / (|key| |word|) */
    float *pull = t->weights[0]; /* of every key on every word: the gradient of their scalar product */
    memset(pull, 0, z->weights * sizeof(float));
    memset(shrink, 0, z->slots * sizeof(float));
    for (size head = 0; head < s->heads; head++) {
        const float *weight = read_weights + head * z->slots, *cosine = cosines + head * z->slots;
        const float *received = reading_gradient + head * z->slots, *key = keys + head * word;
        float *pulled = pull + head * z->slots;
        float inverse = inverse_length(key, word);
        float sharpness = s->sharp ? strength[head] : 1.0f;
        float mean = 0, of_strength = 0;
#pragma omp simd reduction(+ : mean)
        for (size i = 0; i < s->slots; i++) mean += weight[i] * received[i];
#pragma omp simd reduction(+ : of_strength)
        for (size i = 0; i < s->slots; i++) {
            float of_score = weight[i] * (received[i] - mean);
            float along = of_score * cosine[i];
            of_strength += along;
            shrink[i] += sharpness * along;
            pulled[i] = sharpness * of_score * inverse * inverses[i];
        }
        if (s->sharp) strength_gradient[head] = of_strength * slope[head];
        float key_shrink = sharpness * of_strength * inverse * inverse;
        for (size w = 0; w < word; w++) t->vectors[head * word + w] = -key_shrink * key[w];
    }
#pragma omp simd
    for (size i = 0; i < z->slots; i++) shrink[i] *= inverses[i] * inverses[i];
    to_groups(grouped, keys, s->heads, word);
    spread_back(memory_gradient, read_weights, grouped_reads, pull, grouped, shrink, memory, z, word);
    gather(found, pull, memory, z, word);
    from_groups(keys_gradient, found, s->heads, word);
    for (size j = 0; j < z->words; j++) keys_gradient[j] += t->vectors[j];

    /* memory = memory before, the least used slot erased, + write_weights x adds */
    float *write_weights = t->weights[1], *of_writes = t->weights[2];
    weigh_writes(write_weights, read_weights_before, gate, chosen, s, z);
    to_groups(grouped, adds, s->heads, word);
    compare(of_writes, grouped, memory_gradient, z, word);
    gather(found, write_weights, memory_gradient, z, word);
    from_groups(t->vectors, found, s->heads, word);
    erase(memory_gradient, chosen[0], word);
    memset(reading_gradient, 0, z->weights * sizeof(float));
    for (size head = 0; head < s->heads; head++) {
        const float *received = of_writes + head * z->slots, *before = read_weights_before + head * z->slots;
        float *back = reading_gradient + head * z->slots;
        float of_gate = 0;
#pragma omp simd reduction(+ : of_gate)
        for (size i = 0; i < s->slots; i++) {
            of_gate += received[i] * before[i];
            back[i] = gate[head] * received[i];
        }
        if (s->shared)
            for (size j = 0; j < s->heads; j++) of_gate -= received[chosen[j]];
        else
            of_gate -= received[chosen[head]];
        gate_gradient[head] = of_gate * gate[head] * (1 - gate[head]);
    }

    /* keys and adds are tanh of the interface, and may be one */
    if (s->apart)
        for (size j = 0; j < z->words; j++) adds_gradient[j] = t->vectors[j] * (1 - adds[j] * adds[j]);
    else
        for (size j = 0; j < z->words; j++) keys_gradient[j] += t->vectors[j];
    for (size j = 0; j < z->words; j++) keys_gradient[j] *= 1 - keys[j] * keys[j];
}

/* activated: vectors, write gates, then strengths and their slopes where reading has a strength. */
static void activate_interface(const Scan *s, const Sizes *z, const float *product, const float *offset,
                               float *activated) {
#pragma omp simd
    for (size j = 0; j < z->vectors; j++) activated[j] = hyperbolic_tangent(product[j] + offset[j]);
    for (size j = z->vectors; j < z->vectors + s->heads; j++) activated[j] = sigmoid(product[j] + offset[j]);
    for (size j = z->vectors + s->heads; j < z->interface; j++) {
        float x = product[j] + offset[j];
        activated[j] = s->strength_offset + (x > 20.0f ? x : log1pf(expf(x)));
        activated[j + s->heads] = x > 20.0f ? 1.0f : sigmoid(x);
    }
}

static void controller_forward(const Scan *s, const float *product, const float *projected,
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
static void controller_backward(const Scan *s, const float *output_gradient, const float *gates,
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
static size at(const Scan *s, size episode, size step) {
    return s->keep ? episode * s->steps + step : episode;
}
static size after(const Scan *s, size episode, size steps) {
    return s->keep ? episode * (s->steps + 1) + steps : episode;
}

static size packed_total(const Scan *s, const Sizes *z) { /* forward's or backward's, whichever is larger */
    return largest(packed_size(z->recurrent, z->gates), packed_size(z->gates, z->recurrent)) +
           largest(packed_size(s->hidden, z->interface), packed_size(z->interface, s->hidden));
}

/* Lays the scratch of one thread out from `base`; gives how many floats it takes. */
static size lay_out(const Scan *s, const Sizes *z, Scratch *t, float *base) {
    size widest = largest(largest(z->gates, z->recurrent), largest(z->interface, s->hidden));
    size grouped = z->heads * s->word, used = 0;
#define TAKE(pointer, count) (pointer) = base + used, used += round_up(count, LANES)
    TAKE(t->rows, GROUP * widest);
    TAKE(t->product, GROUP * widest);
    for (int j = 0; j < 3; j++) {
        TAKE(t->weights[j], z->weights);
        TAKE(t->groups[j], grouped);
    }
    TAKE(t->vectors, z->words);
    TAKE(t->slots, z->slots);
    TAKE(t->carried, GROUP * z->output);
    TAKE(t->cell, GROUP * s->hidden);
    TAKE(t->memory, GROUP * z->memory);
    TAKE(t->reading, GROUP * z->weights);
#undef TAKE
    return used;
}

static size group_rows(const Scan *s) { return s->batch >= s->threads * GROUP ? GROUP : ROWS; }

static size group_count(const Scan *s) { return (s->batch + group_rows(s) - 1) / group_rows(s); }

static void group_forward(const Scan *s, const Sizes *z, const Scratch *t, const float *recurrent_weight,
                          const float *interface_weight, size start, size count) {
    size hidden = s->hidden, output_stride = s->steps * z->output;
    for (size r = 0; r < count; r++) {
        size episode = start + r;
        float *read_weights = s->read_weights + after(s, episode, 0) * z->weights;
        to_lanes(s->memories + after(s, episode, 0) * z->memory,
                 s->first_memory + episode * s->slots * s->word, s->slots, s->word, z->slots);
        memset(read_weights, 0, z->weights * sizeof(float));
        for (size head = 0; head < s->heads; head++)
            memcpy(read_weights + head * z->slots,
                   s->first_read_weights + (episode * s->heads + head) * s->slots, s->slots * sizeof(float));
        if (s->lstm)
            memcpy(s->cells + after(s, episode, 0) * hidden, s->first_cell + episode * hidden,
                   hidden * sizeof(float));
    }
    for (size step = 0; step < s->steps; step++) {
        float *outputs = s->outputs + (start * s->steps + step) * z->output;
        if (step == 0)
            pack_rows(t->rows, s->first + start * z->recurrent, z->recurrent, count, z->recurrent);
        else
            pack_rows(t->rows, outputs - z->recurrent, z->recurrent, count, output_stride);
        multiply(t->product, t->rows, recurrent_weight, count, z->recurrent, z->gates);
        for (size r = 0; r < count; r++) {
            size episode = start + r, place = episode * s->steps + step;
            controller_forward(s, t->product + r * z->gates, s->projected + place * z->gates,
                               s->cells + after(s, episode, step) * hidden,
                               s->gates + at(s, episode, step) * z->gates,
                               s->cells + after(s, episode, step + 1) * hidden, outputs + r * output_stride);
        }
        pack_rows(t->rows, outputs, hidden, count, output_stride);
        multiply(t->product, t->rows, interface_weight, count, hidden, z->interface);
        for (size r = 0; r < count; r++) {
            size episode = start + r, kept = at(s, episode, step);
            size before = after(s, episode, step), now = after(s, episode, step + 1);
            float *interface = s->interfaces + kept * z->activated, *memory = s->memories + now * z->memory;
            activate_interface(s, z, t->product + r * z->interface,
                               s->offsets + episode * s->offset_episode + step * s->offset_step, interface);
            access_forward(s, z, t, s->memories + before * z->memory, memory, s->usage + episode * s->slots,
                           s->read_weights + before * z->weights, interface, s->chosen + kept * s->heads,
                           s->read_weights + now * z->weights, s->cosines + kept * z->weights,
                           s->inverses + kept * z->slots, outputs + r * output_stride + hidden);
        }
    }
    for (size r = 0; r < count; r++) {
        size episode = start + r, now = after(s, episode, s->steps);
        from_lanes(s->last_memory + episode * s->slots * s->word, s->memories + now * z->memory, s->slots,
                   s->word);
        for (size head = 0; head < s->heads; head++)
            memcpy(s->last_read_weights + (episode * s->heads + head) * s->slots,
                   s->read_weights + now * z->weights + head * z->slots, s->slots * sizeof(float));
        if (s->lstm)
            memcpy(s->last_cell + episode * hidden, s->cells + now * hidden, hidden * sizeof(float));
    }
}

static void group_backward(const Scan *s, const Sizes *z, const Scratch *t, const float *recurrent_weight,
                           const float *interface_weight, size start, size count) {
    size hidden = s->hidden;
    memset(t->carried, 0, count * z->output * sizeof(float));
    memset(t->reading, 0, count * z->weights * sizeof(float));
    for (size r = 0; r < count; r++) {
        size episode = start + r;
        to_lanes(t->memory + r * z->memory, s->last_memory_gradient + episode * s->slots * s->word, s->slots,
                 s->word, z->slots);
        for (size head = 0; head < s->heads; head++)
            memcpy(t->reading + r * z->weights + head * z->slots,
                   s->last_read_weights_gradient + (episode * s->heads + head) * s->slots,
                   s->slots * sizeof(float));
        if (s->lstm)
            memcpy(t->cell + r * hidden, s->last_cell_gradient + episode * hidden, hidden * sizeof(float));
    }
    for (size step = s->steps - 1; step >= 0; step--) {
        for (size r = 0; r < count; r++) {
            size episode = start + r, place = episode * s->steps + step;
            size before = after(s, episode, step), now = after(s, episode, step + 1);
            float *carried = t->carried + r * z->output;
            for (size j = 0; j < z->output; j++) carried[j] += s->outputs_gradient[place * z->output + j];
            access_backward(s, z, t, s->memories + now * z->memory, t->memory + r * z->memory,
                            t->reading + r * z->weights, carried + hidden,
                            s->read_weights + before * z->weights, s->interfaces + place * z->activated,
                            s->chosen + place * s->heads, s->read_weights + now * z->weights,
                            s->cosines + place * z->weights, s->inverses + place * z->slots,
                            s->offsets_gradient + place * z->interface);
        }
        pack_rows(t->rows, s->offsets_gradient + (start * s->steps + step) * z->interface, z->interface,
                  count, s->steps * z->interface);
        multiply(t->product, t->rows, interface_weight, count, z->interface, hidden);
        for (size r = 0; r < count; r++) {
            size episode = start + r, place = episode * s->steps + step;
            float *carried = t->carried + r * z->output;
            for (size j = 0; j < hidden; j++) carried[j] += t->product[r * hidden + j];
            controller_backward(s, carried, s->gates + place * z->gates,
                                s->cells + after(s, episode, step) * hidden,
                                s->cells + after(s, episode, step + 1) * hidden, t->cell + r * hidden,
                                s->projected_gradient + place * z->gates);
        }
        pack_rows(t->rows, s->projected_gradient + (start * s->steps + step) * z->gates, z->gates, count,
                  s->steps * z->gates);
        multiply(t->product, t->rows, recurrent_weight, count, z->gates, z->recurrent);
        for (size r = 0; r < count; r++) {
            float *carried = t->carried + r * z->output;
            memset(carried, 0, z->output * sizeof(float));
            memcpy(carried + z->output - z->recurrent, t->product + r * z->recurrent,
                   z->recurrent * sizeof(float));
        }
    }
    for (size r = 0; r < count; r++) {
        size episode = start + r;
        memcpy(s->first_gradient + episode * z->recurrent, t->carried + (r + 1) * z->output - z->recurrent,
               z->recurrent * sizeof(float));
        from_lanes(s->first_memory_gradient + episode * s->slots * s->word, t->memory + r * z->memory,
                   s->slots, s->word);
        for (size head = 0; head < s->heads; head++)
            memcpy(s->first_read_weights_gradient + (episode * s->heads + head) * s->slots,
                   t->reading + r * z->weights + head * z->slots, s->slots * sizeof(float));
        if (s->lstm)
            memcpy(s->first_cell_gradient + episode * hidden, t->cell + r * hidden, hidden * sizeof(float));
    }
}

/* ---- What Python calls ---- */

size lrua_scratch(const Scan *s) {
    Sizes z = sizes_of(s);
    Scratch t;
    return packed_total(s, &z) + s->threads * lay_out(s, &z, &t, s->scratch);
}

/* Floats of one episode's memory and of its read weights, padded: what one place of what is kept takes. */
void lrua_padded(const Scan *s, size *memory, size *weights, size *slots) {
    Sizes z = sizes_of(s);
    *memory = z.memory;
    *weights = z.weights;
    *slots = z.slots;
}

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

static void for_all_groups(const Scan *s, int forward) {
    Sizes z = sizes_of(s);
    float *recurrent_weight = s->scratch, *interface_weight,
          *threads_scratch = s->scratch + packed_total(s, &z);
    if (forward) {
        interface_weight = recurrent_weight + packed_size(z.recurrent, z.gates);
        pack_panels(recurrent_weight, s->recurrent_weight, z.recurrent, z.gates, 1, z.recurrent, s->threads);
        pack_panels(interface_weight, s->interface_weight, s->hidden, z.interface, 1, s->hidden, s->threads);
    } else {
        interface_weight = recurrent_weight + packed_size(z.gates, z.recurrent);
        pack_panels(recurrent_weight, s->recurrent_weight, z.gates, z.recurrent, z.recurrent, 1, s->threads);
        pack_panels(interface_weight, s->interface_weight, z.interface, s->hidden, s->hidden, 1, s->threads);
    }
    size rows = group_rows(s);
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (size group = 0; group < group_count(s); group++) {
        Scratch t;
        size floats = lay_out(s, &z, &t, threads_scratch);
        lay_out(s, &z, &t, threads_scratch + omp_get_thread_num() * floats);
        size start = group * rows, count = s->batch - start < rows ? s->batch - start : rows;
        (forward ? group_forward : group_backward)(s, &z, &t, recurrent_weight, interface_weight, start,
                                                   count);
    }
}

void lrua_forward(const Scan *s) { for_all_groups(s, 1); }
void lrua_backward(const Scan *s) { for_all_groups(s, 0); }
