/* What the two sets for 64-bit Arm share: codes and factors of a tile. */
#ifndef MERINO_NEON_H
#define MERINO_NEON_H
#include "instruction_set.h"
#include <arm_neon.h>

/* Keeps the compiler from working on several rows at once, for which there are not registers enough. */
#define ONE_AFTER_THE_OTHER(value) __asm__ volatile("" : "+w"(value))

/* What follows the codes of x in one register: two scales, the sum, and the bits of the offset. */
PART float32x4_t numbers_of(const rounded *x) { return vld1q_f32((const float *)x + GROUP / 4); }

PART float32x4_t four_halves(const uint8_t *at) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at))); }

PART void eight_halves(const uint8_t *at, float32x4_t out[2]) {
    float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(at));
    out[0] = vcvt_f32_f16(vget_low_f16(halves));
    out[1] = vcvt_high_f32_f16(halves);
}

/* Columns 4 * quad to 4 * quad + 3 of four rows from `row` on: in 5, 6 and 8 bits codes less what they have too much, in 4
 * as they are stored. */
PART int8x16_t four_columns(const uint8_t *tile, int quad, int row, int bits) {
    if (bits == 8) return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(tile + 64 * quad + 4 * row), vdupq_n_u8(128)));
    static const uint8_t PLACE[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    static const uint8_t BIT[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t packed = vld1q_u8(tile + 64 * (quad % 4) + 4 * row);
    uint8x16_t low = quad < 4 ? vandq_u8(packed, vdupq_n_u8(15)) : vshrq_n_u8(packed, 4);
    if (bits == 4) return vreinterpretq_s8_u8(low);
    if (bits == 6) {
        int8x16_t shift = vdupq_n_s8((int8_t)(4 - 2 * (quad % 4)));
        uint8x16_t high = vshlq_u8(vld1q_u8(tile + 256 + 64 * (quad / 4) + 4 * row), shift);
        return vreinterpretq_s8_u8(vsubq_u8(vorrq_u8(low, vandq_u8(high, vdupq_n_u8(48))), vdupq_n_u8(32)));
    }
    const uint8_t *fifth = tile + 256 + 8 * quad + row / 2;
    uint8x16_t pair = vreinterpretq_u8_u16(vld1q_dup_u16((const uint16_t *)fifth));
    uint8x16_t bytes = vqtbl1q_u8(pair, vld1q_u8(PLACE)); /* eight times the first, eight times the second */
    uint8x16_t codes = vorrq_u8(low, vandq_u8(vtstq_u8(bytes, vld1q_u8(BIT)), vdupq_n_u8(16)));
    return vreinterpretq_s8_u8(vsubq_u8(codes, vdupq_n_u8(16)));
}

#endif
