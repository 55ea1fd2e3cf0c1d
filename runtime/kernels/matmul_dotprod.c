/* NEON with dotprod, whose one instruction multiplies four columns of four rows with x and adds them up. */
#if defined(__aarch64__)
#pragma GCC target("arch=armv8.2-a+dotprod")
#include "neon.h"
#include <sys/auxv.h>

enum { HAS_DOTPROD = 1 << 20 }; /* HWCAP_ASIMDDP of Linux */

/* The sums of four rows of W over the columns that share a scale. */
PART int32x4_t four_sums(const int8x16_t codes[GROUP / 4], const rounded *x, float32x4_t numbers, int bits, int part) {
    int32x4_t sums = bits == 4 ? vdupq_laneq_s32(vreinterpretq_s32_f32(numbers), 3) : vdupq_n_s32(0);
    int8x16_t first = vld1q_s8(x->codes), second = vld1q_s8(x->codes + 16);
    if (bits != 6 || part == 0) {
        sums = vdotq_laneq_s32(sums, codes[0], first, 0), sums = vdotq_laneq_s32(sums, codes[1], first, 1);
        sums = vdotq_laneq_s32(sums, codes[2], first, 2), sums = vdotq_laneq_s32(sums, codes[3], first, 3);
    }
    if (bits != 6 || part == 1) {
        sums = vdotq_laneq_s32(sums, codes[4], second, 0), sums = vdotq_laneq_s32(sums, codes[5], second, 1);
        sums = vdotq_laneq_s32(sums, codes[6], second, 2), sums = vdotq_laneq_s32(sums, codes[7], second, 3);
    }
    return sums;
}

/* `fours` times four rows of W from `four` on with `rows` rows of x. */
PART void multiply_fours(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int bits, int minimums, int rows,
                         int four, const int fours, float out[][TILE_ROWS]) {
    float32x4_t sums[MOST_ROWS][2];
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
        for (int at = 0; at < fours; at++) sums[row][at] = vdupq_n_f32(0);
    for (int64_t group = 0; group < groups; group++, x += step, w += group_bytes(bits, minimums))
#pragma GCC unroll 2
        for (int at = 0; at < fours; at++) {
            const uint8_t *factors = w + code_bytes(bits) + 8 * (four + at);
            int8x16_t codes[GROUP / 4];
#pragma GCC unroll 8
            for (int quad = 0; quad < GROUP / 4; quad++) codes[quad] = four_columns(w, quad, 4 * (four + at), bits);
#pragma GCC unroll 2
            for (int part = 0; part < parts_of(bits); part++, factors += FACTOR_BYTES) {
                float32x4_t scales = four_halves(factors);
#pragma GCC unroll 16
                for (int row = 0; row < rows; row++) {
                    float32x4_t numbers = numbers_of(x + row);
                    float32x4_t scaled = part ? vmulq_laneq_f32(scales, numbers, 1) : vmulq_laneq_f32(scales, numbers, 0);
                    int32x4_t codes_sums = four_sums(codes, x + row, numbers, bits, part);
                    sums[row][at] = vfmaq_f32(sums[row][at], vcvtq_f32_s32(codes_sums), scaled);
                    ONE_AFTER_THE_OTHER(sums[row][at]);
                }
            }
            if (!minimums) continue;
            float32x4_t lowest = four_halves(factors);
#pragma GCC unroll 16
            for (int row = 0; row < rows; row++) sums[row][at] = vfmaq_n_f32(sums[row][at], lowest, x[row].sum);
        }
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
        for (int at = 0; at < fours; at++) vst1q_f32(out[row] + 4 * (four + at), sums[row][at]);
}

/* Columns 4 * quad to 4 * quad + 3 of sixteen rows of W, which lie in one line of the cache, with x's codes in `lane`. */
PART void add_quad(int32x4_t sums[4], const uint8_t *w, int quad, int bits, int8x16_t x, const int lane) {
#pragma GCC unroll 4
    for (int four = 0; four < 4; four++)
        sums[four] = vdotq_laneq_s32(sums[four], four_columns(w, quad, 4 * four, bits), x, lane);
}

/* All columns; in 6 bits those that have the scale of `part`. Two quads share their low four bits. */
PART void add_quads(int32x4_t sums[4], const uint8_t *w, const rounded *x, int bits, int part) {
    int8x16_t first = vld1q_s8(x->codes), second = vld1q_s8(x->codes + 16);
    int both = bits != 6;
    if (both || part == 0) add_quad(sums, w, 0, bits, first, 0);
    if (both || part == 1) add_quad(sums, w, 4, bits, second, 0);
    if (both || part == 0) add_quad(sums, w, 1, bits, first, 1);
    if (both || part == 1) add_quad(sums, w, 5, bits, second, 1);
    if (both || part == 0) add_quad(sums, w, 2, bits, first, 2);
    if (both || part == 1) add_quad(sums, w, 6, bits, second, 2);
    if (both || part == 0) add_quad(sums, w, 3, bits, first, 3);
    if (both || part == 1) add_quad(sums, w, 7, bits, second, 3);
}

/* Sixteen rows of W with one row of x. */
PART void one_row(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int bits, int minimums, float *out) {
    float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}, factors[4];
    for (int64_t group = 0; group < groups; group++, x += step, w += group_bytes(bits, minimums)) {
        const uint8_t *at = w + code_bytes(bits);
        float32x4_t numbers = numbers_of(x);
#pragma GCC unroll 2
        for (int part = 0; part < parts_of(bits); part++, at += FACTOR_BYTES) {
            int32x4_t codes[4], begin = vdupq_n_s32(0);
            if (bits == 4) begin = vdupq_laneq_s32(vreinterpretq_s32_f32(numbers), 3);
            for (int four = 0; four < 4; four++) codes[four] = begin;
            add_quads(codes, w, x, bits, part);
            eight_halves(at, factors), eight_halves(at + 16, factors + 2);
#pragma GCC unroll 4
            for (int four = 0; four < 4; four++) {
                float32x4_t scaled = part ? vmulq_laneq_f32(factors[four], numbers, 1) : vmulq_laneq_f32(factors[four], numbers, 0);
                sums[four] = vfmaq_f32(sums[four], vcvtq_f32_s32(codes[four]), scaled);
            }
        }
        if (!minimums) continue;
        eight_halves(at, factors), eight_halves(at + 16, factors + 2);
        for (int four = 0; four < 4; four++) sums[four] = vfmaq_laneq_f32(sums[four], factors[four], numbers, 2);
    }
    for (int four = 0; four < 4; four++) vst1q_f32(out + 4 * four, sums[four]);
}

/* As many accumulators and codes as there are registers: four rows of W with sixteen of x, or eight with four. */
PART void multiply(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int bits, int minimums, int rows,
                   float out[][TILE_ROWS]) {
    if (rows == 1) return one_row(x, step, w, groups, bits, minimums, *out);
    const int fours = rows == SOME_ROWS ? 2 : 1;
    for (int four = 0; four < 4; four += fours)
        multiply_fours(x, step, w, groups, bits, minimums, rows, four, fours, out);
}

#define MOST_OF_SET MOST_ROWS
FOR_EACH_KIND(DEFINE_MULTIPLY)

static int is_supported(void) { return (getauxval(AT_HWCAP) & HAS_DOTPROD) != 0; }

const instruction_set DOTPROD = {"dotprod", is_supported, round_group_neon, MOST_OF_SET, {FOR_EACH_KIND(MULTIPLY)}};
#endif
