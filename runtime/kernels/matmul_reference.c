/* Matrices one code at a time: what the instruction sets must equal to the bit, and rows of W as floats. */
#include "instruction_set.h"
#include <math.h>
#include <string.h>

/* Small rather than fast: only tests select the reference. */
#define SMALL __attribute__((noinline, optimize("Os")))

static float half_to_float(const uint8_t *at) {
    _Float16 half;
    memcpy(&half, at, sizeof half);
    return (float)half;
}

/* The code of a row and column of a tile, less its offset. */
static int code_of(const uint8_t *tile, int64_t row, int64_t column, int bits) {
    int64_t at = column / 4 * 4 * TILE_ROWS + 4 * row + column % 4; /* in the order of 8 bits */
    if (bits == 8) return tile[at] - 128;
    int low = column < 16 ? tile[at] & 15 : tile[at - 256] >> 4;
    if (bits == 4) return low - 8;
    if (bits == 5) return (low | (tile[256 + at / 8] >> at % 8 & 1) << 4) - 16;
    return (low | (tile[256 + at / 256 * 64 + at % 64] >> at / 64 % 4 * 2 & 3) << 4) - 32;
}

void matmul_row(const uint8_t *weights, int64_t columns, int bits, int minimums, int64_t row, float *out) {
    int64_t place = row % TILE_ROWS, step = group_bytes(bits, minimums);
    const uint8_t *w = weights + row / TILE_ROWS * (columns / GROUP) * step;
    for (int64_t group = 0; group < columns / GROUP; group++, w += step, out += GROUP) {
        const uint8_t *scales = w + code_bytes(bits) + 2 * place, *behind = scales + parts_of(bits) * FACTOR_BYTES;
        float minimum = minimums ? half_to_float(behind) : 0.0f;
        int column = 0;
        for (int part = 1; part <= parts_of(bits); part++, scales += FACTOR_BYTES) {
            float scale = half_to_float(scales);
            for (; column < part * GROUP / parts_of(bits); column++) {
                float value = (float)code_of(w, place, column, bits) * scale;
                out[column] = minimums ? value + minimum : value;
            }
        }
    }
}

SMALL static void round_group(const float *x, rounded *out) {
    float most = 0, sums[4] = {0, 0, 0, 0};
    int total = 0;
    for (int at = 0; at < GROUP; at++) {
        most = fabsf(x[at]) > most ? fabsf(x[at]) : most;
        sums[at % 4] += x[at];
    }
    out->sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float times = most > SMALLEST ? 127.0f / most : 0.0f;
    for (int at = 0; at < GROUP; at++) {
        float code = rintf(x[at] * times); /* ties to even */
        out->codes[at] = (int8_t)(code != code ? 0.0f : code > 127 ? 127 : code < -128 ? -128 : code);
        total += out->codes[at];
    }
    out->offset = -8 * total;
    out->scales[0] = most * (1.0f / 127.0f) + (out->sum - out->sum); /* not finite where a value is not */
}

SMALL static void multiply_one(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int bits, int minimums,
                               float *out) {
    int columns = GROUP / parts_of(bits);
    memset(out, 0, sizeof(float) * TILE_ROWS);
    for (int64_t group = 0; group < groups; group++, x += step, w += group_bytes(bits, minimums))
        for (int64_t row = 0; row < TILE_ROWS; row++) {
            const uint8_t *factors = w + code_bytes(bits) + 2 * row;
            for (int part = 0; part < parts_of(bits); part++, factors += FACTOR_BYTES) {
                int sum = 0;
                for (int column = part * columns; column < (part + 1) * columns; column++)
                    sum += code_of(w, row, column, bits) * x->codes[column];
                out[row] = fmaf((float)sum, half_to_float(factors) * x->scales[part], out[row]);
            }
            if (minimums) out[row] = fmaf(half_to_float(factors), x->sum, out[row]);
        }
}

#define DEFINE_SMALL(bits, minimums)                                                                                 \
    static void multiply_##bits##_##minimums(const rounded *x, int64_t step, const uint8_t *w, int64_t groups,       \
                                             int rows, float out[][TILE_ROWS]) {                                     \
        for (int row = 0; row < rows; row++) multiply_one(x + row, step, w, groups, bits, minimums, out[row]);       \
    }
FOR_EACH_KIND(DEFINE_SMALL)

static int is_supported(void) { return 1; }

const instruction_set REFERENCE = {"reference", is_supported, round_group, SOME_ROWS, {FOR_EACH_KIND(MULTIPLY)}};
