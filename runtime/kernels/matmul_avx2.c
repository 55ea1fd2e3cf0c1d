/* AVX2 with FMA and F16C, which build.sh requires of every x86 CPU. */
#if defined(__x86_64__)
#include "instruction_set.h"
#include <string.h>
#include <immintrin.h>

void round_group_avx2(const float *x, rounded *out) {
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

/* Eight integer sums, less the offset of the codes, as floats. */
static inline __m256 in_floats(__m256i sums, const rounded *x, int bits, int part) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, _mm256_set1_epi32(offset_sum(x, bits, part))));
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

/* One tile with one row of x. */
static inline __attribute__((always_inline)) void decode(const rounded *x, const uint8_t *w, int64_t groups, int bits,
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

FOR_EACH_KIND(DEFINE_DECODE)

static int is_supported(void) { return 1; }

const instruction_set AVX2 = {"avx2", is_supported, round_group_avx2, {FOR_EACH_KIND(DECODE_ONLY)}, NULL};
#endif
