/* Matrices in 4 or 8 bits: y = x W^T, and rows of W in float32.
 *
 * W [rows, columns] is cut into eight rows by 32 columns, in memory one behind the other along the columns: group_bytes
 * for each eight rows and 32 columns, so that decoding reads one stream.
 *
 *   4 bits: 128 bytes  for each of the eight rows 16 bytes: column k in the low half of byte k, column k + 16 in the
 *                      high half
 *   8 bits: 256 bytes  for each of the eight rows columns 0 to 15; then for each of them columns 16 to 31
 *            16 bytes  eight float16 scales
 *            16 bytes  eight float16 minimums, where the matrix has any
 *
 * weight = (code - 8) * scale + minimum, in 8 bits with 128 in place of 8. Rows are filled up to a multiple of eight.
 */
#ifndef MERINO_MATMUL_H
#define MERINO_MATMUL_H
#include <stddef.h>
#include <stdint.h>
#include "parallel.h"

enum { TILE_ROWS = 8, GROUP = 32, FACTOR_BYTES = 2 * TILE_ROWS };

static inline int64_t code_bytes(int bits) { return TILE_ROWS * GROUP / 8 * bits; }
static inline int64_t group_bytes(int bits, int minimums) { return code_bytes(bits) + (minimums ? 2 : 1) * FACTOR_BYTES; }

/* 32 values of x in 8 bits. An outlier makes the steps of its own 32 coarse, and no others. */
typedef struct {
    int8_t codes[GROUP];
    float scale;
    float sum;            /* of the values before they were rounded: what the minimums are multiplied with */
    int16_t eight_sums;   /* 8 * sum of the codes, modulo 2^16 */
    int16_t unused[3];
} rounded;

typedef struct {
    const float *x;          /* [count, columns] */
    const uint8_t *weights;  /* as above */
    float *y;                /* [count, rows] */
    rounded *scratch;        /* [count, columns / 32] */
    int64_t count, columns, rows;
    int bits, minimums;
} matmul_work;

void matmul(const matmul_work *work, threads on);

/* Row `row` of W, float32 [columns]. */
void matmul_row(const uint8_t *weights, int64_t columns, int bits, int minimums, int64_t row, float *out);
#endif
