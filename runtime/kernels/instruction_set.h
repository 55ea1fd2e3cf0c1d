/* What an instruction set provides for matmul.c. Each set is one file, and all sets return the same bits.
 *
 * Sums of integers are exact. Floats are added in one order: for each group of columns the scaled sum, then the zero point.
 */
#ifndef MERINO_INSTRUCTION_SET_H
#define MERINO_INSTRUCTION_SET_H
#include "matmul.h"

enum { PREFILL_ROWS = 4, PAIR_ROWS = 8, KINDS = 10 };
#define SMALLEST 1e-30f /* a group whose largest value is smaller counts as zeros: 127 / largest must be finite */

/* One tile of W, all `groups` of its columns, with rows of x that are `groups` apart. */
typedef struct {
    void (*decode)(const rounded *x, const uint8_t *w, int64_t groups, float *out); /* one row of x; out [tile rows] */
    /* PREFILL_ROWS rows of x. NULL: the set has nothing faster than one row after the other. */
    void (*prefill)(const rounded *x, const uint8_t *w, int64_t groups, float out[PREFILL_ROWS][MOST_TILE_ROWS]);
} tile_kernels;

struct instruction_set {
    const char *name;
    int (*is_supported)(void);
    void (*round_group)(const float *x, rounded *out); /* x [GROUP] */
    tile_kernels tiles[KINDS];                         /* by kind_of() */
    /* Two tiles in 4 bits, `next` bytes apart, with 1, PREFILL_ROWS or PAIR_ROWS rows of x. NULL: the set has none. */
    void (*pair)(const rounded *x, const uint8_t *w, int64_t groups, int64_t next, int minimums, int rows,
                 float out[][MOST_TILE_ROWS]);
};

extern const instruction_set REFERENCE, NEON, AVX2, AVX512; /* those of this CPU's architecture, and REFERENCE */
void round_group_avx2(const float *x, rounded *out); /* AVX512 has it too */

static inline int kind_of(int bits, int minimums) { return 2 * (bits - 4) + (minimums != 0); }

/* Every kind of matrix, by bits and minimums. A set compiles its loops once for each. */
#define FOR_EACH_KIND(define) define(4, 0) define(4, 1) define(5, 0) define(5, 1) define(6, 0) define(8, 0) define(8, 1)
#define DEFINE_DECODE(bits, minimums)                                                                                \
    static void decode_##bits##_##minimums(const rounded *x, const uint8_t *w, int64_t groups, float *out) {         \
        decode(x, w, groups, bits, minimums, out);                                                                   \
    }
#define DEFINE_PREFILL(bits, minimums)                                                                               \
    static void prefill_##bits##_##minimums(const rounded *x, const uint8_t *w, int64_t groups,                      \
                                            float out[PREFILL_ROWS][MOST_TILE_ROWS]) {                               \
        prefill(x, w, groups, bits, minimums, out);                                                                  \
    }
#define DECODE_ONLY(bits, minimums) [2 * (bits - 4) + minimums] = {decode_##bits##_##minimums, NULL},
#define DECODE_AND_PREFILL(bits, minimums) \
    [2 * (bits - 4) + minimums] = {decode_##bits##_##minimums, prefill_##bits##_##minimums},

/* Codes are stored with an offset: 8 in 4 bits, 16 in 5, 32 in 6, 128 in 8. The offset times the sum of x's codes in the
 * columns that share a scale; `part` numbers these. */
static inline int offset_sum(const rounded *x, int bits, int part) {
    int sums = parts_of(bits) == 1 ? x->eight_sums : part ? x->eight_sums - x->eight_firsts : x->eight_firsts;
    return sums * (1 << (bits - 4));
}
#endif
