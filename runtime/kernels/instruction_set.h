/* What an instruction set provides for matmul.c. Each set is one file, and all sets return the same bits.
 *
 * Sums of integers are exact. Floats are added in one order: for each group of columns the scaled sum, then the zero point.
 */
#ifndef MERINO_INSTRUCTION_SET_H
#define MERINO_INSTRUCTION_SET_H
#include <string.h>
#include "matmul.h"

#define PART static inline __attribute__((always_inline))

enum { KINDS = 10 };
#define SMALLEST 1e-30f /* a group whose largest value is smaller counts as zeros: 127 / largest must be finite */

/* One tile of W, all `groups` of its columns, with 1, SOME_ROWS or the set's `most_rows` rows of x. These lie side by side,
 * and the next group of the first is `step` behind. */
enum { SOME_ROWS = 4, MOST_ROWS = 16 };
typedef void multiply_tile(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int rows,
                           float out[][TILE_ROWS]);

struct instruction_set {
    const char *name;
    int (*is_supported)(void);
    void (*round_group)(const float *x, rounded *out); /* x [GROUP] */
    int most_rows;                                     /* at most MOST_ROWS */
    multiply_tile *multiply[KINDS];                    /* by kind_of() */
};

/* Those of this CPU's architecture, and REFERENCE. */
extern const instruction_set REFERENCE, NEON, DOTPROD, AVX2, AVX512;
/* Sets of one architecture round in the same way. */
void round_group_neon(const float *x, rounded *out);
void round_group_avx2(const float *x, rounded *out);

static inline int kind_of(int bits, int minimums) { return 2 * (bits - 4) + (minimums != 0); }

/* A set compiles its `multiply` once for each kind of matrix and number of rows; its file defines MOST_OF_SET. */
#define FOR_EACH_KIND(define) define(4, 0) define(4, 1) define(5, 0) define(5, 1) define(6, 0) define(8, 0) define(8, 1)
#define DEFINE_MULTIPLY(bits, minimums)                                                                              \
    static void multiply_##bits##_##minimums(const rounded *x, int64_t step, const uint8_t *w, int64_t groups,       \
                                             int rows, float out[][TILE_ROWS]) {                                     \
        if (rows == 1)                                                                                               \
            multiply(x, step, w, groups, bits, minimums, 1, out);                                                    \
        else if (MOST_OF_SET == SOME_ROWS || rows == SOME_ROWS)                                                      \
            multiply(x, step, w, groups, bits, minimums, SOME_ROWS, out);                                            \
        else                                                                                                         \
            multiply(x, step, w, groups, bits, minimums, MOST_OF_SET, out);                                          \
    }
#define MULTIPLY(bits, minimums) [2 * (bits - 4) + minimums] = multiply_##bits##_##minimums,

/* What sums of the columns that share a scale begin with; `part` numbers these columns. */
static inline int offset_of(const rounded *x, int bits, int part) {
    return parts_of(bits) == 1 ? x->offset : part ? x->offset - x->first_offset : x->first_offset;
}

/* x's codes of columns 4 * quad to 4 * quad + 3. */
PART int32_t four_codes(const rounded *x, int quad) {
    int32_t four;
    memcpy(&four, x->codes + 4 * quad, sizeof four);
    return four;
}
#endif
