/* Episodes as integers: what fewshot/episodes/sampler.py decides with plain torch, one after the other.

   The numbers are those of the plain path, all of them: fewshot/episodes/hashing.py says what they are. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const int64_t *first_image, *images_per_class, *turns; /* (class) */
    const int64_t *by_group, *group_start, *group_size;    /* NULL unless classes come from one group */
    const int64_t *choices;                                /* the groups that are large enough */
    int64_t classes, num_choices;
} Pool;

typedef struct {
    int64_t way, length, support, draws; /* draws: the most images that a class may need */
    int independent;                     /* a stream whose steps draw their classes one by one */
} Shape;

typedef struct {
    uint64_t classes, images, order;
} Keys;

/* Working memory. */
typedef struct {
    uint64_t *hashes, *sorted; /* (length) */
    int64_t *items;            /* (length) */
    int32_t *buckets;          /* (number of buckets + 1) */
    int64_t *seen;             /* (way) */
    int32_t *drawn;            /* (way, draws) */
} Room;

static inline uint64_t mix(uint64_t value) {
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
    value = (value ^ value >> 27) * 0x94D049BB133111EBu;
    return value ^ value >> 31;
}

static inline uint64_t fold(uint64_t key, int64_t counter) {
    return mix((uint64_t)counter * 0x9E3779B97F4A7C15u + key);
}

static inline int64_t below(uint64_t random, int64_t limit) {
    return (int64_t)((random >> 32) * (uint64_t)limit >> 32);
}

/* Ordered draws without replacement from 0..limit-1: ranks first, then each makes room among later ones. */
static void draw_distinct(uint64_t key, int64_t count, int64_t limit, int32_t *drawn) {
    for (int64_t j = 0; j < count; j++) drawn[j] = (int32_t)below(fold(key, j), limit > j ? limit - j : 1);
    for (int64_t j = count - 2; j >= 0; j--)
        for (int64_t later = j + 1; later < count; later++) drawn[later] += drawn[later] >= drawn[j];
}

static int bucket_bits(int64_t count) {
    int bits = 1;
    while ((int64_t)1 << bits < count) bits++;
    return bits;
}

/* The places of `count` hashes, in the order of the hashes as signed numbers. They are spread evenly: thrown
   into as many buckets by their first bits they are nearly sorted, and the cost is linear. */
static void order_of(const uint64_t *hashes, int64_t count, Room room, int64_t *items) {
    const uint64_t sign = (uint64_t)1 << 63;
    int bits = bucket_bits(count), shift = 64 - bits;
    memset(room.buckets, 0, sizeof(int32_t) * (((size_t)1 << bits) + 1));
    for (int64_t i = 0; i < count; i++) room.buckets[((hashes[i] ^ sign) >> shift) + 1]++;
    for (int64_t b = 0; b < (int64_t)1 << bits; b++) room.buckets[b + 1] += room.buckets[b];
    for (int64_t i = 0; i < count; i++) {
        uint64_t hash = hashes[i] ^ sign;
        int32_t place = room.buckets[hash >> shift]++;
        room.sorted[place] = hash;
        items[place] = i;
    }
    for (int64_t i = 1; i < count; i++) {
        uint64_t hash = room.sorted[i];
        int64_t item = items[i], place = i;
        for (; place > 0 && room.sorted[place - 1] > hash; place--) {
            room.sorted[place] = room.sorted[place - 1];
            items[place] = items[place - 1];
        }
        room.sorted[place] = hash;
        items[place] = item;
    }
}

/* Labels that are each uniform over the classes which still have images. */
static void draw_labels(const uint64_t *hashes, const Pool *pool, Shape shape, const int64_t *class_ids,
                        int64_t *seen, int64_t *labels) {
    int supplied = 1;
    memset(seen, 0, sizeof(int64_t) * (size_t)shape.way);
    for (int64_t i = 0; i < shape.length; i++) {
        labels[i] = below(hashes[i], shape.way);
        supplied &= ++seen[labels[i]] <= pool->images_per_class[class_ids[labels[i]]];
    }
    if (supplied) return;
    memset(seen, 0, sizeof(int64_t) * (size_t)shape.way);
    for (int64_t i = 0; i < shape.length; i++) {
        int64_t available = 0, label = -1;
        for (int64_t c = 0; c < shape.way; c++) available += seen[c] < pool->images_per_class[class_ids[c]];
        for (int64_t rank = below(hashes[i], available); rank >= 0; rank--)
            do label++;
            while (seen[label] >= pool->images_per_class[class_ids[label]]);
        seen[label]++;
        labels[i] = label;
    }
}

static void draw_episode(int64_t episode, const Pool *pool, Shape shape, Keys keys, Room room,
                         int64_t *class_ids, int64_t *images, int64_t *turns, int64_t *labels) {
    uint64_t class_key = fold(keys.classes, episode), image_key = fold(keys.images, episode);
    uint64_t order_key = fold(keys.order, episode);

    int64_t first = 0, size = pool->classes;
    if (pool->by_group) {
        int64_t group = pool->choices[below(fold(class_key, shape.way), pool->num_choices)];
        first = pool->group_start[group];
        size = pool->group_size[group];
    }
    draw_distinct(class_key, shape.way, size, room.drawn);
    for (int64_t c = 0; c < shape.way; c++) {
        int64_t place = first + room.drawn[c];
        class_ids[c] = pool->by_group ? pool->by_group[place] : place;
    }

    for (int64_t i = 0; i < shape.length; i++) room.hashes[i] = fold(order_key, i);
    if (shape.independent) {
        draw_labels(room.hashes, pool, shape, class_ids, room.seen, labels);
    } else {
        order_of(room.hashes, shape.support, room, room.items);
        order_of(room.hashes + shape.support, shape.length - shape.support, room, room.items + shape.support);
        for (int64_t i = 0; i < shape.length; i++) labels[i] = room.items[i] % shape.way;
    }

    memset(room.seen, 0, sizeof(int64_t) * (size_t)shape.way);
    for (int64_t i = 0; i < shape.length; i++) room.seen[labels[i]]++;
    for (int64_t c = 0; c < shape.way; c++)
        draw_distinct(fold(image_key, c), room.seen[c], pool->images_per_class[class_ids[c]],
                      room.drawn + c * shape.draws);

    /* In a stream a class shows its images in the order drawn; in support and query the item says which. */
    memset(room.seen, 0, sizeof(int64_t) * (size_t)shape.way);
    for (int64_t i = 0; i < shape.length; i++) {
        int64_t label = labels[i], class_id = class_ids[label], nth;
        if (shape.support)
            nth = (room.items[i] + (i < shape.support ? 0 : shape.support)) / shape.way;
        else
            nth = room.seen[label]++;
        images[i] = pool->first_image[class_id] + room.drawn[label * shape.draws + nth];
        turns[i] = pool->turns[class_id];
    }
}

/* Episodes start..start+count-1. The tables and numbers are those of a pool, of a shape and of keys, see above.
   Outputs: class_ids (count, way); images, turns, labels (count, length).
   Returns 0, or 1 where memory ran out and nothing was drawn. */
int draw_episodes(int64_t start, int64_t count, const int64_t *first_image, const int64_t *images_per_class,
                  const int64_t *turns_of_classes, const int64_t *by_group, const int64_t *group_start,
                  const int64_t *group_size, const int64_t *choices, int64_t classes, int64_t num_choices,
                  int64_t ways, int64_t images_shown, int64_t support, int64_t draws, int64_t independent,
                  int64_t class_key, int64_t image_key, int64_t order_key, int64_t *class_ids, int64_t *images,
                  int64_t *turns, int64_t *labels) {
    const Pool pool = {first_image, images_per_class, turns_of_classes, by_group,   group_start,
                       group_size,  choices,          classes,          num_choices};
    const Shape shape = {ways, images_shown, support, draws, (int)independent};
    const Keys keys = {(uint64_t)class_key, (uint64_t)image_key, (uint64_t)order_key};
    size_t length = (size_t)shape.length, way = (size_t)shape.way, drawn = way * (size_t)shape.draws;
    size_t buckets = ((size_t)1 << bucket_bits(shape.length)) + 1;
    int64_t *begin = malloc(sizeof(int64_t) * (3 * length + way) + sizeof(int32_t) * (buckets + drawn));
    if (!begin) return 1;
    Room room;
    room.hashes = (uint64_t *)begin;
    room.sorted = room.hashes + length;
    room.items = begin + 2 * length;
    room.seen = room.items + length;
    room.buckets = (int32_t *)(room.seen + way);
    room.drawn = room.buckets + buckets;
    for (int64_t e = 0; e < count; e++) {
        draw_episode(start + e, &pool, shape, keys, room, class_ids, images, turns, labels);
        class_ids += shape.way;
        images += shape.length;
        turns += shape.length;
        labels += shape.length;
    }
    free(begin);
    return 0;
}
