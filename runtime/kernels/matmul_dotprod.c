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

/* `fours` times four rows of W from `four` on with `rows` rows of x, which lie `groups` apart. */
PART void multiply_fours(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums, int rows, int four,
                         const int fours, float out[][TILE_ROWS]) {
    float32x4_t sums[MOST_ROWS][4];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
        for (int at = 0; at < fours; at++) sums[row][at] = vdupq_n_f32(0);
    for (int64_t group = 0; group < groups; group++, x++, w += group_bytes(bits, minimums))
#pragma GCC unroll 4
        for (int at = 0; at < fours; at++) {
            const uint8_t *factors = w + code_bytes(bits) + 8 * (four + at);
            int8x16_t codes[GROUP / 4];
#pragma GCC unroll 8
            for (int quad = 0; quad < GROUP / 4; quad++) codes[quad] = four_columns(w, quad, 4 * (four + at), bits);
#pragma GCC unroll 2
            for (int part = 0; part < parts_of(bits); part++, factors += FACTOR_BYTES) {
                float32x4_t scales = four_halves(factors);
#pragma GCC unroll 8
                for (int row = 0; row < rows; row++) {
                    const rounded *one = x + row * groups;
                    float32x4_t numbers = numbers_of(one);
                    float32x4_t scaled = part ? vmulq_laneq_f32(scales, numbers, 1) : vmulq_laneq_f32(scales, numbers, 0);
                    int32x4_t codes_sums = four_sums(codes, one, numbers, bits, part);
                    sums[row][at] = vfmaq_f32(sums[row][at], vcvtq_f32_s32(codes_sums), scaled);
                    if (rows > 1) ONE_AFTER_THE_OTHER(sums[row][at]);
                }
            }
            if (!minimums) continue;
            float32x4_t lowest = four_halves(factors);
#pragma GCC unroll 8
            for (int row = 0; row < rows; row++) sums[row][at] = vfmaq_n_f32(sums[row][at], lowest, x[row * groups].sum);
        }
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
        for (int at = 0; at < fours; at++) vst1q_f32(out[row] + 4 * (four + at), sums[row][at]);
}

PART void multiply(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums, int rows,
                   float out[][TILE_ROWS]) {
    if (rows == 1) return multiply_fours(x, w, groups, bits, minimums, 1, 0, 4, out);
    for (int four = 0; four < 4; four += 2) multiply_fours(x, w, groups, bits, minimums, rows, four, 2, out);
}

#define MOST_OF_SET SOME_ROWS
FOR_EACH_KIND(DEFINE_MULTIPLY)

static int is_supported(void) { return (getauxval(AT_HWCAP) & HAS_DOTPROD) != 0; }

const instruction_set DOTPROD = {"dotprod", is_supported, round_group_neon, MOST_OF_SET, {FOR_EACH_KIND(MULTIPLY)}};
#endif
