/* NEON, for cores with and without dotprod. The sums of 4 bits stay in int16: codes 0 to 15 times -127 to 127 over 32 columns
 * wrap modulo 2^16, and less 8 * sum(x) the true sum is at most 32 * 8 * 127 = 32512. The others are of 32 bits.
 */
#if defined(__aarch64__)
#include "neon.h"
#include <string.h>

void round_group_neon(const float *x, rounded *out) {
    float32x4_t v[8], largest = vdupq_n_f32(0), sum = vdupq_n_f32(0);
    for (int at = 0; at < 8; at++) {
        v[at] = vld1q_f32(x + 4 * at);
        largest = vmaxnmq_f32(largest, vabsq_f32(v[at]));
        sum = vaddq_f32(sum, v[at]);
    }
    float most = vmaxvq_f32(largest);
    out->sum = (vgetq_lane_f32(sum, 0) + vgetq_lane_f32(sum, 1)) + (vgetq_lane_f32(sum, 2) + vgetq_lane_f32(sum, 3));
    float32x4_t times = vdupq_n_f32(most > SMALLEST ? 127.0f / most : 0.0f);
    int16x8_t total = vdupq_n_s16(0);
    for (int at = 0; at < 8; at += 2) {
        int16x4_t low = vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(v[at], times)));
        int16x8_t both = vcombine_s16(low, vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(v[at + 1], times))));
        vst1_s8(out->codes + 4 * at, vqmovn_s16(both));
        total = vaddq_s16(total, both);
    }
    out->offset = -8 * vaddvq_s16(total);
    out->scales[0] = most * (1.0f / 127.0f) + (out->sum - out->sum); /* not finite where a value is not */
}

/* sums += (the integer sums of a group, less 8 * sum(x)) * scales */
PART void add_group(float32x4_t sums[2], int16x8_t codes, float32x4_t numbers, const float32x4_t scales[2]) {
    codes = vaddq_s16(codes, vdupq_laneq_s16(vreinterpretq_s16_f32(numbers), 6));
    float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes))), high = vcvtq_f32_s32(vmovl_high_s16(codes));
    sums[0] = vfmaq_f32(sums[0], low, vmulq_laneq_f32(scales[0], numbers, 0));
    sums[1] = vfmaq_f32(sums[1], high, vmulq_laneq_f32(scales[1], numbers, 0));
}

/* Keeps the compiler from loading x for several rows at once, for which there are not registers enough. */
#define LOADS_STAY() __asm__ volatile("" : : : "memory")

/* Columns of four rows of W in 5 or 6 bits, from 4 * quad to 4 * end - 1, with x. */
PART int32x4_t four_sums(const uint8_t *tile, int row, int bits, const rounded *x, int quad, int end) {
    int32x4_t sums[2] = {vdupq_n_s32(0), vdupq_n_s32(0)}; /* two for each row */
    for (; quad < end; quad += 2) {
        int8x16_t one = four_columns(tile, quad, row, bits), two = four_columns(tile, quad + 1, row, bits);
        int8x16_t first = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(x->codes + 4 * quad)));
        int8x16_t second = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(x->codes + 4 * quad + 4)));
        int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(one), vget_low_s8(first)), vget_low_s8(two), vget_low_s8(second));
        sums[0] = vpadalq_s16(sums[0], low);
        sums[1] = vpadalq_s16(sums[1], vmlal_high_s8(vmull_high_s8(one, first), two, second));
    }
    return vpaddq_s32(sums[0], sums[1]);
}

/* The sums of eight rows of W from `row` on in 8 bits with x. Rows alternate, since an in-order core waits for the
 * multiplication before in the same register. */
PART void eight_rows(const uint8_t *tile, int row, const rounded *x, int32x4_t out[2]) {
    int32x4_t sums[2][2];
    for (int four = 0; four < 2; four++) sums[four][0] = sums[four][1] = vdupq_n_s32(0); /* two for each row */
    for (int quad = 0; quad < GROUP / 4; quad += 2) {
        int8x16_t first = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(x->codes + 4 * quad)));
        int8x16_t second = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(x->codes + 4 * quad + 4)));
        int16x8_t products[2][2];
#pragma GCC unroll 2
        for (int four = 0; four < 2; four++) {
            int8x16_t one = four_columns(tile, quad, row + 4 * four, 8);
            products[four][0] = vmull_s8(vget_low_s8(one), vget_low_s8(first));
            products[four][1] = vmull_high_s8(one, first);
        }
#pragma GCC unroll 2
        for (int four = 0; four < 2; four++) {
            int8x16_t two = four_columns(tile, quad + 1, row + 4 * four, 8);
            products[four][0] = vmlal_s8(products[four][0], vget_low_s8(two), vget_low_s8(second));
            products[four][1] = vmlal_high_s8(products[four][1], two, second);
        }
#pragma GCC unroll 2
        for (int four = 0; four < 2; four++)
            for (int half = 0; half < 2; half++) sums[four][half] = vpadalq_s16(sums[four][half], products[four][half]);
    }
    for (int four = 0; four < 2; four++) out[four] = vpaddq_s32(sums[four][0], sums[four][1]);
}

/* Sixteen rows of W in 5 or 6 bits with one row of x. */
PART void one_row16(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int bits, int minimums, float *out) {
    float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int64_t group = 0; group < groups; group++, x += step, w += group_bytes(bits, minimums))
        for (int four = 0; four < 4; four++) {
            const uint8_t *at = w + code_bytes(bits) + 8 * four;
            for (int part = 0; part < parts_of(bits); part++, at += FACTOR_BYTES) {
                int quads = GROUP / 4 / parts_of(bits);
                int32x4_t total = four_sums(w, 4 * four, bits, x, part * quads, (part + 1) * quads);
                sums[four] = vfmaq_f32(sums[four], vcvtq_f32_s32(total), vmulq_n_f32(four_halves(at), x->scales[part]));
            }
            if (minimums) sums[four] = vfmaq_n_f32(sums[four], four_halves(at), x->sum);
        }
    for (int four = 0; four < 4; four++) vst1q_f32(out + 4 * four, sums[four]);
}

/* The same in 8 bits. */
PART void one_row8(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int minimums, float *out) {
    float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int64_t group = 0; group < groups; group++, x += step, w += group_bytes(8, minimums))
#pragma GCC unroll 2
        for (int four = 0; four < 4; four += 2) {
            const uint8_t *at = w + code_bytes(8) + 8 * four;
            int32x4_t codes[2];
            float32x4_t scales[2], lowest[2];
            eight_rows(w, 4 * four, x, codes);
            eight_halves(at, scales);
            if (minimums) eight_halves(at + FACTOR_BYTES, lowest);
#pragma GCC unroll 2
            for (int index = 0; index < 2; index++) {
                float32x4_t scaled = vmulq_n_f32(scales[index], x->scales[0]);
                sums[four + index] = vfmaq_f32(sums[four + index], vcvtq_f32_s32(codes[index]), scaled);
                if (minimums) sums[four + index] = vfmaq_n_f32(sums[four + index], lowest[index], x->sum);
            }
            LOADS_STAY();
        }
    for (int four = 0; four < 4; four++) vst1q_f32(out + 4 * four, sums[four]);
}

/* The sums of eight rows of W in 8 bits with four rows of x. The sums of products of one row of x are added while the
 * next row is multiplied: an in-order core would wait for them. */
PART void eight_rows_by_four(const uint8_t *tile, const rounded *const x[SOME_ROWS],
                                      int32x4_t out[SOME_ROWS][2]) {
    int32x4_t sums[SOME_ROWS][4]; /* two for each row of W */
    int16x8_t products[4];
    for (int at = 0; at < 4; at++) {
        products[at] = vdupq_n_s16(0);
        for (int row = 0; row < SOME_ROWS; row++) sums[row][at] = vdupq_n_s32(0);
    }
#pragma GCC unroll 4
    for (int quad = 0; quad < GROUP / 4; quad += 2) {
        int8x16_t one[2] = {four_columns(tile, quad, 0, 8), four_columns(tile, quad, 4, 8)};
        int8x16_t two[2] = {four_columns(tile, quad + 1, 0, 8), four_columns(tile, quad + 1, 4, 8)};
#pragma GCC unroll 4
        for (int row = 0; row < SOME_ROWS; row++) {
            int32x4_t *before = sums[(row + SOME_ROWS - 1) % SOME_ROWS];
            int8x16_t first = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(x[row]->codes + 4 * quad)));
            int8x16_t second = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(x[row]->codes + 4 * quad + 4)));
#pragma GCC unroll 4
            for (int at = 0; at < 4; at++) before[at] = vpadalq_s16(before[at], products[at]);
            for (int four = 0; four < 2; four++) {
                products[2 * four] = vmull_s8(vget_low_s8(one[four]), vget_low_s8(first));
                products[2 * four + 1] = vmull_high_s8(one[four], first);
            }
            for (int four = 0; four < 2; four++) {
                products[2 * four] = vmlal_s8(products[2 * four], vget_low_s8(two[four]), vget_low_s8(second));
                products[2 * four + 1] = vmlal_high_s8(products[2 * four + 1], two[four], second);
            }
            LOADS_STAY();
        }
    }
    for (int at = 0; at < 4; at++) sums[SOME_ROWS - 1][at] = vpadalq_s16(sums[SOME_ROWS - 1][at], products[at]);
    for (int row = 0; row < SOME_ROWS; row++)
        for (int four = 0; four < 2; four++) out[row][four] = vpaddq_s32(sums[row][2 * four], sums[row][2 * four + 1]);
}

/* Sixteen rows of W in 8 bits with four rows of x. There are registers for the integer sums,
 * not for `out` too. */
static __attribute__((noinline, noclone)) void some_rows8(const rounded *x, int64_t step, const uint8_t *w, int64_t groups,
                                                          int minimums, float out[SOME_ROWS][TILE_ROWS]) {
    const rounded *rows[SOME_ROWS] = {x, x + 1, x + 2, x + 3};
    memset(out, 0, sizeof(float) * SOME_ROWS * TILE_ROWS);
    for (int64_t group = 0; group < groups; group++, w += group_bytes(8, minimums)) {
#pragma GCC unroll 1
        for (int eight = 0; eight < TILE_ROWS; eight += 8) {
            const uint8_t *at = w + code_bytes(8) + 2 * eight;
            int32x4_t codes[SOME_ROWS][2];
            float32x4_t factors[2], sums[SOME_ROWS][2];
            eight_rows_by_four(w + 4 * eight, rows, codes);
            eight_halves(at, factors);
#pragma GCC unroll 4
            for (int row = 0; row < SOME_ROWS; row++)
                for (int four = 0; four < 2; four++)
                    sums[row][four] = vfmaq_f32(vld1q_f32(out[row] + eight + 4 * four), vcvtq_f32_s32(codes[row][four]),
                                                vmulq_n_f32(factors[four], rows[row]->scales[0]));
            if (minimums) eight_halves(at + FACTOR_BYTES, factors);
#pragma GCC unroll 4
            for (int row = 0; row < SOME_ROWS; row++)
                for (int four = 0; four < 2; four++) {
                    if (minimums) sums[row][four] = vfmaq_n_f32(sums[row][four], factors[four], rows[row]->sum);
                    vst1q_f32(out[row] + eight + 4 * four, sums[row][four]);
                }
        }
        for (int row = 0; row < SOME_ROWS; row++) rows[row] += step;
    }
}

/* Codes of eight rows of W in 4 bits, whose codes begin at `w`. */
PART void unpack(const uint8_t *w, int8x16_t codes[GROUP / 4][2]) {
#pragma GCC unroll 8
    for (int quad = 0; quad < GROUP / 4; quad++)
#pragma GCC unroll 2
        for (int four = 0; four < 2; four++) codes[quad][four] = four_columns(w, quad, 4 * four, 4);
}

/* Products of columns 4 * quad and on of eight rows of W, four lanes for each row. */
PART void add_products(int16x8_t sums[4], const int8x16_t codes[2], int32x4_t x, const int quad) {
    int8x16_t four = vreinterpretq_s8_s32(vdupq_laneq_s32(x, quad % 4));
#pragma GCC unroll 2
    for (int at = 0; at < 2; at++) {
        sums[2 * at] = vmlal_s8(sums[2 * at], vget_low_s8(codes[at]), vget_low_s8(four));
        sums[2 * at + 1] = vmlal_high_s8(sums[2 * at + 1], codes[at], four);
    }
}

/* The sums of eight rows of W with x. */
PART int16x8_t eight_rows4(const int8x16_t codes[GROUP / 4][2], const rounded *x) {
    int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(x->codes)), second = vreinterpretq_s32_s8(vld1q_s8(x->codes + 16));
    ONE_AFTER_THE_OTHER(first); /* or the compiler loads each four codes by themselves */
    ONE_AFTER_THE_OTHER(second);
    int8x16_t four = vreinterpretq_s8_s32(vdupq_laneq_s32(first, 0));
    int16x8_t sums[4] = {vmull_s8(vget_low_s8(codes[0][0]), vget_low_s8(four)), vmull_high_s8(codes[0][0], four),
                         vmull_s8(vget_low_s8(codes[0][1]), vget_low_s8(four)), vmull_high_s8(codes[0][1], four)};
    add_products(sums, codes[1], first, 1), add_products(sums, codes[2], first, 2), add_products(sums, codes[3], first, 3);
    add_products(sums, codes[4], second, 0), add_products(sums, codes[5], second, 1);
    add_products(sums, codes[6], second, 2), add_products(sums, codes[7], second, 3);
    return vpaddq_s16(vpaddq_s16(sums[0], sums[1]), vpaddq_s16(sums[2], sums[3]));
}

/* Sixteen rows of W in 4 bits with one row of x. */
PART void one_row4(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int minimums, float *out) {
    float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int64_t group = 0; group < groups; group++, x += step, w += group_bytes(4, minimums))
#pragma GCC unroll 2
        for (int eight = 0; eight < 2; eight++) {
            const uint8_t *at = w + code_bytes(4) + 16 * eight;
            float32x4_t factors[2], numbers = numbers_of(x), *some = sums + 2 * eight;
            int8x16_t codes[GROUP / 4][2];
            unpack(w + 32 * eight, codes);
            eight_halves(at, factors);
            add_group(some, eight_rows4(codes, x), numbers, factors);
            if (minimums) eight_halves(at + FACTOR_BYTES, factors);
            for (int four = 0; minimums && four < 2; four++) some[four] = vfmaq_laneq_f32(some[four], factors[four], numbers, 2);
            LOADS_STAY();
        }
    for (int four = 0; four < 4; four++) vst1q_f32(out + 4 * four, sums[four]);
}

/* Eight of sixteen rows of W in 4 bits at a time with four rows of x. There are registers for the
 * codes, not for `out` too. */
PART void some_rows4(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int minimums,
                     float out[][TILE_ROWS]) {
    memset(out, 0, sizeof(float) * SOME_ROWS * TILE_ROWS);
    for (int64_t group = 0; group < groups; group++, x += step, w += group_bytes(4, minimums))
#pragma GCC unroll 1
        for (int eight = 0; eight < 2; eight++) {
            const uint8_t *at = w + code_bytes(4) + 16 * eight;
            int8x16_t codes[GROUP / 4][2];
            float32x4_t scales[2], lowest[2];
            unpack(w + 32 * eight, codes);
            eight_halves(at, scales);
            if (minimums) eight_halves(at + FACTOR_BYTES, lowest);
#pragma GCC unroll 4
            for (int row = 0; row < SOME_ROWS; row++) {
                const rounded *one = x + row;
                float *sums_at = out[row] + 8 * eight;
                float32x4_t sums[2] = {vld1q_f32(sums_at), vld1q_f32(sums_at + 4)}, numbers = numbers_of(one);
                add_group(sums, eight_rows4(codes, one), numbers, scales);
                for (int four = 0; four < 2; four++) {
                    if (minimums) sums[four] = vfmaq_laneq_f32(sums[four], lowest[four], numbers, 2);
                    vst1q_f32(sums_at + 4 * four, sums[four]);
                }
                LOADS_STAY();
            }
        }
}

PART void multiply(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int bits, int minimums, int rows,
                   float out[][TILE_ROWS]) {
    if (rows == SOME_ROWS && bits == 4) return some_rows4(x, step, w, groups, minimums, out);
    if (rows == SOME_ROWS && bits == 8) return some_rows8(x, step, w, groups, minimums, out);
    for (int row = 0; row < rows; row++, x++)
        if (bits == 4)
            one_row4(x, step, w, groups, minimums, out[row]);
        else if (bits == 8)
            one_row8(x, step, w, groups, minimums, out[row]);
        else
            one_row16(x, step, w, groups, bits, minimums, out[row]);
}

#define MOST_OF_SET SOME_ROWS
FOR_EACH_KIND(DEFINE_MULTIPLY)

static int is_supported(void) { return 1; }

const instruction_set NEON = {"neon", is_supported, round_group_neon, MOST_OF_SET, {FOR_EACH_KIND(MULTIPLY)}};
#endif
