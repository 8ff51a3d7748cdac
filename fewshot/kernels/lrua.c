/* A controller with a least recently used memory over a whole sequence, forward and backward.

   The equations are those of fewshot/memory (Santoro et al. 2016, equations 2 to 8, and the table of lrua.py);
   the gradients follow below, step by step, with usage passing none. The sequence is that of sequence.h.

   An episode's memory is held with its slots in the lanes of vectors: (slot / LANES, word, LANES). Slots are
   padded to whole vectors and heads to whole groups of HEADS; what is padded is zero and stays so. */

#include "sequence.h"

#define HEADS 4

static const float EPSILON_SQUARED = 1e-16f; /* of fewshot/memory/addressing.py */

/* Mirrored in lrua.py. */
typedef struct {
    Sequence sequence;
    size heads, word, slots;
    size apart, sharp, shared; /* 0 or 1 */
    float usage_decay, strength_offset;
    /* The state, at the start and at the end. */
    const float *first_memory;                    /* (batch, slot, word) */
    const float *first_read_weights;              /* (batch, head, slot) */
    const float *first_usage;                     /* (batch, slot) */
    float *last_memory, *last_read_weights, *last_usage;
    /* Kept for the backward pass. */
    float *memories;                              /* (batch, step + 1, padded slot x word) */
    float *read_weights;                          /* (batch, step + 1, padded head, padded slot) */
    float *interfaces;                            /* (batch, step, interface + head if sharp): activated */
    float *cosines;                               /* (batch, step, padded head, padded slot) */
    float *inverses;                              /* (batch, step, padded slot): 1 / length of the word */
    int32_t *chosen;                              /* (batch, step, head): least used slots, the least first */
    /* Gradients of the last state, and of the first one. */
    const float *last_memory_gradient, *last_read_weights_gradient;
    float *first_memory_gradient, *first_read_weights_gradient;
} Scan;

typedef struct {
    size words, vectors, interface, activated;
    size slots, vector_count, heads, weights, memory;
} Sizes;

static Sizes sizes_of(const Scan *s) {
    Sizes z;
    z.words = s->heads * s->word;
    z.vectors = z.words * (1 + s->apart);
    z.interface = z.vectors + s->heads * (1 + s->sharp);
    z.activated = z.interface + s->heads * s->sharp;
    z.slots = round_up(s->slots, LANES);
    z.vector_count = z.slots / LANES;
    z.heads = round_up(s->heads, HEADS);
    z.weights = z.heads * z.slots;
    z.memory = z.slots * s->word;
    return z;
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
    float *weights[3];        /* (padded head, padded slot) each */
    float *groups[3];         /* (group of heads, word, HEADS) each */
    float *vectors;           /* (head, word) */
    float *slots;             /* (padded slot) */
    float *memory, *reading;  /* gradients on their way back, for a group of episodes */
} Room;

/* Lays the room of one thread out from `base`; gives how many floats it takes. */
static size lay_room_out(const Scan *s, const Sizes *z, Room *t, float *base) {
    size grouped = z->heads * s->word, used = 0;
    for (int j = 0; j < 3; j++) {
        TAKE(t->weights[j], z->weights);
        TAKE(t->groups[j], grouped);
    }
    TAKE(t->vectors, z->words);
    TAKE(t->slots, z->slots);
    TAKE(t->memory, GROUP * z->memory);
    TAKE(t->reading, GROUP * z->weights);
    return used;
}

/* memory, read_weights: after the step; they may lie where those before it lie. */
static void access_forward(const Scan *s, const Sizes *z, const Room *t, const float *memory_before,
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
static void access_backward(const Scan *s, const Sizes *z, const Room *t, const float *memory,
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
static void activate_interface(const Scan *s, const Sizes *z, const float *interface, float *activated) {
#pragma omp simd
    for (size j = 0; j < z->vectors; j++) activated[j] = hyperbolic_tangent(interface[j]);
    for (size j = z->vectors; j < z->vectors + s->heads; j++) activated[j] = sigmoid(interface[j]);
    for (size j = z->vectors + s->heads; j < z->interface; j++) {
        float x = interface[j];
        activated[j] = s->strength_offset + (x > 20.0f ? x : log1pf(expf(x)));
        activated[j + s->heads] = x > 20.0f ? 1.0f : sigmoid(x);
    }
}

/* ---- What the sequence asks of a memory ---- */

static void begin(const void *own, size episode) {
    const Scan *s = own;
    Sizes z = sizes_of(s);
    size place = after(&s->sequence, episode, 0);
    float *read_weights = s->read_weights + place * z.weights;
    to_lanes(s->memories + place * z.memory, s->first_memory + episode * s->slots * s->word, s->slots,
             s->word, z.slots);
    memset(read_weights, 0, z.weights * sizeof(float));
    for (size head = 0; head < s->heads; head++)
        memcpy(read_weights + head * z.slots,
               s->first_read_weights + (episode * s->heads + head) * s->slots, s->slots * sizeof(float));
    memcpy(s->last_usage + episode * s->slots, s->first_usage + episode * s->slots, s->slots * sizeof(float));
}

static void step_forward(const void *own, float *room, size episode, size step, const float *interface,
                         float *reads) {
    const Scan *s = own;
    Sizes z = sizes_of(s);
    Room t;
    lay_room_out(s, &z, &t, room);
    size kept = at(&s->sequence, episode, step);
    size before = after(&s->sequence, episode, step), now = after(&s->sequence, episode, step + 1);
    float *activated = s->interfaces + kept * z.activated;
    activate_interface(s, &z, interface, activated);
    access_forward(s, &z, &t, s->memories + before * z.memory, s->memories + now * z.memory,
                   s->last_usage + episode * s->slots, s->read_weights + before * z.weights, activated,
                   s->chosen + kept * s->heads, s->read_weights + now * z.weights,
                   s->cosines + kept * z.weights, s->inverses + kept * z.slots, reads);
}

static void end(const void *own, size episode) {
    const Scan *s = own;
    Sizes z = sizes_of(s);
    size now = after(&s->sequence, episode, s->sequence.steps);
    from_lanes(s->last_memory + episode * s->slots * s->word, s->memories + now * z.memory, s->slots,
               s->word);
    for (size head = 0; head < s->heads; head++)
        memcpy(s->last_read_weights + (episode * s->heads + head) * s->slots,
               s->read_weights + now * z.weights + head * z.slots, s->slots * sizeof(float));
}

static void begin_back(const void *own, float *room, size row, size episode) {
    const Scan *s = own;
    Sizes z = sizes_of(s);
    Room t;
    lay_room_out(s, &z, &t, room);
    float *reading = t.reading + row * z.weights;
    to_lanes(t.memory + row * z.memory, s->last_memory_gradient + episode * s->slots * s->word, s->slots,
             s->word, z.slots);
    memset(reading, 0, z.weights * sizeof(float));
    for (size head = 0; head < s->heads; head++)
        memcpy(reading + head * z.slots,
               s->last_read_weights_gradient + (episode * s->heads + head) * s->slots,
               s->slots * sizeof(float));
}

static void step_back(const void *own, float *room, size row, size episode, size step,
                      const float *reads_gradient, float *interface_gradient) {
    const Scan *s = own;
    Sizes z = sizes_of(s);
    Room t;
    lay_room_out(s, &z, &t, room);
    size place = at(&s->sequence, episode, step);
    size before = after(&s->sequence, episode, step), now = after(&s->sequence, episode, step + 1);
    access_backward(s, &z, &t, s->memories + now * z.memory, t.memory + row * z.memory,
                    t.reading + row * z.weights, reads_gradient, s->read_weights + before * z.weights,
                    s->interfaces + place * z.activated, s->chosen + place * s->heads,
                    s->read_weights + now * z.weights, s->cosines + place * z.weights,
                    s->inverses + place * z.slots, interface_gradient);
}

static void end_back(const void *own, float *room, size row, size episode) {
    const Scan *s = own;
    Sizes z = sizes_of(s);
    Room t;
    lay_room_out(s, &z, &t, room);
    from_lanes(s->first_memory_gradient + episode * s->slots * s->word, t.memory + row * z.memory, s->slots,
               s->word);
    for (size head = 0; head < s->heads; head++)
        memcpy(s->first_read_weights_gradient + (episode * s->heads + head) * s->slots,
               t.reading + row * z.weights + head * z.slots, s->slots * sizeof(float));
}

/* ---- What Python calls ---- */

static Memory memory_of(const Scan *s) {
    Sizes z = sizes_of(s);
    Room t;
    return (Memory){
        .own = s,
        .room = lay_room_out(s, &z, &t, s->sequence.scratch),
        .begin = begin,
        .step = step_forward,
        .end = end,
        .begin_back = begin_back,
        .step_back = step_back,
        .end_back = end_back,
    };
}

/* Floats of one episode's memory, of its read weights, and of a number per slot, padded: what one place of
   what is kept takes. */
void lrua_padded(size heads, size word, size slots, size *memory, size *weights, size *padded_slots) {
    Scan s = {.heads = heads, .word = word, .slots = slots};
    Sizes z = sizes_of(&s);
    *memory = z.memory;
    *weights = z.weights;
    *padded_slots = z.slots;
}

/* Numbers that a step is fed with. */
size lrua_interface(const Scan *s) { return sizes_of(s).interface; }

size lrua_scratch(const Scan *s) {
    Memory memory = memory_of(s);
    return sequence_scratch(&s->sequence, &memory);
}

void lrua_forward(const Scan *s) {
    Memory memory = memory_of(s);
    for_all_groups(&s->sequence, &memory, 1);
}

void lrua_backward(const Scan *s) {
    Memory memory = memory_of(s);
    for_all_groups(&s->sequence, &memory, 0);
}
