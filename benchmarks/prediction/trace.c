/* A task's share of a step -> how often every block ran, and what its tiles did.
 *
 * Tasks run one after the other in the calling thread, each on a core of its own: two caches that
 * tile rows go through, least recently used line first out. Other loads and stores are not seen by
 * them.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CORES = 64, LINE = 64, WAYS = 16, MOST_ASKED = 1 << 22 };

struct cache {
    unsigned sets, ways;
    uint64_t *lines, clock; /* [sets][WAYS]: line number + 1, and when it was used */
    uint64_t *used;
};

/* In this order trace.py reads them. */
struct tiles {
    uint64_t products, product_rows, loads, load_lines, beyond_l1, beyond_l2, asked_far, stores, store_rows;
};

static struct cache caches[CORES][2];
static struct tiles tiles;
static uint64_t *counts;
static size_t blocks;
static unsigned core;

static bool hit(struct cache *c, uint64_t line) {
    uint64_t *set = c->lines + line % c->sets * WAYS, *used = c->used + line % c->sets * WAYS;
    unsigned oldest = 0;
    for (unsigned w = 0; w < c->ways; w++) {
        if (set[w] == line + 1) {
            used[w] = ++c->clock;
            return true;
        }
        if (used[w] < used[oldest]) oldest = w;
    }
    set[oldest] = line + 1;
    used[oldest] = ++c->clock;
    return false;
}

/* Prefetches since the last tile instruction; a zero behind one: into the second level only. */
static uint64_t **next_asked, asked[MOST_ASKED];

static void prefetched(void) {
    **next_asked = 1;
    for (uint64_t *a = asked; a < *next_asked; a++) {
        bool far = a[1] == 0 && a + 1 < *next_asked;
        if (!far && hit(&caches[core][0], *a / LINE)) continue;
        if (!hit(&caches[core][1], *a / LINE)) tiles.asked_far++;
        a += far;
    }
    *next_asked = asked;
}

static void touch(const uint8_t *first, unsigned bytes) {
    uint64_t line = (uint64_t)(uintptr_t)first / LINE, last = ((uint64_t)(uintptr_t)first + bytes - 1) / LINE;
    for (; line <= last; line++) {
        tiles.load_lines++;
        if (hit(&caches[core][0], line)) continue;
        tiles.beyond_l1++;
        if (!hit(&caches[core][1], line)) tiles.beyond_l2++;
    }
}

void trace_tile(unsigned opcode, bool store, unsigned rows, unsigned row_bytes, const uint8_t *base,
                uint64_t stride) {
    struct tiles *t = &tiles;
    prefetched();
    if (opcode != 0x4B) {
        t->products++;
        t->product_rows += rows;
    } else if (store) {
        t->stores++;
        t->store_rows += rows;
        for (unsigned r = 0; r < rows; r++) hit(&caches[core][0], (uint64_t)(uintptr_t)(base + r * stride) / LINE);
    } else {
        t->loads++;
        for (unsigned r = 0; r < (stride ? rows : 1); r++) touch(base + r * stride, row_bytes);
        if (!stride) t->load_lines += rows - 1;
    }
}

static void prepare(struct cache *c, unsigned bytes, unsigned ways) {
    c->ways = ways;
    c->sets = bytes / LINE / ways;
    c->lines = calloc((size_t)c->sets * WAYS, 8);
    c->used = calloc((size_t)c->sets * WAYS, 8);
}

/* `counters` and `note`: of so many blocks, and where prefetches are noted, in the traced code. */
void trace_begin(uint64_t *counters, uint64_t **note, size_t count, unsigned l1_bytes,
                 unsigned l2_bytes) {
    counts = counters;
    next_asked = note;
    *note = asked;
    blocks = count;
    for (unsigned i = 0; i < CORES; i++) {
        prepare(&caches[i][0], l1_bytes, 12);
        prepare(&caches[i][1], l2_bytes, 16);
    }
}

/* What runs from now on is this core's. */
void trace_core(unsigned number) {
    core = number;
    memset(counts, 0, blocks * sizeof *counts);
    memset(&tiles, 0, sizeof tiles);
}

void trace_end(uint64_t *of_blocks, struct tiles *of_tiles) {
    prefetched();
    memcpy(of_blocks, counts, blocks * sizeof *counts);
    *of_tiles = tiles;
}
