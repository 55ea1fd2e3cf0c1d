/* y = x W^T with W in 4, 5, 6 or 8 bits and x rounded to 8 bits in groups of 32, in 6 bits of 16. See matmul.h for
 * the layout.
 *
 * Integer sums are exact. In 4 bits codes 0 to 15 times -127 to 127 over 32 columns leave int16, but wrap modulo 2^16,
 * and less 8 * sum(x) the true sum is at most 32 * 8 * 127 = 32512, which int16 holds. The others are of 32 bits.
 */
#include "matmul.h"
#include <string.h>
#include "lanes.h"

enum { PREFILL_ROWS = 4, PAIR_ROWS = 8, BLOCK_ROWS = 16, TASK_BYTES = 32768 };
#define SMALLEST 1e-30f /* a group whose largest value is smaller counts as zeros: 127 / largest must be finite */

static float half_to_float(const uint8_t *at) {
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
#if defined(__aarch64__)
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
#else
    return _cvtsh_ss(bits);
#endif
}

#if defined(__aarch64__)

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
    static const uint8_t BIT[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t packed = vld1q_u8(tile + 64 * (quad % 4) + 4 * row);
    uint8x16_t low = quad < 4 ? vandq_u8(packed, vdupq_n_u8(15)) : vshrq_n_u8(packed, 4);
    if (bits == 6) {
        int8x16_t shift = vdupq_n_s8((int8_t)(4 - 2 * (quad % 4)));
        uint8x16_t high = vshlq_u8(vld1q_u8(tile + 256 + 64 * (quad / 4) + 4 * row), shift);
        return vreinterpretq_s8_u8(vsubq_u8(vorrq_u8(low, vandq_u8(high, vdupq_n_u8(48))), vdupq_n_u8(32)));
    }
    const uint8_t *fifth = tile + 256 + 8 * quad + row / 2;
    uint8x16_t bytes = vcombine_u8(vld1_dup_u8(fifth), vld1_dup_u8(fifth + 1));
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
            for (int each = 0; each < 2; each++) {
                float32x4_t scaled = vmulq_n_f32(scales[each], x->scales[0]);
                sums[four + each] = vfmaq_f32(sums[four + each], vcvtq_f32_s32(codes[each]), scaled);
                if (minimums) sums[four + each] = vfmaq_n_f32(sums[four + each], lowest[each], x->sum);
            }
            LOADS_STAY();
        }
    for (int four = 0; four < 4; four++) vst1q_f32(out + 4 * four, sums[four]);
}

/* Eight rows of W with one row of x. */
static inline void one_row(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums, float *out) {
    float32x4_t sums[2] = {vdupq_n_f32(0), vdupq_n_f32(0)}, factors[2];
    const uint8_t *end = w + groups * group_bytes(4, minimums);
    if (bits == 8) {
        one_row8(x, w, groups, minimums, out);
        return;
    }
    if (bits == 5) {
        one_row16(x, w, groups, 5, minimums, out);
        return;
    }
    if (bits == 6) {
        one_row16(x, w, groups, 6, 0, out);
        return;
    }
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
static __attribute__((noinline)) void prefill_rows8(const rounded *x, const uint8_t *w, int64_t groups, int minimums,
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

/* A tile of W with four rows of x, which lie `groups` apart. */
static inline void prefill_rows(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                                float out[PREFILL_ROWS][MOST_TILE_ROWS]) {
    if (bits == 8) {
        prefill_rows8(x, w, groups, minimums, out);
        return;
    }
    float32x4_t sums[PREFILL_ROWS][2], factors[2];
    for (int row = 0; row < PREFILL_ROWS; row++) {
        if (bits != 4) one_row(x + row * groups, w, groups, bits, minimums, out[row]);
        sums[row][0] = sums[row][1] = vdupq_n_f32(0);
    }
    if (bits != 4) return;
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
    for (int row = 0; row < PREFILL_ROWS; row++)
        vst1q_f32(out[row], sums[row][0]), vst1q_f32(out[row] + 4, sums[row][1]);
}

#else

static void round_group(const float *x, rounded *out) {
    __m128 sum = _mm_setzero_ps();
    __m256 v[4], largest = _mm256_setzero_ps(), positive = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int at = 0; at < 4; at++) {
        v[at] = _mm256_loadu_ps(x + 8 * at);
        largest = _mm256_max_ps(_mm256_and_ps(v[at], positive), largest);
        sum = _mm_add_ps(_mm_add_ps(sum, _mm256_castps256_ps128(v[at])), _mm256_extractf128_ps(v[at], 1));
    }
    float lanes[8], sums[4], most = 0;
    _mm256_storeu_ps(lanes, largest), _mm_storeu_ps(sums, sum);
    for (int at = 0; at < 8; at++) most = lanes[at] > most ? lanes[at] : most;
    out->sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    __m256 times = _mm256_set1_ps(most > SMALLEST ? 127.0f / most : 0.0f);
    int total = 0;
    for (int at = 0; at < 4; at++) {
        __m256i codes = _mm256_cvtps_epi32(_mm256_mul_ps(v[at], times));
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
        _mm_storel_epi64((__m128i *)(out->codes + 8 * at), _mm_packs_epi16(words, words));
        for (int one = 0; one < 8; one++) total += out->codes[8 * at + one];
    }
    out->eight_sums = (int16_t)(8 * total);
    out->scales[0] = most * (1.0f / 127.0f) + (out->sum - out->sum);
}

/* Codes have 8 too much in 4 bits, 16 in 5, 32 in 6, and 128 in 8. `part`: of those that have scales of their own. */
static inline int too_much(const rounded *x, int bits, int part) {
    int sums = parts_of(bits) == 1 ? x->eight_sums : part ? x->eight_sums - x->eight_firsts : x->eight_firsts;
    return sums * (1 << (bits - 4));
}

/* Eight integer sums, less what the codes have too much, as floats. */
static inline __m256 in_floats(__m256i sums, const rounded *x, int bits, int part) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, _mm256_set1_epi32(too_much(x, bits, part))));
}

/* The sums of eight rows of W in 4 bits over 32 columns. */
static inline __m256i eight_sums4(const uint8_t *w, const rounded *x) {
    __m256i values = _mm256_loadu_si256((const __m256i *)x->codes), sum[8];
    __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int row = 0; row < 8; row++) {
        __m128i packed = _mm_loadu_si128((const __m128i *)(w + 16 * row));
        __m256i codes = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), nibble);
        sum[row] = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, values), ones);
    }
    for (int row = 0; row < 8; row += 2) sum[row / 2] = _mm256_hadd_epi32(sum[row], sum[row + 1]);
    __m256i first = _mm256_hadd_epi32(sum[0], sum[1]), second = _mm256_hadd_epi32(sum[2], sum[3]);
    __m256i swapped = _mm256_permute2x128_si256(first, second, 0x21);
    return _mm256_add_epi32(_mm256_blend_epi32(first, second, 0xf0), swapped);
}

/* The same in 8 bits; eight of a tile's sixteen rows. */
static inline __m256i eight_sums8(const uint8_t *w, const rounded *x) {
    __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int quad = 0; quad < GROUP / 4; quad++, w += 64) {
        int32_t four;
        memcpy(&four, x->codes + 4 * quad, sizeof four);
        __m256i values = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
        for (int half = 0; half < 2; half++) {
            __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(w + 16 * half)));
            sum[half] = _mm256_add_epi32(sum[half], _mm256_madd_epi16(codes, values));
        }
    }
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[0], sum[1]), 0xd8);
}

/* The same in 5 bits. Sums of 16 columns are at most 16 * 31 * 127 / 2 in each lane of 16 bits. */
static inline __m256i eight_sums5(const uint8_t *tile, int half, const rounded *x) {
    __m256i nibble = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16), ones = _mm256_set1_epi16(1);
    __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u), total = _mm256_setzero_si256();
    __m256i place = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    for (int high = 0; high < 2; high++) {
        __m256i sum = _mm256_setzero_si256();
        for (int at = 0; at < 4; at++) {
            int32_t four, bits;
            memcpy(&four, x->codes + 16 * high + 4 * at, sizeof four);
            memcpy(&bits, tile + 256 + 8 * (4 * high + at) + 4 * half, sizeof bits);
            __m256i packed = _mm256_loadu_si256((const __m256i *)(tile + 64 * at + 32 * half));
            __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), place);
            __m256i set = _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), fifth);
            __m256i low = _mm256_and_si256(high ? _mm256_srli_epi16(packed, 4) : packed, nibble);
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(_mm256_or_si256(low, set), _mm256_set1_epi32(four)));
        }
        total = _mm256_add_epi32(total, _mm256_madd_epi16(sum, ones));
    }
    return total;
}

/* The same in 6 bits, over sixteen columns. Sums of 8 columns are at most 8 * 63 * 127 / 2 in each lane of 16 bits. */
static inline __m256i eight_sums6(const uint8_t *tile, int half, int part, const rounded *x) {
    __m256i nibble = _mm256_set1_epi8(15), two = _mm256_set1_epi8(48), ones = _mm256_set1_epi16(1), sum[4];
    __m256i high = _mm256_loadu_si256((const __m256i *)(tile + 256 + 64 * part + 32 * half));
    for (int at = 0; at < 4; at++) {
        int32_t four;
        memcpy(&four, x->codes + 16 * part + 4 * at, sizeof four);
        __m256i packed = _mm256_loadu_si256((const __m256i *)(tile + 64 * at + 32 * half));
        __m256i low = _mm256_and_si256(part ? _mm256_srli_epi16(packed, 4) : packed, nibble);
        __m256i upper = at < 2 ? _mm256_slli_epi16(high, 4 - 2 * at) : _mm256_srli_epi16(high, 2 * at - 4);
        sum[at] = _mm256_maddubs_epi16(_mm256_or_si256(low, _mm256_and_si256(upper, two)), _mm256_set1_epi32(four));
    }
    __m256i first = _mm256_madd_epi16(_mm256_add_epi16(sum[0], sum[1]), ones);
    return _mm256_add_epi32(first, _mm256_madd_epi16(_mm256_add_epi16(sum[2], sum[3]), ones));
}

static inline __m256i eight_sums(const uint8_t *tile, int half, int part, const rounded *x, int bits) {
    if (bits == 4) return eight_sums4(tile, x);
    if (bits == 6) return eight_sums6(tile, half, part, x);
    return bits == 5 ? eight_sums5(tile, half, x) : eight_sums8(tile + 32 * half, x);
}

static inline __m256 eight_halves(const uint8_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }

static inline __attribute__((always_inline)) void row_of_kind(const rounded *x, const uint8_t *w, int64_t groups, int bits,
                                                              int minimums, float *out) {
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t group = 0; group < groups; group++, x++, w += group_bytes(bits, minimums))
        for (int half = 0; half < tile_rows(bits) / 8; half++) {
            const uint8_t *factors = w + code_bytes(bits) + 16 * half;
            for (int part = 0; part < parts_of(bits); part++, factors += factor_bytes(bits)) {
                __m256 codes = in_floats(eight_sums(w, half, part, x, bits), x, bits, part);
                __m256 scales = _mm256_mul_ps(eight_halves(factors), _mm256_set1_ps(x->scales[part]));
                sums[half] = _mm256_fmadd_ps(codes, scales, sums[half]);
            }
            if (minimums) sums[half] = _mm256_fmadd_ps(eight_halves(factors), _mm256_set1_ps(x->sum), sums[half]);
        }
    for (int half = 0; half < tile_rows(bits) / 8; half++) _mm256_storeu_ps(out + 8 * half, sums[half]);
}

static void one_row(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums, float *out) {
    if (bits == 4 && !minimums)
        row_of_kind(x, w, groups, 4, 0, out);
    else if (bits == 4)
        row_of_kind(x, w, groups, 4, 1, out);
    else if (bits == 5)
        row_of_kind(x, w, groups, 5, minimums, out);
    else if (bits == 6)
        row_of_kind(x, w, groups, 6, 0, out);
    else
        row_of_kind(x, w, groups, 8, minimums, out);
}

static void prefill_rows(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                         float out[PREFILL_ROWS][MOST_TILE_ROWS]) {
    for (int row = 0; row < PREFILL_ROWS; row++) one_row(x + row * groups, w, groups, bits, minimums, out[row]);
}

#endif

static inline int64_t tile_bytes(const matmul_work *work) {
    return work->columns / GROUP * group_bytes(work->bits, work->minimums);
}

static int64_t tiles_of(const matmul_work *work) {
    return (work->rows + tile_rows(work->bits) - 1) / tile_rows(work->bits);
}

static int64_t tiles_per_task(const matmul_work *work) { /* an even number: x86 takes two at once */
    int64_t pair = 2 * tile_bytes(work);
    return pair < TASK_BYTES ? TASK_BYTES / pair * 2 : 2;
}

static void put(const matmul_work *work, int64_t row, int64_t tile, const float *values) {
    int64_t most = tile_rows(work->bits), first = tile * most, left = work->rows - first;
    memcpy(work->y + row * work->rows + first, values, sizeof(float) * (size_t)(left < most ? left : most));
}

#if defined(__x86_64__) && !defined(WITHOUT_AVX512)

/* With AVX-512 and its dot products of bytes. The results are equal to the bit. */
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define PART VNNI static inline __attribute__((always_inline))

/* Codes of eight rows in 4 bits: columns 0 to 15 of rows 0 to 3, and of rows 4 to 7; then columns 16 to 31. */
typedef struct { __m512i low[2], high[2]; } unpacked;

PART unpacked unpack512(const uint8_t *w) {
    __m512i nibble = _mm512_set1_epi8(15), first = _mm512_loadu_si512(w), second = _mm512_loadu_si512(w + 64);
    __m512i high[2] = {_mm512_srli_epi16(first, 4), _mm512_srli_epi16(second, 4)};
    return (unpacked){{_mm512_and_si512(first, nibble), _mm512_and_si512(second, nibble)},
                      {_mm512_and_si512(high[0], nibble), _mm512_and_si512(high[1], nibble)}};
}

/* In each quarter two sums for row r, and two for row r + 4: alternately, over 16 columns each. */
PART __m512i half_sums(const unpacked *codes, const rounded *x) {
    __m512i zero = _mm512_setzero_si512();
    __m512i low = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)x->codes));
    __m512i high = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(x->codes + 16)));
    __m512i first = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, codes->low[0], low), codes->high[0], high);
    __m512i second = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, codes->low[1], low), codes->high[1], high);
    return _mm512_add_epi32(_mm512_unpacklo_epi32(first, second), _mm512_unpackhi_epi32(first, second));
}

/* sums + (the integer sums of a group, less what the codes have too much) * scales. `halves`: of these sums */
PART __m256 add_group(__m256 sums, __m512i halves, const rounded *x, __m256 scales) {
    __m512i rows = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i wholes = _mm512_add_epi32(_mm512_unpacklo_epi64(halves, halves), _mm512_unpackhi_epi64(halves, halves));
    __m256i codes = _mm512_castsi512_si256(_mm512_permutexvar_epi32(rows, wholes));
    return _mm256_fmadd_ps(in_floats(codes, x, 4, 0), _mm256_mul_ps(scales, _mm256_set1_ps(x->scales[0])), sums);
}

PART void decode512(const rounded *x, const uint8_t *w, int64_t groups, int minimums, float *out) {
    __m256 sums = _mm256_setzero_ps();
    for (int64_t group = 0; group < groups; group++, x++, w += group_bytes(4, minimums)) {
        const uint8_t *factors = w + code_bytes(4);
        unpacked codes = unpack512(w);
        sums = add_group(sums, half_sums(&codes, x), x, eight_halves(factors));
        if (minimums) sums = _mm256_fmadd_ps(eight_halves(factors + factor_bytes(4)), _mm256_set1_ps(x->sum), sums);
    }
    _mm256_storeu_ps(out, sums);
}

PART __m512i four_codes(const rounded *x, int quad) {
    int32_t four;
    memcpy(&four, x->codes + 4 * quad, sizeof four);
    return _mm512_set1_epi32(four);
}

/* Codes of two tiles in 4 bits, sixteen rows, four columns each: place 4 i + k holds row 4 k + i. */
PART void columns512(const uint8_t *one, const uint8_t *other, __m512i out[8]) {
    __m512i nibble = _mm512_set1_epi8(15), four[4], two[4];
    for (int at = 0; at < 2; at++) {
        four[at] = _mm512_loadu_si512(one + 64 * at);
        four[at + 2] = _mm512_loadu_si512(other + 64 * at);
    }
    for (int at = 0; at < 2; at++) {
        two[at] = _mm512_unpacklo_epi32(four[2 * at], four[2 * at + 1]);
        two[at + 2] = _mm512_unpackhi_epi32(four[2 * at], four[2 * at + 1]);
    }
    for (int quad = 0; quad < 4; quad++) {
        const __m512i *from = two + quad / 2 * 2;
        __m512i both = quad % 2 ? _mm512_unpackhi_epi64(from[0], from[1]) : _mm512_unpacklo_epi64(from[0], from[1]);
        out[quad] = _mm512_and_si512(both, nibble);
        out[quad + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    }
}

/* Sixteen float16 factors, eight of each tile, in the same places. */
PART __m512 factors512(const uint8_t *one, const uint8_t *other, __m512i places) {
    __m128i low = _mm_loadu_si128((const __m128i *)one), high = _mm_loadu_si128((const __m128i *)other);
    return _mm512_permutexvar_ps(places, _mm512_cvtph_ps(_mm256_set_m128i(high, low)));
}

/* Two tiles in 4 bits, the second `next` bytes on, with `rows` rows of x, which lie `groups` apart. */
PART void multiply4(const rounded *x, const uint8_t *w, int64_t groups, int64_t next, int minimums, int rows,
                    float out[][MOST_TILE_ROWS]) {
    __m512i places = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512 sums[PAIR_ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) sums[row] = _mm512_setzero_ps();
    for (int64_t group = 0; group < groups; group++, x++, w += group_bytes(4, minimums)) {
        const uint8_t *factors = w + code_bytes(4);
        __m512 scales = factors512(factors, factors + next, places), lowest = scales;
        __m512i columns[8];
        columns512(w, w + next, columns);
        if (minimums) lowest = factors512(factors + factor_bytes(4), factors + factor_bytes(4) + next, places);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
            const rounded *one = x + row * groups;
            __m512i codes = _mm512_set1_epi32(-one->eight_sums);
#pragma GCC unroll 8
            for (int quad = 0; quad < 8; quad++) codes = _mm512_dpbusd_epi32(codes, columns[quad], four_codes(one, quad));
            __m512 scaled = _mm512_mul_ps(scales, _mm512_set1_ps(one->scales[0]));
            sums[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), scaled, sums[row]);
            if (minimums) sums[row] = _mm512_fmadd_ps(lowest, _mm512_set1_ps(one->sum), sums[row]);
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) _mm512_storeu_ps(out[row], _mm512_permutexvar_ps(places, sums[row]));
}

PART __m512 halves512(const uint8_t *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }

/* Codes of sixteen rows in 5, 6 or 8 bits, columns 4 * quad to 4 * quad + 3. */
PART __m512i quad512(const uint8_t *tile, int quad, int bits) {
    if (bits == 8) return _mm512_loadu_si512(tile + 64 * quad);
    __m512i packed = _mm512_loadu_si512(tile + 64 * (quad % 4)), nibble = _mm512_set1_epi8(15);
    __m512i low = _mm512_and_si512(quad < 4 ? packed : _mm512_srli_epi16(packed, 4), nibble);
    if (bits == 6) {
        __m512i high = _mm512_loadu_si512(tile + 256 + 64 * (quad / 4));
        int left = 4 - 2 * (quad % 4);
        __m512i upper = left > 0 ? _mm512_slli_epi16(high, left) : _mm512_srli_epi16(high, -left);
        return _mm512_or_si512(low, _mm512_and_si512(upper, _mm512_set1_epi8(48)));
    }
    __mmask64 fifth;
    memcpy(&fifth, tile + 256 + 8 * quad, sizeof fifth);
    return _mm512_mask_add_epi8(low, fifth, low, _mm512_set1_epi8(16));
}

/* Sixteen rows of W in 5, 6 or 8 bits with `rows` rows of x, which lie `groups` apart. */
PART void multiply16(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums, int rows,
                     float out[][MOST_TILE_ROWS]) {
    __m512 sums[PREFILL_ROWS];
    int quads = GROUP / 4 / parts_of(bits);
    for (int row = 0; row < rows; row++) sums[row] = _mm512_setzero_ps();
    for (int64_t group = 0; group < groups; group++, x++, w += group_bytes(bits, minimums)) {
        const uint8_t *factors = w + code_bytes(bits);
#pragma GCC unroll 2
        for (int part = 0; part < parts_of(bits); part++, factors += factor_bytes(bits)) {
            __m512i codes[PREFILL_ROWS];
            __m512 scales = halves512(factors);
            for (int row = 0; row < rows; row++) codes[row] = _mm512_set1_epi32(-too_much(x + row * groups, bits, part));
#pragma GCC unroll 8
            for (int quad = part * quads; quad < (part + 1) * quads; quad++) {
                __m512i columns = quad512(w, quad, bits);
#pragma GCC unroll 4
                for (int row = 0; row < rows; row++)
                    codes[row] = _mm512_dpbusd_epi32(codes[row], columns, four_codes(x + row * groups, quad));
            }
#pragma GCC unroll 4
            for (int row = 0; row < rows; row++) {
                __m512 scaled = _mm512_mul_ps(scales, _mm512_set1_ps(x[row * groups].scales[part]));
                sums[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes[row]), scaled, sums[row]);
            }
        }
        if (!minimums) continue;
        __m512 lowest = halves512(factors);
        for (int row = 0; row < rows; row++)
            sums[row] = _mm512_fmadd_ps(lowest, _mm512_set1_ps(x[row * groups].sum), sums[row]);
    }
    for (int row = 0; row < rows; row++) _mm512_storeu_ps(out[row], sums[row]);
}

/* The same, compiled for each number of bits. */
PART void multiply_bits16(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums, int rows,
                          float out[][MOST_TILE_ROWS]) {
    if (bits == 8)
        multiply16(x, w, groups, 8, minimums, rows, out);
    else if (bits == 6)
        multiply16(x, w, groups, 6, 0, rows, out);
    else
        multiply16(x, w, groups, 5, minimums, rows, out);
}

VNNI static void one_row512(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums, float *out) {
    if (bits != 4)
        multiply_bits16(x, w, groups, bits, minimums, 1, (float(*)[MOST_TILE_ROWS])out);
    else if (minimums)
        decode512(x, w, groups, 1, out);
    else
        decode512(x, w, groups, 0, out);
}

/* In 5, 6 and 8 bits; in 4 two tiles are multiplied at once. */
VNNI static void prefill_rows512(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                                 float out[PREFILL_ROWS][MOST_TILE_ROWS]) {
    multiply_bits16(x, w, groups, bits, minimums, PREFILL_ROWS, out);
}

static int multiplies_bytes(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

/* The sums of two tiles, the second perhaps not there, are values of y. */
static void put_pair(const matmul_work *work, int64_t row, int64_t tile, const float *values) {
    put(work, row, tile, values);
    if (tile + 1 < tiles_of(work)) put(work, row, tile + 1, values + tile_rows(4));
}

/* Two tiles in 4 bits with x's rows from `first` on, up to BLOCK_ROWS of them. */
VNNI static void multiply_pair(const matmul_work *work, int64_t tile, int64_t first, int minimums) {
    int64_t groups = work->columns / GROUP, next = tile + 1 < tiles_of(work) ? tile_bytes(work) : 0;
    int64_t end = first + BLOCK_ROWS < work->count ? first + BLOCK_ROWS : work->count;
    const uint8_t *w = work->weights + tile * tile_bytes(work);
    float out[PAIR_ROWS][MOST_TILE_ROWS];
    for (int64_t row = first, rows; row < end; row += rows) {
        const rounded *x = work->scratch + row * groups;
        rows = end - row >= PAIR_ROWS ? PAIR_ROWS : end - row >= PREFILL_ROWS ? PREFILL_ROWS : 1;
        if (rows == PAIR_ROWS)
            multiply4(x, w, groups, next, minimums, PAIR_ROWS, out);
        else if (rows == PREFILL_ROWS)
            multiply4(x, w, groups, next, minimums, PREFILL_ROWS, out);
        else
            multiply4(x, w, groups, next, minimums, 1, out);
        for (int each = 0; each < rows; each++) put_pair(work, row + each, tile, out[each]);
    }
}

/* A prompt in 4 bits. */
static void multiply_pairs(const matmul_work *work, int64_t first, int64_t end) {
    for (int64_t row = 0; row < work->count; row += BLOCK_ROWS)
        for (int64_t tile = first; tile < end; tile += 2)
            multiply_pair(work, tile, row, work->minimums);
}

static int in_pairs(const matmul_work *work) {
    return work->bits == 4 && work->count >= PREFILL_ROWS && multiplies_bytes();
}

#define ONE_ROW (multiplies_bytes() ? one_row512 : one_row)
#define PREFILL (multiplies_bytes() ? prefill_rows512 : prefill_rows)
#else
static int in_pairs(const matmul_work *work) { return (void)work, 0; }
static void multiply_pairs(const matmul_work *work, int64_t first, int64_t end) { (void)work, (void)first, (void)end; }
#define ONE_ROW one_row
#define PREFILL prefill_rows
#endif

/* What is multiplied with a group of W's columns; `room` holds it where the channels have an order. */
static const float *channels_of(const matmul_work *work, const float *x, int64_t group, float room[GROUP]) {
    if (!work->order) return x + group * GROUP;
    const int32_t *order = work->order + group * GROUP;
    for (int at = 0; at < GROUP; at++) room[at] = (uint32_t)order[at] < (uint64_t)work->width ? x[order[at]] : 0.0f;
    return room;
}

/* Rounds 32 values, each sixteen by a scale of their own. */
static void round_halves(const float *x, rounded *out) {
    float room[2][GROUP] = {{0}};
    rounded second;
    memcpy(room[0], x, sizeof(float) * GROUP / 2);
    memcpy(room[1] + GROUP / 2, x + GROUP / 2, sizeof(float) * GROUP / 2);
    round_group(room[0], out);
    round_group(room[1], &second);
    memcpy(out->codes + GROUP / 2, second.codes + GROUP / 2, GROUP / 2);
    out->scales[1] = second.scales[0];
    out->eight_firsts = out->eight_sums;
    out->eight_sums = (int16_t)(out->eight_sums + second.eight_sums);
}

static void round_rows(void *given, size_t task) {
    const matmul_work *work = given;
    int64_t groups = work->columns / GROUP, first = (int64_t)task * PREFILL_ROWS;
    float room[GROUP];
    for (int64_t row = first; row < first + PREFILL_ROWS && row < work->count; row++)
        for (int64_t group = 0; group < groups; group++) {
            const float *x = channels_of(work, work->x + row * work->width, group, room);
            rounded *out = work->scratch + row * groups + group;
            if (parts_of(work->bits) == 1)
                round_group(x, out);
            else
                round_halves(x, out);
        }
}

/* One tile of W with x's rows from `first` on, up to BLOCK_ROWS of them. */
static inline void multiply_tile(const matmul_work *work, int64_t tile, int64_t first, int bits, int minimums) {
    int64_t groups = work->columns / GROUP, end = first + BLOCK_ROWS, row = first;
    const uint8_t *w = work->weights + tile * tile_bytes(work);
    float out[PREFILL_ROWS][MOST_TILE_ROWS];
    if (end > work->count) end = work->count;
    for (; row + PREFILL_ROWS <= end; row += PREFILL_ROWS) {
        PREFILL(work->scratch + row * groups, w, groups, bits, minimums, out);
        for (int each = 0; each < PREFILL_ROWS; each++) put(work, row + each, tile, out[each]);
    }
    for (; row < end; row++) {
        ONE_ROW(work->scratch + row * groups, w, groups, bits, minimums, out[0]);
        put(work, row, tile, out[0]);
    }
}

/* Some tiles of W, few enough for a cache, with all rows of x, BLOCK_ROWS at a time. */
static void multiply_tiles(void *given, size_t task) {
    const matmul_work *work = given;
    int64_t some = tiles_per_task(work), tiles = tiles_of(work);
    int64_t first = (int64_t)task * some, end = first + some < tiles ? first + some : tiles;
    if (in_pairs(work)) {
        multiply_pairs(work, first, end);
        return;
    }
    for (int64_t row = 0; row < work->count; row += BLOCK_ROWS)
        for (int64_t tile = first; tile < end; tile++)
#if defined(__aarch64__) /* on x86 ONE_ROW is compiled for each kind of matrix */
            if (work->bits == 8)
                multiply_tile(work, tile, row, 8, work->minimums);
            else if (work->bits == 5)
                multiply_tile(work, tile, row, 5, work->minimums);
            else if (work->bits == 6)
                multiply_tile(work, tile, row, 6, 0);
            else if (work->minimums)
                multiply_tile(work, tile, row, 4, 1);
            else
                multiply_tile(work, tile, row, 4, 0);
#else
            multiply_tile(work, tile, row, work->bits, work->minimums);
#endif
}

void matmul(const matmul_work *work, threads on) {
    int64_t tiles = tiles_of(work), some = tiles_per_task(work);
    spread(on, round_rows, (size_t)((work->count + PREFILL_ROWS - 1) / PREFILL_ROWS), (void *)work);
    spread(on, multiply_tiles, (size_t)((tiles + some - 1) / some), (void *)work);
}

/* Code of a column; `codes`: of the tile. */
static inline int code_of(const uint8_t *codes, int64_t place, int64_t column, int bits) {
    int64_t at = column / 4 * 4 * tile_rows(8) + 4 * place + column % 4; /* in the order of 8 bits */
    if (bits == 8) return codes[at] - 128;
    if (bits != 4) {
        int low = column < 16 ? codes[at] & 15 : codes[at - 256] >> 4;
        if (bits == 5) return (low | (codes[256 + at / 8] >> at % 8 & 1) << 4) - 16;
        return (low | (codes[256 + at / 256 * 64 + at % 64] >> at / 64 % 4 * 2 & 3) << 4) - 32;
    }
    int packed = codes[16 * place + column % 16];
    return (column < 16 ? packed & 15 : packed >> 4) - 8;
}

void matmul_row(const uint8_t *weights, int64_t columns, int bits, int minimums, int64_t row, float *out) {
    int64_t place = row % tile_rows(bits), step = group_bytes(bits, minimums);
    const uint8_t *w = weights + row / tile_rows(bits) * (columns / GROUP) * step;
    for (int64_t group = 0; group < columns / GROUP; group++, w += step, out += GROUP) {
        const uint8_t *scales = w + code_bytes(bits) + 2 * place, *behind = scales + parts_of(bits) * factor_bytes(bits);
        float minimum = minimums ? half_to_float(behind) : 0.0f;
        int64_t column = 0;
        for (int part = 1; part <= parts_of(bits); part++, scales += factor_bytes(bits)) {
            float scale = half_to_float(scales);
            for (; column < part * GROUP / parts_of(bits); column++) {
                float value = (float)code_of(w, place, column, bits) * scale;
                out[column] = minimums ? value + minimum : value;
            }
        }
    }
}
