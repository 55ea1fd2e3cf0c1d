/* NEON, for cores with and without dotprod. The sums of 4 bits stay in int16: codes 0 to 15 times -127 to 127 over 32 columns
 * wrap modulo 2^16, and less 8 * sum(x) the true sum is at most 32 * 8 * 127 = 32512. The others are of 32 bits.
 */
#if defined(__aarch64__)
#include "instruction_set.h"
#include <string.h>
#include <arm_neon.h>

static void round_group(const float *x, rounded *out) {
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
    out->eight_sums = (int16_t)(8 * vaddvq_s16(total));
    out->scales[0] = most * (1.0f / 127.0f) + (out->sum - out->sum); /* not finite where a value is not */
}

/* The products of eight lanes of one row of W with x, added over four times eight columns. */
static inline int16x8_t row_products(uint8x16_t packed, int8x16_t first, int8x16_t second) {
    int8x16_t low = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
    int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
    int16x8_t sum = vmull_s8(vget_low_s8(low), vget_low_s8(first));
    sum = vmlal_high_s8(sum, low, first);
    sum = vmlal_s8(sum, vget_low_s8(high), vget_low_s8(second));
    return vmlal_high_s8(sum, high, second);
}

/* sums += (the integer sums of a group, less 8 * sum(x)) * scales */
static inline void add_group(float32x4_t sums[2], int16x8_t codes, const rounded *x, const float32x4_t scales[2]) {
    codes = vsubq_s16(codes, vdupq_n_s16(x->eight_sums));
    float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes))), high = vcvtq_f32_s32(vmovl_high_s16(codes));
    sums[0] = vfmaq_f32(sums[0], low, vmulq_n_f32(scales[0], x->scales[0]));
    sums[1] = vfmaq_f32(sums[1], high, vmulq_n_f32(scales[1], x->scales[0]));
}

static inline void eight_halves(const uint8_t *at, float32x4_t out[2]) {
    float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(at));
    out[0] = vcvt_f32_f16(vget_low_f16(halves));
    out[1] = vcvt_high_f32_f16(halves);
}

static inline void add_minimums(float32x4_t sums[2], const uint8_t *at, const rounded *x) {
    float32x4_t factors[2];
    eight_halves(at, factors);
    sums[0] = vfmaq_n_f32(sums[0], factors[0], x->sum);
    sums[1] = vfmaq_n_f32(sums[1], factors[1], x->sum);
}

/* Columns 4 * quad to 4 * quad + 3 of four rows from `row` on, in 5, 6 or 8 bits: codes less what they have too much. */
static inline int8x16_t four_columns(const uint8_t *tile, int quad, int row, int bits) {
    if (bits == 8) return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(tile + 64 * quad + 4 * row), vdupq_n_u8(128)));
    static const uint8_t PLACE[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    static const uint8_t BIT[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t packed = vld1q_u8(tile + 64 * (quad % 4) + 4 * row);
    uint8x16_t low = quad < 4 ? vandq_u8(packed, vdupq_n_u8(15)) : vshrq_n_u8(packed, 4);
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

/* Keeps the compiler from working on several rows at once, for which there are not registers enough. */
#define ONE_AFTER_THE_OTHER(value) __asm__ volatile("" : "+w"(value) : : "memory")

/* Keeps the compiler from loading x for several rows at once, for which there are not registers enough. */
#define LOADS_STAY() __asm__ volatile("" : : : "memory")

/* Columns of four rows of W in 5 or 6 bits, from 4 * quad to 4 * end - 1, with x. */
static inline int32x4_t four_sums(const uint8_t *tile, int row, int bits, const rounded *x, int quad, int end) {
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
static inline void eight_rows(const uint8_t *tile, int row, const rounded *x, int32x4_t out[2]) {
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

static inline float32x4_t four_halves(const uint8_t *at) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at)));
}

/* Sixteen rows of W in 5 or 6 bits with one row of x. */
static inline void one_row16(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums, float *out) {
    float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int64_t group = 0; group < groups; group++, x++, w += group_bytes(bits, minimums))
        for (int four = 0; four < 4; four++) {
            const uint8_t *at = w + code_bytes(bits) + 8 * four;
            for (int part = 0; part < parts_of(bits); part++, at += factor_bytes(bits)) {
                int quads = GROUP / 4 / parts_of(bits);
                int32x4_t total = four_sums(w, 4 * four, bits, x, part * quads, (part + 1) * quads);
                sums[four] = vfmaq_f32(sums[four], vcvtq_f32_s32(total), vmulq_n_f32(four_halves(at), x->scales[part]));
            }
            if (minimums) sums[four] = vfmaq_n_f32(sums[four], four_halves(at), x->sum);
        }
    for (int four = 0; four < 4; four++) vst1q_f32(out + 4 * four, sums[four]);
}

/* The same in 8 bits. */
static inline void one_row8(const rounded *x, const uint8_t *w, int64_t groups, int minimums, float *out) {
    float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int64_t group = 0; group < groups; group++, x++, w += group_bytes(8, minimums))
#pragma GCC unroll 2
        for (int four = 0; four < 4; four += 2) {
            const uint8_t *at = w + code_bytes(8) + 8 * four;
            int32x4_t codes[2];
            float32x4_t scales[2], lowest[2];
            eight_rows(w, 4 * four, x, codes);
            eight_halves(at, scales);
            if (minimums) eight_halves(at + factor_bytes(8), lowest);
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

/* Eight rows of W in 4 bits with one row of x. */
static inline void one_row4(const rounded *x, const uint8_t *w, int64_t groups, int minimums, float *out) {
    float32x4_t sums[2] = {vdupq_n_f32(0), vdupq_n_f32(0)}, factors[2];
    const uint8_t *end = w + groups * group_bytes(4, minimums);
    for (; w < end; x++, w += group_bytes(4, minimums)) {
        int8x16_t first = vld1q_s8(x->codes), second = vld1q_s8(x->codes + 16);
        int16x8_t p0 = row_products(vld1q_u8(w), first, second), p1 = row_products(vld1q_u8(w + 16), first, second);
        int16x8_t p2 = row_products(vld1q_u8(w + 32), first, second), p3 = row_products(vld1q_u8(w + 48), first, second);
        int16x8_t half = vpaddq_s16(vpaddq_s16(p0, p1), vpaddq_s16(p2, p3));
        p0 = row_products(vld1q_u8(w + 64), first, second), p1 = row_products(vld1q_u8(w + 80), first, second);
        p2 = row_products(vld1q_u8(w + 96), first, second), p3 = row_products(vld1q_u8(w + 112), first, second);
        eight_halves(w + code_bytes(4), factors);
        add_group(sums, vpaddq_s16(half, vpaddq_s16(vpaddq_s16(p0, p1), vpaddq_s16(p2, p3))), x, factors);
        if (minimums) add_minimums(sums, w + code_bytes(4) + factor_bytes(4), x);
    }
    vst1q_f32(out, sums[0]), vst1q_f32(out + 4, sums[1]);
}

/* One tile with one row of x. */
static inline void decode(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums, float *out) {
    if (bits == 4)
        one_row4(x, w, groups, minimums, out);
    else if (bits == 8)
        one_row8(x, w, groups, minimums, out);
    else
        one_row16(x, w, groups, bits, minimums, out);
}

/* Four rows of W, unpacked, with one row of x: the sums of each four neighboring lanes' pairs. */
static inline int16x8_t four_rows(const int8x16_t low[4], const int8x16_t high[4], const rounded *x) {
    int8x16_t first = vld1q_s8(x->codes), second = vld1q_s8(x->codes + 16);
    int16x8_t sum[4];
#pragma GCC unroll 4
    for (int row = 0; row < 4; row++) {
        sum[row] = vmull_s8(vget_low_s8(low[row]), vget_low_s8(first));
        sum[row] = vmlal_high_s8(sum[row], low[row], first);
        sum[row] = vmlal_s8(sum[row], vget_low_s8(high[row]), vget_low_s8(second));
        sum[row] = vmlal_high_s8(sum[row], high[row], second);
    }
    return vpaddq_s16(vpaddq_s16(sum[0], sum[1]), vpaddq_s16(sum[2], sum[3]));
}

static inline void unpack(const uint8_t *w, int8x16_t low[4], int8x16_t high[4]) {
#pragma GCC unroll 4
    for (int row = 0; row < 4; row++) {
        uint8x16_t packed = vld1q_u8(w + 16 * row);
        low[row] = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
        high[row] = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
    }
}

/* The sums of eight rows of W in 8 bits with four rows of x. The sums of products of one row of x are added while the
 * next row is multiplied: an in-order core would wait for them. */
static inline void eight_rows_by_four(const uint8_t *tile, const rounded *const x[PREFILL_ROWS],
                                      int32x4_t out[PREFILL_ROWS][2]) {
    int32x4_t sums[PREFILL_ROWS][4]; /* two for each row of W */
    int16x8_t products[4];
    for (int at = 0; at < 4; at++) {
        products[at] = vdupq_n_s16(0);
        for (int row = 0; row < PREFILL_ROWS; row++) sums[row][at] = vdupq_n_s32(0);
    }
#pragma GCC unroll 4
    for (int quad = 0; quad < GROUP / 4; quad += 2) {
        int8x16_t one[2] = {four_columns(tile, quad, 0, 8), four_columns(tile, quad, 4, 8)};
        int8x16_t two[2] = {four_columns(tile, quad + 1, 0, 8), four_columns(tile, quad + 1, 4, 8)};
#pragma GCC unroll 4
        for (int row = 0; row < PREFILL_ROWS; row++) {
            int32x4_t *before = sums[(row + PREFILL_ROWS - 1) % PREFILL_ROWS];
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
    for (int at = 0; at < 4; at++) sums[PREFILL_ROWS - 1][at] = vpadalq_s16(sums[PREFILL_ROWS - 1][at], products[at]);
    for (int row = 0; row < PREFILL_ROWS; row++)
        for (int four = 0; four < 2; four++) out[row][four] = vpaddq_s32(sums[row][2 * four], sums[row][2 * four + 1]);
}

/* Sixteen rows of W in 8 bits with four rows of x, which lie `groups` apart. There are registers for the integer sums,
 * not for `out` too. */
static __attribute__((noinline, noclone)) void prefill_rows8(const rounded *x, const uint8_t *w, int64_t groups, int minimums,
                                                    float out[PREFILL_ROWS][MOST_TILE_ROWS]) {
    const rounded *rows[PREFILL_ROWS] = {x, x + groups, x + 2 * groups, x + 3 * groups};
    memset(out, 0, sizeof(float) * PREFILL_ROWS * MOST_TILE_ROWS);
    for (int64_t group = 0; group < groups; group++, w += group_bytes(8, minimums)) {
#pragma GCC unroll 1
        for (int eight = 0; eight < MOST_TILE_ROWS; eight += 8) {
            const uint8_t *at = w + code_bytes(8) + 2 * eight;
            int32x4_t codes[PREFILL_ROWS][2];
            float32x4_t factors[2], sums[PREFILL_ROWS][2];
            eight_rows_by_four(w + 4 * eight, rows, codes);
            eight_halves(at, factors);
#pragma GCC unroll 4
            for (int row = 0; row < PREFILL_ROWS; row++)
                for (int four = 0; four < 2; four++)
                    sums[row][four] = vfmaq_f32(vld1q_f32(out[row] + eight + 4 * four), vcvtq_f32_s32(codes[row][four]),
                                                vmulq_n_f32(factors[four], rows[row]->scales[0]));
            if (minimums) eight_halves(at + factor_bytes(8), factors);
#pragma GCC unroll 4
            for (int row = 0; row < PREFILL_ROWS; row++)
                for (int four = 0; four < 2; four++) {
                    if (minimums) sums[row][four] = vfmaq_n_f32(sums[row][four], factors[four], rows[row]->sum);
                    vst1q_f32(out[row] + eight + 4 * four, sums[row][four]);
                }
        }
        for (int row = 0; row < PREFILL_ROWS; row++) rows[row]++;
    }
}

/* Eight rows of W in 4 bits with four rows of x, which are `groups` apart. */
static inline void prefill_rows4(const rounded *x, const uint8_t *w, int64_t groups, int minimums,
                                 float out[PREFILL_ROWS][MOST_TILE_ROWS]) {
    float32x4_t sums[PREFILL_ROWS][2], factors[2];
#pragma GCC unroll 4
    for (int row = 0; row < PREFILL_ROWS; row++) sums[row][0] = sums[row][1] = vdupq_n_f32(0);
    const uint8_t *end = w + groups * group_bytes(4, minimums);
    const rounded *rows[PREFILL_ROWS] = {x, x + groups, x + 2 * groups, x + 3 * groups};
    for (; w < end; w += group_bytes(4, minimums)) {
        int8x16_t low[4], high[4];
        int16x8_t half[PREFILL_ROWS];
        unpack(w, low, high);
#pragma GCC unroll 4
        for (int row = 0; row < PREFILL_ROWS; row++) {
            half[row] = four_rows(low, high, rows[row]);
            ONE_AFTER_THE_OTHER(half[row]);
        }
        unpack(w + code_bytes(4) / 2, low, high);
        eight_halves(w + code_bytes(4), factors);
#pragma GCC unroll 4
        for (int row = 0; row < PREFILL_ROWS; row++) {
            add_group(sums[row], vpaddq_s16(half[row], four_rows(low, high, rows[row])), rows[row], factors);
            ONE_AFTER_THE_OTHER(sums[row][1]);
        }
        if (minimums) {
            eight_halves(w + code_bytes(4) + factor_bytes(4), factors);
#pragma GCC unroll 4
            for (int row = 0; row < PREFILL_ROWS; row++) {
                sums[row][0] = vfmaq_n_f32(sums[row][0], factors[0], rows[row]->sum);
                sums[row][1] = vfmaq_n_f32(sums[row][1], factors[1], rows[row]->sum);
            }
        }
#pragma GCC unroll 4
        for (int row = 0; row < PREFILL_ROWS; row++) rows[row]++;
    }
#pragma GCC unroll 4
    for (int row = 0; row < PREFILL_ROWS; row++)
        vst1q_f32(out[row], sums[row][0]), vst1q_f32(out[row] + 4, sums[row][1]);
}

/* One tile with four rows of x. */
static inline void prefill(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                           float out[PREFILL_ROWS][MOST_TILE_ROWS]) {
    if (bits == 4)
        prefill_rows4(x, w, groups, minimums, out);
    else
        prefill_rows8(x, w, groups, minimums, out);
}

FOR_EACH_KIND(DEFINE_DECODE)
DEFINE_PREFILL(4, 0) DEFINE_PREFILL(4, 1) DEFINE_PREFILL(8, 0) DEFINE_PREFILL(8, 1)

static int is_supported(void) { return 1; }

const instruction_set NEON = {
    "neon", is_supported, round_group,
    {DECODE_AND_PREFILL(4, 0) DECODE_AND_PREFILL(4, 1) DECODE_ONLY(5, 0) DECODE_ONLY(5, 1) DECODE_ONLY(6, 0)
     DECODE_AND_PREFILL(8, 0) DECODE_AND_PREFILL(8, 1)}, NULL};
#endif
