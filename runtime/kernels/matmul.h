/* Matrices in 4, 5, 6 or 8 bits: y = x W^T, and rows of W in float32.
 *
 * W [rows, columns] is cut into tiles of 16 rows by 32 columns. They lie in memory one behind the other along the columns,
 * so that decoding reads one stream. A tile:
 *
 *   8 bits: columns 0 to 3 of each row, then columns 4 to 7 of each row, and so on
 *   4 bits: in that order columns 0 to 15 in the low halves of 256 bytes, and columns 16 to 31 in their high halves
 *   5 bits: the low four bits as in 4; then the fifth bits of all columns, in the order of 8 bits, from bit 0 on
 *   6 bits: the low four bits as in 4; then in byte 4 * row + k of 64 the high two bits of column k of each row, from bit
 *           0 on those of columns k + 4, k + 8 and k + 12; then 64 such bytes of columns 16 to 31
 *   a float16 scale for each row; in 6 bits one for columns 0 to 15, then one for columns 16 to 31
 *   a float16 minimum for each row, where the matrix has any; in 6 bits none has
 *
 * weight = (code - 2^(bits - 1)) * scale + minimum. Rows are filled up to whole tiles.
 */
#ifndef MERINO_MATMUL_H
#define MERINO_MATMUL_H
#include <stddef.h>
#include <stdint.h>
#include "parallel.h"

enum { GROUP = 32, TILE_ROWS = 16, FACTOR_BYTES = 2 * TILE_ROWS };

static inline int64_t code_bytes(int bits) { return TILE_ROWS * GROUP / 8 * bits; }
/* Scales of a row in a tile. */
static inline int parts_of(int bits) { return bits == 6 ? 2 : 1; }
static inline int64_t group_bytes(int bits, int minimums) {
    return code_bytes(bits) + (parts_of(bits) + (minimums ? 1 : 0)) * FACTOR_BYTES;
}

/* 32 values of x in 8 bits. An outlier makes the steps of its own 32 coarse, and no others; where W has a scale for each
 * 16 columns, of its own 16. */
typedef struct {
    int8_t codes[GROUP];
    float scales[2];      /* one for all of them, or one for the first sixteen, then one for the others */
    union {
        float sum;            /* of the values before they were rounded: what the minimums are multiplied with */
        int32_t first_offset; /* in 6 bits, which have no minimums: the offset of the first sixteen */
    };
    int32_t offset; /* what sums begin with: -2^(bits - 1) * sum of the codes, since W's are stored with 2^(bits - 1) added */
} rounded;          /* of 48 bytes, so that two registers are loaded at once */

typedef struct instruction_set instruction_set;

typedef struct {
    const instruction_set *set; /* NULL: the fastest of this CPU */
    const float *x;          /* [count, width] */
    const uint8_t *weights;  /* as above */
    float *y;                /* [count, rows] */
    rounded *scratch;        /* [count, columns / 32] */
    const int32_t *order;    /* [columns]: the channel of x that belongs to each column of W; others than 0 to
                              * width - 1 are 0. So a group with outliers can stand twice, once without them. NULL: x's */
    int64_t count, width, columns, rows;
    int bits, minimums;
} matmul_work;

void matmul(const matmul_work *work, threads on);

/* "reference", "neon", "dotprod", "avx2" or "avx512"; NULL is the fastest. NULL if this CPU or this build does not have it. */
const instruction_set *instruction_set_named(const char *name);

/* Row `row` of W, float32 [columns]. */
void matmul_row(const uint8_t *weights, int64_t columns, int bits, int minimums, int64_t row, float *out);
#endif
