/* A controller with the memory of a differentiable neural computer over a whole sequence, both ways.

   The equations are those of fewshot/memory (Graves et al. 2016; Csordas and Schmidhuber 2019), in the tables
   of allocation.py, links.py and dnc.py; the gradients follow below, step by step. The sequence is that of
   sequence.h.

   An episode's memory is held word by word, (word, slot), so that all loops go along rows of slots, in whole
   vectors; what pads a row is zero and stays so. The links between slots are most of the work: each row of
   them is made, followed both ways, and left; going back it is made again from the step before. */

#include "sequence.h"

static const float EPSILON_SQUARED = 1e-16f; /* of fewshot/memory/addressing.py */
static const float EPSILON = 1e-6f;          /* of fewshot/memory/links.py */

/* A memory's state, or gradients of one; inside of the kernel with padded rows. Without links, precedence and
   links are of no numbers. */
typedef struct {
    float *memory;        /* (slot, word); inside of the kernel (word, slot) */
    float *usage;         /* (slot) */
    float *read_weights;  /* (head, slot) */
    float *write_weights; /* (slot) */
    float *precedence;    /* (slot) */
    float *links;         /* (slot, slot) */
} State;

/* Mirrored in dnc.py. */
typedef struct {
    Sequence sequence;
    size heads, word, slots;
    size masked, erase_on_free, linked, sharp; /* 0 or 1 */
    float strength_offset;
    State first, last;                         /* (batch, ...) */
    /* Kept for the backward pass: the states, (batch, step + 1, ...), ... */
    State states;
    /* ... and what a step made, (batch, step, ...); of the write head, then of the read heads. */
    float *interfaces;                         /* (interface + strengths): activated, then slopes */
    float *cosines, *inverses, *contents;      /* (1 + head, slot): cosine, 1 / length, softmax of cosines */
    float *followed, *sharpened;               /* (2, head, slot): backward and forward */
    int32_t *free_lists;                       /* (slot): least used first */
    State last_gradient, first_gradient;
} Scan;

/* A row of slots in the kernel. */
static size row_of(const Scan *s) { return round_up(s->slots, LANES); }

/* Where the parts of the interface begin, in its order; see Dnc in fewshot/memory/dnc.py. */
typedef struct {
    size keys, add, write_key, erase, masks, free_gates, allocation_gate, write_gate;
    size strengths, sharpness, modes, slopes, activated;
} Places;

static Places places_of(const Scan *s) {
    size heads = s->heads, word = s->word;
    Places p = {.keys = 0};
    p.add = heads * word;
    p.write_key = p.add + word;
    p.erase = p.write_key + word;
    p.masks = p.erase + word; /* of the read heads, then of the write head */
    p.free_gates = p.masks + s->masked * (heads + 1) * word;
    p.allocation_gate = p.free_gates + heads;
    p.write_gate = p.allocation_gate + 1;
    p.strengths = p.write_gate + 1; /* likewise */
    p.sharpness = p.strengths + heads + 1;
    p.modes = p.sharpness + s->sharp * 2 * heads;
    p.slopes = p.modes + s->linked * 3 * heads; /* of strengths and sharpness */
    p.activated = p.slopes + p.modes - p.strengths;
    return p;
}

static void activate(const Scan *s, const Places *p, const float *interface, float *activated) {
#pragma omp simd
    for (size j = 0; j < p->erase; j++) activated[j] = hyperbolic_tangent(interface[j]);
#pragma omp simd
    for (size j = p->erase; j < p->strengths; j++) activated[j] = sigmoid(interface[j]);
    for (size j = p->strengths; j < p->modes; j++) {
        float x = interface[j], least = j < p->sharpness ? s->strength_offset : 1.0f;
        activated[j] = least + (x > 20.0f ? x : log1pf(expf(x)));
        activated[j + p->slopes - p->strengths] = x > 20.0f ? 1.0f : sigmoid(x);
    }
    for (size j = p->modes; j < p->slopes; j += 3) {
        float most = fmaxf(interface[j], fmaxf(interface[j + 1], interface[j + 2])), total = 0;
        for (size k = j; k < j + 3; k++) total += activated[k] = exponential(interface[k] - most);
        for (size k = j; k < j + 3; k++) activated[k] /= total;
    }
}

/* In place: the gradient of what was activated, then of the raw interface. */
static void activate_back(const Places *p, const float *activated, float *gradient) {
#pragma omp simd
    for (size j = 0; j < p->erase; j++) gradient[j] *= 1 - activated[j] * activated[j];
#pragma omp simd
    for (size j = p->erase; j < p->strengths; j++) gradient[j] *= activated[j] * (1 - activated[j]);
    for (size j = p->strengths; j < p->modes; j++) gradient[j] *= activated[j + p->slopes - p->strengths];
    for (size j = p->modes; j < p->slopes; j += 3) {
        float mean = 0;
        for (size k = j; k < j + 3; k++) mean += activated[k] * gradient[k];
        for (size k = j; k < j + 3; k++) gradient[k] = activated[k] * (gradient[k] - mean);
    }
}

/* ---- Rows of slots ---- */

/* All counts are of padded rows, but those of softmax. */
static float dot(const float *left, const float *right, size count) {
    lanes sum = {0};
    for (size i = 0; i < count; i += LANES) sum += load(left + i) * load(right + i);
    return sum_of_lanes(sum);
}

static float sum_of(const float *row, size count) {
    lanes sum = {0};
    for (size i = 0; i < count; i += LANES) sum += load(row + i);
    return sum_of_lanes(sum);
}

static void add_scaled(float *to, float scale, const float *from, size count) {
#pragma omp simd
    for (size i = 0; i < count; i++) to[i] += scale * from[i];
}

static void softmax(const Scan *s, float *weights, float scale, const float *scores) {
    size count = s->slots;
    float most = -INFINITY, total = 0;
#pragma omp simd reduction(max : most)
    for (size i = 0; i < count; i++) most = scores[i] > most ? scores[i] : most;
#pragma omp simd reduction(+ : total)
    for (size i = 0; i < count; i++) {
        weights[i] = exponential(scale * (scores[i] - most));
        total += weights[i];
    }
    float share = 1.0f / total;
#pragma omp simd
    for (size i = 0; i < count; i++) weights[i] *= share;
    memset(weights + count, 0, (row_of(s) - count) * sizeof(float));
}

/* scores_gradient: of scale * scores; returns that of the scale. */
static float softmax_back(float *scores_gradient, const float *weights, const float *scores,
                          const float *gradient, size count) {
    float mean = dot(weights, gradient, count);
#pragma omp simd
    for (size i = 0; i < count; i++) scores_gradient[i] = weights[i] * (gradient[i] - mean);
    return dot(scores_gradient, scores, count);
}

/* ---- Content addressing of one head ---- */

/* A key as the cosine sees it: masked, masked twice, and the square of its mask. */
typedef struct {
    float *masked, *twice, *squares;
    float inverse;
} Key;

static Key mask_key(float *room, const float *key, const float *mask, size word) {
    Key k = {room, room + word, room + 2 * word, 0};
    float square = EPSILON_SQUARED;
    for (size w = 0; w < word; w++) {
        float share = mask ? mask[w] : 1.0f;
        k.masked[w] = share * key[w];
        k.twice[w] = share * k.masked[w];
        k.squares[w] = share * share;
        square += k.masked[w] * k.masked[w];
    }
    k.inverse = 1.0f / sqrtf(square);
    return k;
}

static void look_up(const Scan *s, float *room, const float *key, const float *mask, float strength,
                    const float *memory, float *cosines, float *inverses, float *weights) {
    size slots = row_of(s);
    Key k = mask_key(room, key, mask, s->word);
    for (size i = 0; i < slots; i++) cosines[i] = 0, inverses[i] = EPSILON_SQUARED;
    for (size w = 0; w < s->word; w++) {
        const float *words = memory + w * slots;
        float number = k.twice[w], square = k.squares[w];
#pragma omp simd
        for (size i = 0; i < slots; i++) {
            cosines[i] += number * words[i];
            inverses[i] += square * words[i] * words[i];
        }
    }
#pragma omp simd
    for (size i = 0; i < slots; i++) {
        inverses[i] = 1.0f / sqrtf(inverses[i]);
        cosines[i] *= k.inverse * inverses[i];
    }
    softmax(s, weights, strength, cosines);
}

/* gradient: of the weights; memory_gradient is added to, the others are set. mask: or NULL. */
static void look_up_back(const Scan *s, float *room, const float *key, const float *mask, float strength,
                         const float *memory, const float *cosines, const float *inverses,
                         const float *weights, const float *gradient, float *memory_gradient,
                         float *key_gradient, float *mask_gradient, float *strength_gradient) {
    size word = s->word, slots = row_of(s);
    Key k = mask_key(room, key, mask, word);
    float *pull = room + 3 * word, *shrink = pull + slots; /* of the scalar products and squared lengths */
    *strength_gradient = softmax_back(pull, weights, cosines, gradient, slots);
    float along = strength * *strength_gradient * k.inverse * k.inverse;
#pragma omp simd
    for (size i = 0; i < slots; i++) {
        shrink[i] = strength * pull[i] * cosines[i] * inverses[i] * inverses[i];
        pull[i] *= strength * k.inverse * inverses[i];
    }
    for (size w = 0; w < word; w++) {
        const float *words = memory + w * slots;
        float *back = memory_gradient + w * slots;
        float number = k.twice[w], square = k.squares[w];
        lanes twice = {0}, squares = {0};
        for (size i = 0; i < slots; i += LANES) {
            lanes here = load(words + i), pulled = load(pull + i), shrunk = load(shrink + i) * here;
            twice += pulled * here;
            squares += shrunk * here;
            store(back + i, load(back + i) + number * pulled - square * shrunk);
        }
        float share = mask ? mask[w] : 1.0f, of_twice = sum_of_lanes(twice);
        float of_masked = share * of_twice - along * k.masked[w], of_squares = sum_of_lanes(squares);
        key_gradient[w] = share * of_masked;
        if (mask) mask_gradient[w] = k.masked[w] * of_twice + key[w] * of_masked - share * of_squares;
    }
}

/* ---- Allocation ---- */

static uint64_t sortable(float usage, size slot) { /* least usage first, of equals the lower slot */
    uint32_t bits;
    memcpy(&bits, &usage, sizeof bits);
    bits ^= bits >> 31 ? UINT32_MAX : 1u << 31;
    return (uint64_t)bits << 32 | (uint32_t)slot;
}

/* room: for twice as many 64-bit numbers as there are slots. */
static void sort_slots(int32_t *free_list, const float *usage, uint64_t *room, size slots) {
    uint64_t *from = room, *to = room + slots;
    for (size i = 0; i < slots; i++) from[i] = sortable(usage[i], i);
    for (size run = 1; run < slots; run *= 2) {
        for (size start = 0; start < slots; start += 2 * run) {
            size middle = start + run < slots ? start + run : slots;
            size end = middle + run < slots ? middle + run : slots;
            for (size left = start, right = middle, i = start; i < end; i++) {
                int takes_left = right == end || (left < middle && from[left] < from[right]);
                to[i] = takes_left ? from[left++] : from[right++];
            }
        }
        uint64_t *other = from;
        from = to, to = other;
    }
    for (size i = 0; i < slots; i++) free_list[i] = (int32_t)from[i];
}

static void allocate(const Scan *s, float *allocation, const float *usage, const int32_t *free_list) {
    size slots = s->slots;
    float taken = 1;
    memset(allocation + slots, 0, (row_of(s) - slots) * sizeof(float));
    for (size j = 0; j < slots; j++) {
        size slot = free_list[j];
        allocation[slot] = (1 - usage[slot]) * taken;
        taken *= usage[slot];
    }
}

/* room: for a number per slot. */
static void allocate_back(float *usage_gradient, const float *gradient, const float *usage,
                          const int32_t *free_list, float *room, size slots) {
    float taken = 1, of_taken = 0;
    for (size j = 0; j < slots; j++) room[j] = taken, taken *= usage[free_list[j]];
    for (size j = slots - 1; j >= 0; j--) {
        size slot = free_list[j];
        usage_gradient[slot] += room[j] * (of_taken - gradient[slot]);
        of_taken = of_taken * usage[slot] + gradient[slot] * (1 - usage[slot]);
    }
}

/* The share of every slot that is not freed. */
static void retain(float *retained, const float *free_gates, const float *read_weights, size heads,
                   size slots) {
    for (size i = 0; i < slots; i++) retained[i] = 1;
    for (size head = 0; head < heads; head++)
#pragma omp simd
        for (size i = 0; i < slots; i++) retained[i] *= 1 - free_gates[head] * read_weights[head * slots + i];
}

/* Sets free_gates_gradient and adds to read_weights_gradient. room: for a number per slot. */
static void retain_back(const float *gradient, const float *free_gates, const float *read_weights,
                        float *free_gates_gradient, float *read_weights_gradient, float *room, size heads,
                        size slots) {
    for (size head = 0; head < heads; head++) {
        for (size i = 0; i < slots; i++) room[i] = -gradient[i];
        for (size other = 0; other < heads; other++)
            if (other != head)
#pragma omp simd
                for (size i = 0; i < slots; i++)
                    room[i] *= 1 - free_gates[other] * read_weights[other * slots + i];
        free_gates_gradient[head] = dot(room, read_weights + head * slots, slots);
        add_scaled(read_weights_gradient + head * slots, free_gates[head], room, slots);
    }
}

/* ---- Links ---- */

static void make_row(float *row, const float *before, size i, const float *write_weights,
                     const float *precedence, size slots) {
    float written = write_weights[i];
#pragma omp simd
    for (size j = 0; j < slots; j++)
        row[j] = (1 - written - write_weights[j]) * before[j] + written * precedence[j];
    row[i] = 0;
}

/* followed: (2, head, slot), backward and forward; links may lie where those before them lie. */
static void follow(const Scan *s, const float *before, float *links, const float *write_weights,
                   const float *precedence, const float *read_weights, float *followed) {
    size slots = row_of(s), rows = s->heads * slots;
    memset(followed, 0, 2 * rows * sizeof(float));
    for (size i = 0; i < s->slots; i++) {
        float *row = links + i * slots;
        make_row(row, before + i * slots, i, write_weights, precedence, slots);
        for (size head = 0; head < rows; head += slots) {
            const float *read = read_weights + head;
            float *backward = followed + head, here = read[i];
            lanes forward = {0};
            for (size j = 0; j < slots; j += LANES) {
                lanes links_here = load(row + j);
                forward += links_here * load(read + j);
                store(backward + j, load(backward + j) + here * links_here);
            }
            followed[rows + head + i] = sum_of_lanes(forward);
        }
    }
}

/* gradient: of the links after the step, then before it; followed_gradient: (2, head, slot); the others are
   added to. row: room for one. */
static void follow_back(const Scan *s, const float *before, float *gradient, const float *write_weights,
                        const float *precedence, const float *read_weights, const float *followed_gradient,
                        float *write_weights_gradient, float *precedence_gradient,
                        float *read_weights_gradient, float *row) {
    size slots = row_of(s), rows = s->heads * slots;
    for (size i = 0; i < s->slots; i++) {
        const float *old = before + i * slots;
        float *back = gradient + i * slots, written = write_weights[i];
        lanes of_written = {0};
        make_row(row, old, i, write_weights, precedence, slots);
        for (size head = 0; head < rows; head += slots) {
            const float *read = read_weights + head, *of_backward = followed_gradient + head;
            float *of_read = read_weights_gradient + head;
            float here = read[i], of_forward = followed_gradient[rows + head + i];
            lanes of_here = {0};
            for (size j = 0; j < slots; j += LANES) {
                lanes links_here = load(row + j), pulled = load(of_backward + j);
                store(back + j, load(back + j) + of_forward * load(read + j) + here * pulled);
                store(of_read + j, load(of_read + j) + of_forward * links_here);
                of_here += links_here * pulled;
            }
            of_read[i] += sum_of_lanes(of_here);
        }
        back[i] = 0;
        for (size j = 0; j < slots; j += LANES) {
            lanes received = load(back + j), along = received * load(old + j);
            of_written += received * load(precedence + j) - along;
            store(write_weights_gradient + j, load(write_weights_gradient + j) - along);
            store(precedence_gradient + j, load(precedence_gradient + j) + written * received);
            store(back + j, received * (1 - written - load(write_weights + j)));
        }
        write_weights_gradient[i] += sum_of_lanes(of_written);
    }
}

/* w(j)^sharpness / sum over k of w(k)^sharpness; room: for a number per slot. */
static void sharpen(const Scan *s, float *sharpened, const float *weights, float sharpness, float *room) {
    for (size i = 0; i < s->slots; i++) room[i] = logf(weights[i] + EPSILON);
    softmax(s, sharpened, sharpness, room);
}

/* gradient: of the sharpened weights, then of the weights; returns that of the sharpness. */
static float sharpen_back(float *gradient, const float *sharpened, const float *weights, float sharpness,
                          float *room, size slots) {
    float *logarithms = room, *of_scores = room + slots;
    for (size i = 0; i < slots; i++) logarithms[i] = logf(weights[i] + EPSILON);
    float of_sharpness = softmax_back(of_scores, sharpened, logarithms, gradient, slots);
#pragma omp simd
    for (size i = 0; i < slots; i++) gradient[i] = sharpness * of_scores[i] / (weights[i] + EPSILON);
    return of_sharpness;
}

/* ---- One step of one episode ---- */

/* Floats of the parts of a state. */
typedef struct {
    size memory, slots, reading, precedence, links;
} Extents;

static Extents extents_of(const Scan *s) {
    size slots = row_of(s);
    return (Extents){
        .memory = s->word * slots,
        .slots = slots,
        .reading = s->heads * slots,
        .precedence = s->linked * slots,
        .links = s->linked * s->slots * slots,
    };
}

/* One of many padded states, which lie part by part. */
static State state_in(const Scan *s, const State *states, size place) {
    Extents e = extents_of(s);
    return (State){
        .memory = states->memory + place * e.memory,
        .usage = states->usage + place * e.slots,
        .read_weights = states->read_weights + place * e.reading,
        .write_weights = states->write_weights + place * e.slots,
        .precedence = states->precedence + place * e.precedence,
        .links = states->links + place * e.links,
    };
}

/* The state after so many steps. */
static State state_after(const Scan *s, size episode, size steps) {
    return state_in(s, &s->states, after(&s->sequence, episode, steps));
}

/* Rows of slots, padded on their way in. */
static void copy_rows(const Scan *s, float *to, const float *from, size rows, int in) {
    size padded = row_of(s), to_row = in ? padded : s->slots, from_row = in ? s->slots : padded;
    for (size row = 0; row < rows; row++) {
        memcpy(to + row * to_row, from + row * from_row, s->slots * sizeof(float));
        memset(to + row * to_row + s->slots, 0, (to_row - s->slots) * sizeof(float));
    }
}

/* A padded state from or to (in: 0) its place among those that Python sees. */
static void copy_state(const Scan *s, State kernels, const State *seen, size episode, int in) {
    size slots = s->slots, padded = row_of(s), linked = s->linked * slots;
    float *memory = seen->memory + episode * slots * s->word;
    if (in) memset(kernels.memory, 0, s->word * padded * sizeof(float));
    for (size i = 0; i < slots; i++)
        for (size w = 0; w < s->word; w++) {
            float *one = kernels.memory + w * padded + i, *other = memory + i * s->word + w;
            if (in)
                *one = *other;
            else
                *other = *one;
        }
    float *parts[] = {kernels.usage, kernels.read_weights, kernels.write_weights, kernels.precedence,
                      kernels.links};
    float *others[] = {seen->usage, seen->read_weights, seen->write_weights, seen->precedence, seen->links};
    size rows[] = {1, s->heads, 1, s->linked, linked};
    for (int part = 0; part < 5; part++) {
        float *other = others[part] + episode * rows[part] * slots;
        copy_rows(s, in ? parts[part] : other, in ? other : parts[part], rows[part], in);
    }
}

typedef struct { /* what a step made */
    float *interface, *cosines, *inverses, *contents, *followed, *sharpened;
    int32_t *free_list;
} Made;

static Made made_at(const Scan *s, const Places *p, size episode, size step) {
    size place = at(&s->sequence, episode, step), slots = row_of(s);
    size heads = (1 + s->heads) * slots, directions = 2 * s->heads * slots;
    return (Made){
        .interface = s->interfaces + place * p->activated,
        .cosines = s->cosines + place * heads,
        .inverses = s->inverses + place * heads,
        .contents = s->contents + place * heads,
        .followed = s->followed + s->linked * place * directions,
        .sharpened = s->sharpened + s->sharp * place * directions,
        .free_list = s->free_lists + place * s->slots,
    };
}

typedef struct { /* what is computed and forgotten, for one thread */
    float *retained, *allocation, *row;                /* (slot) */
    float *of_retained, *of_allocation, *of_found;     /* (slot) */
    float *of_followed, *of_reading;                   /* (2, head, slot), (head, slot) */
    float *of_interface;                               /* (activated) */
    float *key;                                        /* three words and two rows of slots */
    float *sorting;                                    /* twice 64 bits per slot */
    State carried;                                     /* gradients on their way back, for a group */
} Room;

/* Lays the room of one thread out from `base`; gives how many floats it takes. */
static size lay_room_out(const Scan *s, Room *t, float *base) {
    Extents e = extents_of(s);
    size slots = e.slots, used = 0;
    TAKE(t->retained, slots);
    TAKE(t->allocation, slots);
    TAKE(t->row, slots);
    TAKE(t->of_retained, slots);
    TAKE(t->of_allocation, slots);
    TAKE(t->of_found, slots);
    TAKE(t->of_followed, 2 * e.reading);
    TAKE(t->of_reading, e.reading);
    TAKE(t->of_interface, places_of(s).activated);
    TAKE(t->key, 3 * s->word + 2 * slots);
    TAKE(t->sorting, 4 * s->slots);
    TAKE(t->carried.memory, GROUP * e.memory);
    TAKE(t->carried.usage, GROUP * slots);
    TAKE(t->carried.read_weights, GROUP * e.reading);
    TAKE(t->carried.write_weights, GROUP * slots);
    TAKE(t->carried.precedence, GROUP * e.precedence);
    TAKE(t->carried.links, GROUP * e.links);
    return used;
}

typedef struct { /* all that a step of an episode works on */
    const Scan *s;
    Places p;
    Made made;
    State old, new;
    Room t;
} Step;

static Step step_at(const void *own, float *room, size episode, size step) {
    const Scan *s = own;
    Step z = {.s = s, .p = places_of(s)};
    z.made = made_at(s, &z.p, episode, step);
    z.old = state_after(s, episode, step);
    z.new = state_after(s, episode, step + 1);
    lay_room_out(s, &z.t, room);
    return z;
}

/* The write head comes after the read heads, and looks at the memory before the write. */
static void look_up_by(const Step *z, size head, float *weights) {
    const Scan *s = z->s;
    const float *x = z->made.interface;
    int writes = head == s->heads;
    size row = (writes ? 0 : 1 + head) * row_of(s);
    look_up(s, z->t.key, x + (writes ? z->p.write_key : z->p.keys + head * s->word),
            s->masked ? x + z->p.masks + head * s->word : NULL, x[z->p.strengths + head],
            writes ? z->old.memory : z->new.memory, z->made.cosines + row, z->made.inverses + row, weights);
}

static void look_up_back_by(const Step *z, size head, const float *weights, const float *gradient,
                            float *memory_gradient) {
    const Scan *s = z->s;
    const float *x = z->made.interface;
    int writes = head == s->heads;
    size row = (writes ? 0 : 1 + head) * row_of(s), mask = z->p.masks + head * s->word;
    size key = writes ? z->p.write_key : z->p.keys + head * s->word, strength = z->p.strengths + head;
    float *of_x = z->t.of_interface;
    look_up_back(s, z->t.key, x + key, s->masked ? x + mask : NULL, x[strength],
                 writes ? z->old.memory : z->new.memory, z->made.cosines + row, z->made.inverses + row,
                 weights, gradient, memory_gradient, of_x + key, of_x + mask, of_x + strength);
}

/* What stays of each slot's content before it is written: all, unless it is erased as it is freed. */
static const float *held_of(const Step *z) {
    if (z->s->erase_on_free) return z->t.retained;
    for (size i = 0; i < row_of(z->s); i++) z->t.row[i] = 1;
    return z->t.row;
}

/* usage, write_weights, memory */
static void write_forward(const Step *z) {
    const Scan *s = z->s;
    const float *x = z->made.interface;
    size slots = row_of(s);
    State old = z->old, new = z->new;
    float *retained = z->t.retained, *allocation = z->t.allocation, *found = z->made.contents;
    retain(retained, x + z->p.free_gates, old.read_weights, s->heads, slots);
#pragma omp simd
    for (size i = 0; i < slots; i++)
        new.usage[i] = (old.usage[i] + old.write_weights[i] * (1 - old.usage[i])) * retained[i];
    sort_slots(z->made.free_list, new.usage, (uint64_t *)z->t.sorting, s->slots);
    allocate(s, allocation, new.usage, z->made.free_list);

    look_up_by(z, s->heads, found);
    float free = x[z->p.allocation_gate], gate = x[z->p.write_gate];
#pragma omp simd
    for (size i = 0; i < slots; i++)
        new.write_weights[i] = gate * (free * allocation[i] + (1 - free) * found[i]);

    const float *held = held_of(z);
    for (size w = 0; w < s->word; w++) {
        const float *from = old.memory + w * slots;
        float *to = new.memory + w * slots, erase = x[z->p.erase + w], add = x[z->p.add + w];
#pragma omp simd
        for (size i = 0; i < slots; i++) {
            float written = new.write_weights[i];
            to[i] = from[i] * held[i] * (1 - written * erase) + written * add;
        }
    }
}

/* of: gradients of the state after the step, all but links and precedence, which are those before it; then of
   the state before. */
static void write_back(const Step *z, State of) {
    const Scan *s = z->s;
    const float *x = z->made.interface, *found = z->made.contents;
    size slots = row_of(s);
    State old = z->old, new = z->new;
    float *of_x = z->t.of_interface, *retained = z->t.retained, *of_retained = z->t.of_retained;

    /* memory = memory before x held x (1 - write_weights erase) + write_weights add */
    retain(retained, x + z->p.free_gates, old.read_weights, s->heads, slots);
    const float *held = held_of(z);
    memset(of_retained, 0, slots * sizeof(float));
    for (size w = 0; w < s->word; w++) {
        const float *from = old.memory + w * slots;
        float *back = of.memory + w * slots, erase = x[z->p.erase + w], add = x[z->p.add + w];
        lanes of_erase = {0}, of_add = {0};
        for (size i = 0; i < slots; i += LANES) {
            lanes received = load(back + i), written = load(new.write_weights + i), stays = load(held + i);
            lanes of_held = received * load(from + i), erased = of_held * stays, left = 1 - written * erase;
            of_add += received * written;
            of_erase -= erased * written;
            store(of.write_weights + i, load(of.write_weights + i) + received * add - erased * erase);
            store(of_retained + i, load(of_retained + i) + of_held * left);
            store(back + i, received * stays * left);
        }
        of_x[z->p.erase + w] = sum_of_lanes(of_erase);
        of_x[z->p.add + w] = sum_of_lanes(of_add);
    }
    if (!s->erase_on_free) memset(of_retained, 0, slots * sizeof(float));

    /* write_weights = write_gate (allocation_gate allocation + (1 - allocation_gate) found) */
    float *allocation = z->t.allocation, *of_allocation = z->t.of_allocation, *of_found = z->t.of_found;
    allocate(s, allocation, new.usage, z->made.free_list);
    float free = x[z->p.allocation_gate], gate = x[z->p.write_gate], of_free = 0, of_gate = 0;
#pragma omp simd reduction(+ : of_free, of_gate)
    for (size i = 0; i < slots; i++) {
        float received = of.write_weights[i];
        of_gate += received * (free * allocation[i] + (1 - free) * found[i]);
        of_free += received * gate * (allocation[i] - found[i]);
        of_allocation[i] = received * gate * free;
        of_found[i] = received * gate * (1 - free);
    }
    of_x[z->p.allocation_gate] = of_free;
    of_x[z->p.write_gate] = of_gate;
    look_up_back_by(z, s->heads, found, of_found, of.memory);
    allocate_back(of.usage, of_allocation, new.usage, z->made.free_list, z->t.row, s->slots);

    /* usage = (usage before + write_weights before (1 - usage before)) retained */
#pragma omp simd
    for (size i = 0; i < slots; i++) {
        float received = of.usage[i] * retained[i], used = old.usage[i], written = old.write_weights[i];
        of_retained[i] += of.usage[i] * (used + written * (1 - used));
        of.usage[i] = received * (1 - written);
        of.write_weights[i] = received * (1 - used);
    }
    retain_back(of_retained, x + z->p.free_gates, old.read_weights, of_x + z->p.free_gates, of.read_weights,
                z->t.row, s->heads, slots);
}

/* links, precedence, and what they lead to: (2, head, slot) */
static const float *link_forward(const Step *z) {
    const Scan *s = z->s;
    size slots = row_of(s);
    State old = z->old, new = z->new;
    float *followed = z->made.followed, *sharpened = z->made.sharpened;
    follow(s, old.links, new.links, new.write_weights, old.precedence, old.read_weights, followed);
    float left = 1 - sum_of(new.write_weights, slots);
#pragma omp simd
    for (size i = 0; i < slots; i++) new.precedence[i] = left * old.precedence[i] + new.write_weights[i];
    for (size row = 0; row < 2 * s->heads * s->sharp; row++)
        sharpen(s, sharpened + row * slots, followed + row * slots, z->made.interface[z->p.sharpness + row],
                z->t.row);
    return s->sharp ? sharpened : followed;
}

/* The room's of_followed holds the gradient of what the links lead to. */
static void link_back(const Step *z, State of) {
    const Scan *s = z->s;
    size slots = row_of(s);
    State old = z->old, new = z->new;
    float *of_followed = z->t.of_followed;
    for (size row = 0; row < 2 * s->heads * s->sharp; row++)
        z->t.of_interface[z->p.sharpness + row] = sharpen_back(
            of_followed + row * slots, z->made.sharpened + row * slots, z->made.followed + row * slots,
            z->made.interface[z->p.sharpness + row], z->t.key, slots);
    float left = 1 - sum_of(new.write_weights, slots), spent = dot(of.precedence, old.precedence, slots);
#pragma omp simd
    for (size i = 0; i < slots; i++) {
        of.write_weights[i] += of.precedence[i] - spent;
        of.precedence[i] *= left;
    }
    follow_back(s, old.links, of.links, new.write_weights, old.precedence, old.read_weights, of_followed,
                of.write_weights, of.precedence, of.read_weights, z->t.row);
}

/* read_weights, links and precedence; and the words that are read. */
static void read_forward(const Step *z, float *reads) {
    const Scan *s = z->s;
    size slots = row_of(s), reading = s->heads * slots;
    float *contents = z->made.contents + slots, *read_weights = z->new.read_weights;
    for (size head = 0; head < s->heads; head++) look_up_by(z, head, contents + head * slots);
    if (s->linked) {
        const float *backward = link_forward(z), *forward = backward + reading;
        for (size head = 0; head < s->heads; head++) {
            const float *modes = z->made.interface + z->p.modes + 3 * head;
#pragma omp simd
            for (size i = head * slots; i < (head + 1) * slots; i++)
                read_weights[i] = modes[0] * backward[i] + modes[1] * contents[i] + modes[2] * forward[i];
        }
    } else
        memcpy(read_weights, contents, reading * sizeof(float));
    for (size head = 0; head < s->heads; head++)
        for (size w = 0; w < s->word; w++)
            reads[head * s->word + w] = dot(read_weights + head * slots, z->new.memory + w * slots, slots);
}

/* of: gradients of the state after the step; then read_weights, links and precedence are those before it. */
static void read_back(const Step *z, State of, const float *reads_gradient) {
    const Scan *s = z->s;
    size slots = row_of(s), reading = s->heads * slots;
    const float *contents = z->made.contents + slots;
    for (size head = 0; head < s->heads; head++)
        for (size w = 0; w < s->word; w++) {
            float received = reads_gradient[head * s->word + w];
            add_scaled(of.read_weights + head * slots, received, z->new.memory + w * slots, slots);
            add_scaled(of.memory + w * slots, received, z->new.read_weights + head * slots, slots);
        }
    float *of_contents = z->t.of_reading;
    memcpy(of_contents, of.read_weights, reading * sizeof(float));
    memset(of.read_weights, 0, reading * sizeof(float));
    if (s->linked) {
        const float *backward = s->sharp ? z->made.sharpened : z->made.followed;
        const float *ways[] = {backward, contents, backward + reading};
        float *of_backward = z->t.of_followed, *of_forward = z->t.of_followed + reading;
        for (size head = 0; head < s->heads; head++) {
            size row = head * slots, places = z->p.modes + 3 * head;
            const float *modes = z->made.interface + places;
            for (int way = 0; way < 3; way++)
                z->t.of_interface[places + way] = dot(of_contents + row, ways[way] + row, slots);
#pragma omp simd
            for (size i = row; i < row + slots; i++) {
                of_backward[i] = modes[0] * of_contents[i];
                of_forward[i] = modes[2] * of_contents[i];
                of_contents[i] *= modes[1];
            }
        }
        link_back(z, of);
    }
    for (size head = 0; head < s->heads; head++)
        look_up_back_by(z, head, contents + head * slots, of_contents + head * slots, of.memory);
}

static void step_forward(const void *own, float *room, size episode, size step, const float *interface,
                         float *reads) {
    Step z = step_at(own, room, episode, step);
    activate(z.s, &z.p, interface, z.made.interface);
    write_forward(&z);
    read_forward(&z, reads);
}

static void step_back(const void *own, float *room, size row, size episode, size step,
                      const float *reads_gradient, float *interface_gradient) {
    Step z = step_at(own, room, episode, step);
    State of = state_in(z.s, &z.t.carried, row);
    read_back(&z, of, reads_gradient);
    write_back(&z, of);
    activate_back(&z.p, z.made.interface, z.t.of_interface);
    memcpy(interface_gradient, z.t.of_interface, z.p.slopes * sizeof(float));
}

/* ---- What the sequence asks of a memory ---- */

static void begin(const void *own, size episode) {
    const Scan *s = own;
    copy_state(s, state_after(s, episode, 0), &s->first, episode, 1);
}

static void end(const void *own, size episode) {
    const Scan *s = own;
    copy_state(s, state_after(s, episode, s->sequence.steps), &s->last, episode, 0);
}

static void begin_back(const void *own, float *room, size row, size episode) {
    const Scan *s = own;
    Room t;
    lay_room_out(s, &t, room);
    copy_state(s, state_in(s, &t.carried, row), &s->last_gradient, episode, 1);
}

static void end_back(const void *own, float *room, size row, size episode) {
    const Scan *s = own;
    Room t;
    lay_room_out(s, &t, room);
    copy_state(s, state_in(s, &t.carried, row), &s->first_gradient, episode, 0);
}

/* ---- What Python calls ---- */

static Memory memory_of(const Scan *s) {
    Room t;
    return (Memory){
        .own = s,
        .room = lay_room_out(s, &t, s->sequence.scratch),
        .begin = begin,
        .step = step_forward,
        .end = end,
        .begin_back = begin_back,
        .step_back = step_back,
        .end_back = end_back,
    };
}

/* Numbers of a row of slots. */
size dnc_padded(size slots) { return round_up(slots, LANES); }

/* Numbers that a step is fed with. */
size dnc_interface(const Scan *s) { return places_of(s).slopes; }

size dnc_scratch(const Scan *s) {
    Memory memory = memory_of(s);
    return sequence_scratch(&s->sequence, &memory);
}

void dnc_forward(const Scan *s) {
    Memory memory = memory_of(s);
    for_all_groups(&s->sequence, &memory, 1);
}

void dnc_backward(const Scan *s) {
    Memory memory = memory_of(s);
    for_all_groups(&s->sequence, &memory, 0);
}
