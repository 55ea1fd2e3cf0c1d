/* y = x W^T with W in 4 bits and x rounded to 8 bits in groups of 32. See matmul4.h for the layout.
 *
 * Integer sums are exact: codes 0 to 15 times -127 to 127 over 32 columns leave int16, but wrap modulo 2^16, and less
 * 8 * sum(x) the true sum is at most 32 * 8 * 127 = 32512, which int16 holds.
 */
#include "matmul4.h"
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

/* sums += (the integer sums of a group) * scales [+ minimums * sum(x)] */
static inline void add_group(float32x4_t sums[2], int16x8_t codes, const rounded *x, const float32x4_t scales[2]) {
    codes = vsubq_s16(codes, vdupq_n_s16(x->eight_sums));
    float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes)));
    float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(codes));
    sums[0] = vfmaq_f32(sums[0], low, vmulq_n_f32(scales[0], x->scale));
    sums[1] = vfmaq_f32(sums[1], high, vmulq_n_f32(scales[1], x->scale));
}

static inline void eight_halves(const uint8_t *at, float32x4_t out[2]) {
    float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(at));
    out[0] = vcvt_f32_f16(vget_low_f16(halves));
    out[1] = vcvt_high_f32_f16(halves);
}

/* Eight rows of W with one row of x. */
static inline void one_row(const rounded *x, const uint8_t *w, int64_t groups, int minimums, float out[TILE_ROWS]) {
    float32x4_t sums[2] = {vdupq_n_f32(0), vdupq_n_f32(0)}, factors[2];
    const uint8_t *end = w + groups * (minimums ? GROUP_BYTES_WITH_MINIMUMS : GROUP_BYTES);
    for (; w < end; x++) {
        int8x16_t first = vld1q_s8(x->codes), second = vld1q_s8(x->codes + 16);
        int16x8_t p0 = row_products(vld1q_u8(w), first, second), p1 = row_products(vld1q_u8(w + 16), first, second);
        int16x8_t p2 = row_products(vld1q_u8(w + 32), first, second), p3 = row_products(vld1q_u8(w + 48), first, second);
        int16x8_t half = vpaddq_s16(vpaddq_s16(p0, p1), vpaddq_s16(p2, p3));
        p0 = row_products(vld1q_u8(w + 64), first, second), p1 = row_products(vld1q_u8(w + 80), first, second);
        p2 = row_products(vld1q_u8(w + 96), first, second), p3 = row_products(vld1q_u8(w + 112), first, second);
        eight_halves(w + CODE_BYTES, factors);
        add_group(sums, vpaddq_s16(half, vpaddq_s16(vpaddq_s16(p0, p1), vpaddq_s16(p2, p3))), x, factors);
        w += GROUP_BYTES;
        if (minimums) {
            eight_halves(w, factors);
            sums[0] = vfmaq_n_f32(sums[0], factors[0], x->sum);
            sums[1] = vfmaq_n_f32(sums[1], factors[1], x->sum);
            w += GROUP_BYTES_WITH_MINIMUMS - GROUP_BYTES;
        }
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
static inline void prefill_rows(const rounded *x, const uint8_t *w, int64_t groups, int minimums,
                                float out[PREFILL_ROWS][TILE_ROWS]) {
    float32x4_t sums[PREFILL_ROWS][2], factors[2];
    for (int row = 0; row < PREFILL_ROWS; row++) sums[row][0] = sums[row][1] = vdupq_n_f32(0);
    const uint8_t *end = w + groups * (minimums ? GROUP_BYTES_WITH_MINIMUMS : GROUP_BYTES);
    const rounded *rows[PREFILL_ROWS] = {x, x + groups, x + 2 * groups, x + 3 * groups};
    while (w < end) {
        int8x16_t low[4], high[4];
        int16x8_t half[PREFILL_ROWS];
        unpack(w, low, high);
#pragma GCC unroll 4
        for (int row = 0; row < PREFILL_ROWS; row++) {
            half[row] = four_rows(low, high, rows[row]);
            ONE_AFTER_THE_OTHER(half[row]);
        }
        unpack(w + CODE_BYTES / 2, low, high);
        eight_halves(w + CODE_BYTES, factors);
#pragma GCC unroll 4
        for (int row = 0; row < PREFILL_ROWS; row++) {
            add_group(sums[row], vpaddq_s16(half[row], four_rows(low, high, rows[row])), rows[row], factors);
            ONE_AFTER_THE_OTHER(sums[row][1]);
        }
        w += GROUP_BYTES;
        if (minimums) {
            eight_halves(w, factors);
#pragma GCC unroll 4
            for (int row = 0; row < PREFILL_ROWS; row++) {
                sums[row][0] = vfmaq_n_f32(sums[row][0], factors[0], rows[row]->sum);
                sums[row][1] = vfmaq_n_f32(sums[row][1], factors[1], rows[row]->sum);
            }
            w += GROUP_BYTES_WITH_MINIMUMS - GROUP_BYTES;
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

/* The integer sums of eight rows of W over 32 columns, less 8 * sum(x). */
static inline __m256 group_sums(const uint8_t *w, const rounded *x) {
    __m256i values = _mm256_loadu_si256((const __m256i *)x->codes), sum[8];
    __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int row = 0; row < TILE_ROWS; row++) {
        __m128i packed = _mm_loadu_si128((const __m128i *)(w + 16 * row));
        __m256i codes = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), nibble);
        sum[row] = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, values), ones);
    }
    for (int row = 0; row < 8; row += 2) sum[row / 2] = _mm256_hadd_epi32(sum[row], sum[row + 1]);
    __m256i first = _mm256_hadd_epi32(sum[0], sum[1]), second = _mm256_hadd_epi32(sum[2], sum[3]);
    __m256i swapped = _mm256_permute2x128_si256(first, second, 0x21);
    __m256i total = _mm256_add_epi32(_mm256_blend_epi32(first, second, 0xf0), swapped);
    total = _mm256_sub_epi32(total, _mm256_set1_epi32(x->eight_sums));
    return _mm256_cvtepi32_ps(total);
}

static inline __m256 eight_halves(const uint8_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }

static inline void one_row(const rounded *x, const uint8_t *w, int64_t groups, int minimums, float out[TILE_ROWS]) {
    __m256 sums = _mm256_setzero_ps();
    for (int64_t group = 0; group < groups; group++, x++) {
        __m256 scales = _mm256_mul_ps(eight_halves(w + CODE_BYTES), _mm256_set1_ps(x->scale));
        sums = _mm256_fmadd_ps(group_sums(w, x), scales, sums);
        w += GROUP_BYTES;
        if (minimums) {
            sums = _mm256_fmadd_ps(eight_halves(w), _mm256_set1_ps(x->sum), sums);
            w += GROUP_BYTES_WITH_MINIMUMS - GROUP_BYTES;
        }
    }
    _mm256_storeu_ps(out, sums);
}

static inline void prefill_rows(const rounded *x, const uint8_t *w, int64_t groups, int minimums,
                                float out[PREFILL_ROWS][TILE_ROWS]) {
    for (int row = 0; row < PREFILL_ROWS; row++) one_row(x + row * groups, w, groups, minimums, out[row]);
}

#endif

static void round_rows(void *given, size_t task) {
    const matmul4_work *work = given;
    int64_t groups = work->columns / GROUP, first = (int64_t)task * PREFILL_ROWS * groups;
    int64_t end = first + PREFILL_ROWS * groups, all = work->count * groups;
    for (int64_t at = first; at < end && at < all; at++) round_group(work->x + at * GROUP, work->scratch + at);
}

static inline int64_t tile_bytes(const matmul4_work *work) {
    return work->columns / GROUP * (work->minimums ? GROUP_BYTES_WITH_MINIMUMS : GROUP_BYTES);
}

static int64_t tiles_per_task(const matmul4_work *work) {
    int64_t bytes = tile_bytes(work);
    return bytes < TASK_BYTES ? TASK_BYTES / bytes : 1;
}

static void put(const matmul4_work *work, int64_t row, int64_t tile, const float *values) {
    int64_t first = tile * TILE_ROWS, left = work->rows - first;
    memcpy(work->y + row * work->rows + first, values, sizeof(float) * (left < TILE_ROWS ? left : TILE_ROWS));
}

/* One tile of W with x's rows from `first` on, up to BLOCK_ROWS of them. */
static inline void multiply_tile(const matmul4_work *work, int64_t tile, int64_t first, int minimums) {
    int64_t groups = work->columns / GROUP, end = first + BLOCK_ROWS, row = first;
    const uint8_t *w = work->weights + tile * tile_bytes(work);
    float out[PREFILL_ROWS][TILE_ROWS];
    if (end > work->count) end = work->count;
    for (; row + PREFILL_ROWS <= end; row += PREFILL_ROWS) {
        prefill_rows(work->scratch + row * groups, w, groups, minimums, out);
        for (int each = 0; each < PREFILL_ROWS; each++) put(work, row + each, tile, out[each]);
    }
    for (; row < end; row++) {
        one_row(work->scratch + row * groups, w, groups, minimums, out[0]);
        put(work, row, tile, out[0]);
    }
}

/* Some tiles of W, few enough for a cache, with all rows of x, BLOCK_ROWS at a time. */
static void multiply_tiles(void *given, size_t task) {
    const matmul4_work *work = given;
    int64_t some = tiles_per_task(work), tiles = (work->rows + TILE_ROWS - 1) / TILE_ROWS;
    int64_t first = (int64_t)task * some, end = first + some < tiles ? first + some : tiles;
    for (int64_t row = 0; row < work->count; row += BLOCK_ROWS)
        for (int64_t tile = first; tile < end; tile++)
            if (work->minimums)
                multiply_tile(work, tile, row, 1);
            else
                multiply_tile(work, tile, row, 0);
}

void matmul4(const matmul4_work *work, threads on) {
    int64_t tiles = (work->rows + TILE_ROWS - 1) / TILE_ROWS, some = tiles_per_task(work);
    spread(on, round_rows, (size_t)((work->count + PREFILL_ROWS - 1) / PREFILL_ROWS), (void *)work);
    spread(on, multiply_tiles, (size_t)((tiles + some - 1) / some), (void *)work);
}

void matmul4_row(const uint8_t *weights, int64_t columns, int minimums, int64_t row, float *out) {
    int64_t step = minimums ? GROUP_BYTES_WITH_MINIMUMS : GROUP_BYTES;
    const uint8_t *w = weights + row / TILE_ROWS * (columns / GROUP) * step;
    int place = (int)(row % TILE_ROWS);
    for (int64_t group = 0; group < columns / GROUP; group++, w += step) {
        float scale = half_to_float(w + CODE_BYTES + 2 * place);
        float minimum = minimums ? half_to_float(w + GROUP_BYTES + 2 * place) : 0.0f;
        for (int byte = 0; byte < GROUP / 2; byte++) {
            int packed = w[16 * place + byte];
            float low = (float)((packed & 15) - 8) * scale, high = (float)((packed >> 4) - 8) * scale;
            out[group * GROUP + byte] = minimums ? low + minimum : low;
            out[group * GROUP + byte + GROUP / 2] = minimums ? high + minimum : high;
        }
    }
}
