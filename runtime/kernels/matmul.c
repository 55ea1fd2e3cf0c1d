/* y = x W^T with W in 4 or 8 bits and x rounded to 8 bits in groups of 32. See matmul.h for the layout.
 *
 * Integer sums are exact. In 4 bits codes 0 to 15 times -127 to 127 over 32 columns leave int16, but wrap modulo 2^16,
 * and less 8 * sum(x) the true sum is at most 32 * 8 * 127 = 32512, which int16 holds. In 8 bits they are of 32 bits.
 */
#include "matmul.h"
#include <string.h>
#include "lanes.h"

enum { PREFILL_ROWS = 4, BLOCK_ROWS = 16, TASK_BYTES = 32768 };
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
    out->scale = most * (1.0f / 127.0f) + (out->sum - out->sum); /* not finite where a value is not */
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

/* sums += (the integer sums of a group) * scales */
static inline void add_scaled(float32x4_t sums[2], int32x4_t low, int32x4_t high, const rounded *x,
                              const float32x4_t scales[2]) {
    sums[0] = vfmaq_f32(sums[0], vcvtq_f32_s32(low), vmulq_n_f32(scales[0], x->scale));
    sums[1] = vfmaq_f32(sums[1], vcvtq_f32_s32(high), vmulq_n_f32(scales[1], x->scale));
}

/* The same of codes of 4 bits, whose sums have 8 * sum(x) too much. */
static inline void add_group(float32x4_t sums[2], int16x8_t codes, const rounded *x, const float32x4_t scales[2]) {
    codes = vsubq_s16(codes, vdupq_n_s16(x->eight_sums));
    add_scaled(sums, vmovl_s16(vget_low_s16(codes)), vmovl_high_s16(codes), x, scales);
}

/* The products of one row of W in 8 bits with x, added over eight columns. */
static inline int32x4_t row_products8(const uint8_t *w, int8x16_t first, int8x16_t second) {
    int8x16_t low = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w), vdupq_n_u8(128)));
    int8x16_t high = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w + TILE_ROWS * GROUP / 2), vdupq_n_u8(128)));
    int16x8_t sum = vmlal_high_s8(vmull_s8(vget_low_s8(low), vget_low_s8(first)), low, first);
    int16x8_t other = vmlal_high_s8(vmull_s8(vget_low_s8(high), vget_low_s8(second)), high, second);
    return vpadalq_s16(vpaddlq_s16(sum), other);
}

static inline int32x4_t four_rows8(const uint8_t *w, int8x16_t first, int8x16_t second) {
    int32x4_t p0 = row_products8(w, first, second), p1 = row_products8(w + 16, first, second);
    int32x4_t p2 = row_products8(w + 32, first, second), p3 = row_products8(w + 48, first, second);
    return vpaddq_s32(vpaddq_s32(p0, p1), vpaddq_s32(p2, p3));
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

/* Eight rows of W in 8 bits with one row of x. */
static inline void one_row8(const rounded *x, const uint8_t *w, int64_t groups, int minimums, float out[TILE_ROWS]) {
    float32x4_t sums[2] = {vdupq_n_f32(0), vdupq_n_f32(0)}, factors[2];
    for (int64_t group = 0; group < groups; group++, x++, w += group_bytes(8, minimums)) {
        int8x16_t first = vld1q_s8(x->codes), second = vld1q_s8(x->codes + 16);
        eight_halves(w + code_bytes(8), factors);
        add_scaled(sums, four_rows8(w, first, second), four_rows8(w + 64, first, second), x, factors);
        if (minimums) add_minimums(sums, w + code_bytes(8) + FACTOR_BYTES, x);
    }
    vst1q_f32(out, sums[0]), vst1q_f32(out + 4, sums[1]);
}

/* Eight rows of W with one row of x. */
static inline void one_row(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                           float out[TILE_ROWS]) {
    float32x4_t sums[2] = {vdupq_n_f32(0), vdupq_n_f32(0)}, factors[2];
    const uint8_t *end = w + groups * group_bytes(4, minimums);
    if (bits == 8) {
        one_row8(x, w, groups, minimums, out);
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
        if (minimums) add_minimums(sums, w + code_bytes(4) + FACTOR_BYTES, x);
    }
    vst1q_f32(out, sums[0]), vst1q_f32(out + 4, sums[1]);
}

/* Keeps the compiler from working on several rows at once, for which there are not registers enough. */
#define ONE_AFTER_THE_OTHER(value) __asm__ volatile("" : "+w"(value) : : "memory")

/* Four rows of W, unpacked, with one row of x: the sums of each four neighbouring lanes' pairs. */
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

/* Eight rows of W with four rows of x, which lie `groups` apart. */
static inline void prefill_rows(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                                float out[PREFILL_ROWS][TILE_ROWS]) {
    float32x4_t sums[PREFILL_ROWS][2], factors[2];
    for (int row = 0; row < PREFILL_ROWS; row++) {
        if (bits == 8) one_row8(x + row * groups, w, groups, minimums, out[row]);
        sums[row][0] = sums[row][1] = vdupq_n_f32(0);
    }
    if (bits == 8) return;
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
            eight_halves(w + code_bytes(4) + FACTOR_BYTES, factors);
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
    out->scale = most * (1.0f / 127.0f) + (out->sum - out->sum);
}

/* The products of one row of W with x, added over four columns in 4 bits, and over two pairs in 8. */
static inline __m256i row_products(const uint8_t *w, const rounded *x, int bits) {
    __m128i packed = _mm_loadu_si128((const __m128i *)w);
    if (bits == 4) {
        __m256i values = _mm256_loadu_si256((const __m256i *)x->codes), nibble = _mm256_set1_epi8(15);
        __m256i codes = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), nibble);
        return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, values), _mm256_set1_epi16(1));
    }
    __m128i more = _mm_loadu_si128((const __m128i *)(w + TILE_ROWS * GROUP / 2));
    __m256i first = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)x->codes));
    __m256i second = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(x->codes + 16)));
    return _mm256_add_epi32(_mm256_madd_epi16(_mm256_cvtepu8_epi16(packed), first),
                            _mm256_madd_epi16(_mm256_cvtepu8_epi16(more), second));
}

/* Codes have 8 too much in 4 bits, and 128 in 8. */
static inline int too_much(const rounded *x, int bits) { return bits == 4 ? x->eight_sums : 16 * x->eight_sums; }

/* The integer sums of eight rows of W over 32 columns, less what the codes have too much. */
static inline __m256 group_sums(const uint8_t *w, const rounded *x, int bits) {
    __m256i sum[8];
    for (int row = 0; row < TILE_ROWS; row++) sum[row] = row_products(w + 16 * row, x, bits);
    for (int row = 0; row < 8; row += 2) sum[row / 2] = _mm256_hadd_epi32(sum[row], sum[row + 1]);
    __m256i first = _mm256_hadd_epi32(sum[0], sum[1]), second = _mm256_hadd_epi32(sum[2], sum[3]);
    __m256i swapped = _mm256_permute2x128_si256(first, second, 0x21);
    __m256i total = _mm256_add_epi32(_mm256_blend_epi32(first, second, 0xf0), swapped);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(total, _mm256_set1_epi32(too_much(x, bits))));
}

static inline __m256 eight_halves(const uint8_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }

static inline void one_row(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                           float out[TILE_ROWS]) {
    __m256 sums = _mm256_setzero_ps();
    for (int64_t group = 0; group < groups; group++, x++, w += group_bytes(bits, minimums)) {
        const uint8_t *factors = w + code_bytes(bits);
        __m256 scales = _mm256_mul_ps(eight_halves(factors), _mm256_set1_ps(x->scale));
        sums = _mm256_fmadd_ps(group_sums(w, x, bits), scales, sums);
        if (minimums) sums = _mm256_fmadd_ps(eight_halves(factors + FACTOR_BYTES), _mm256_set1_ps(x->sum), sums);
    }
    _mm256_storeu_ps(out, sums);
}

static inline void prefill_rows(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                                float out[PREFILL_ROWS][TILE_ROWS]) {
    for (int row = 0; row < PREFILL_ROWS; row++) one_row(x + row * groups, w, groups, bits, minimums, out[row]);
}

#endif

#if defined(__x86_64__) && !defined(WITHOUT_AVX512)

/* With AVX-512 and its dot products of bytes: four rows of W in a register. The results are equal to the bit. */
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define PART VNNI static inline __attribute__((always_inline))

/* Codes of eight rows: columns 0 to 15 of rows 0 to 3, and of rows 4 to 7; then columns 16 to 31. */
typedef struct { __m512i low[2], high[2]; } unpacked;

PART unpacked unpack512(const uint8_t *w, int bits) {
    __m512i nibble = _mm512_set1_epi8(15), first = _mm512_loadu_si512(w), second = _mm512_loadu_si512(w + 64);
    if (bits == 8) return (unpacked){{first, second}, {_mm512_loadu_si512(w + 128), _mm512_loadu_si512(w + 192)}};
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

/* Of the half sums for two rows of x: eight sums for the one, then eight for the other. */
PART __m512i whole_sums(__m512i one, __m512i other) {
    __m512i rows = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i sums = _mm512_add_epi32(_mm512_unpacklo_epi64(one, other), _mm512_unpackhi_epi64(one, other));
    return _mm512_permutexvar_epi32(rows, sums);
}

/* sums + (the integer sums of a group, less what the codes have too much) * scales */
PART __m256 add_group(__m256 sums, __m256i codes, const rounded *x, __m256 scales, int bits) {
    codes = _mm256_sub_epi32(codes, _mm256_set1_epi32(too_much(x, bits)));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), _mm256_mul_ps(scales, _mm256_set1_ps(x->scale)), sums);
}

PART void decode512(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums, float out[TILE_ROWS]) {
    __m256 sums = _mm256_setzero_ps();
    for (int64_t group = 0; group < groups; group++, x++, w += group_bytes(bits, minimums)) {
        const uint8_t *factors = w + code_bytes(bits);
        unpacked codes = unpack512(w, bits);
        __m512i halves = half_sums(&codes, x);
        sums = add_group(sums, _mm512_castsi512_si256(whole_sums(halves, halves)), x, eight_halves(factors), bits);
        if (minimums) sums = _mm256_fmadd_ps(eight_halves(factors + FACTOR_BYTES), _mm256_set1_ps(x->sum), sums);
    }
    _mm256_storeu_ps(out, sums);
}

PART void prefill512(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                      float out[PREFILL_ROWS][TILE_ROWS]) {
    __m256 sums[PREFILL_ROWS];
    for (int row = 0; row < PREFILL_ROWS; row++) sums[row] = _mm256_setzero_ps();
    for (int64_t group = 0; group < groups; group++, x++, w += group_bytes(bits, minimums)) {
        const uint8_t *factors = w + code_bytes(bits);
        unpacked codes = unpack512(w, bits);
        __m256 scales = eight_halves(factors);
#pragma GCC unroll 2
        for (int row = 0; row < PREFILL_ROWS; row += 2) {
            const rounded *one = x + row * groups, *other = one + groups;
            __m512i both = whole_sums(half_sums(&codes, one), half_sums(&codes, other));
            sums[row] = add_group(sums[row], _mm512_castsi512_si256(both), one, scales, bits);
            sums[row + 1] = add_group(sums[row + 1], _mm512_extracti64x4_epi64(both, 1), other, scales, bits);
        }
        for (int row = 0; minimums && row < PREFILL_ROWS; row++)
            sums[row] = _mm256_fmadd_ps(eight_halves(factors + FACTOR_BYTES), _mm256_set1_ps(x[row * groups].sum), sums[row]);
    }
    for (int row = 0; row < PREFILL_ROWS; row++) _mm256_storeu_ps(out[row], sums[row]);
}

/* A loop for each format. */
#define BY_FORMAT(loop, x, w, groups, bits, minimums, out)  \
    do {                                                    \
        if (bits == 8 && minimums)                          \
            loop(x, w, groups, 8, 1, out);                  \
        else if (bits == 8)                                 \
            loop(x, w, groups, 8, 0, out);                  \
        else if (minimums)                                  \
            loop(x, w, groups, 4, 1, out);                  \
        else                                                \
            loop(x, w, groups, 4, 0, out);                  \
    } while (0)

VNNI static void one_row512(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                            float out[TILE_ROWS]) {
    BY_FORMAT(decode512, x, w, groups, bits, minimums, out);
}

VNNI static void prefill_rows512(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                                 float out[PREFILL_ROWS][TILE_ROWS]) {
    BY_FORMAT(prefill512, x, w, groups, bits, minimums, out);
}

static int multiplies_bytes(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

#define ONE_ROW (multiplies_bytes() ? one_row512 : one_row)
#define PREFILL (multiplies_bytes() ? prefill_rows512 : prefill_rows)
#else
#define ONE_ROW one_row
#define PREFILL prefill_rows
#endif

static void round_rows(void *given, size_t task) {
    const matmul_work *work = given;
    int64_t groups = work->columns / GROUP, first = (int64_t)task * PREFILL_ROWS * groups;
    int64_t end = first + PREFILL_ROWS * groups, all = work->count * groups;
    for (int64_t at = first; at < end && at < all; at++) round_group(work->x + at * GROUP, work->scratch + at);
}

static inline int64_t tile_bytes(const matmul_work *work) {
    return work->columns / GROUP * group_bytes(work->bits, work->minimums);
}

static int64_t tiles_per_task(const matmul_work *work) {
    int64_t bytes = tile_bytes(work);
    return bytes < TASK_BYTES ? TASK_BYTES / bytes : 1;
}

static void put(const matmul_work *work, int64_t row, int64_t tile, const float *values) {
    int64_t first = tile * TILE_ROWS, left = work->rows - first;
    memcpy(work->y + row * work->rows + first, values, sizeof(float) * (left < TILE_ROWS ? left : TILE_ROWS));
}

/* One tile of W with x's rows from `first` on, up to BLOCK_ROWS of them. */
static inline void multiply_tile(const matmul_work *work, int64_t tile, int64_t first, int bits, int minimums) {
    int64_t groups = work->columns / GROUP, end = first + BLOCK_ROWS, row = first;
    const uint8_t *w = work->weights + tile * tile_bytes(work);
    float out[PREFILL_ROWS][TILE_ROWS];
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
    int64_t some = tiles_per_task(work), tiles = (work->rows + TILE_ROWS - 1) / TILE_ROWS;
    int64_t first = (int64_t)task * some, end = first + some < tiles ? first + some : tiles;
    for (int64_t row = 0; row < work->count; row += BLOCK_ROWS)
        for (int64_t tile = first; tile < end; tile++)
            if (work->bits == 8)
                multiply_tile(work, tile, row, 8, work->minimums);
            else if (work->minimums)
                multiply_tile(work, tile, row, 4, 1);
            else
                multiply_tile(work, tile, row, 4, 0);
}

void matmul(const matmul_work *work, threads on) {
    int64_t tiles = (work->rows + TILE_ROWS - 1) / TILE_ROWS, some = tiles_per_task(work);
    spread(on, round_rows, (size_t)((work->count + PREFILL_ROWS - 1) / PREFILL_ROWS), (void *)work);
    spread(on, multiply_tiles, (size_t)((tiles + some - 1) / some), (void *)work);
}

void matmul_row(const uint8_t *weights, int64_t columns, int bits, int minimums, int64_t row, float *out) {
    int64_t step = group_bytes(bits, minimums), half = GROUP / 2;
    const uint8_t *w = weights + row / TILE_ROWS * (columns / GROUP) * step;
    int place = (int)(row % TILE_ROWS);
    for (int64_t group = 0; group < columns / GROUP; group++, w += step, out += GROUP) {
        const uint8_t *codes = w + 16 * place, *factors = w + code_bytes(bits) + 2 * place;
        float scale = half_to_float(factors), minimum = minimums ? half_to_float(factors + FACTOR_BYTES) : 0.0f;
        for (int64_t at = 0; at < half; at++) {
            int low = bits == 8 ? codes[at] - 128 : (codes[at] & 15) - 8;
            int high = bits == 8 ? codes[at + TILE_ROWS * half] - 128 : (codes[at] >> 4) - 8;
            out[at] = minimums ? (float)low * scale + minimum : (float)low * scale;
            out[at + half] = minimums ? (float)high * scale + minimum : (float)high * scale;
        }
    }
}
