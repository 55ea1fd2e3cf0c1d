/* AVX2 with FMA and F16C, which build.sh requires of every x86 CPU. */
#if defined(__x86_64__)
#include "instruction_set.h"
#include <string.h>
#include <immintrin.h>

PART float largest_of(__m256 eight) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

PART int total_of(__m256i bytes) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), eight = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(four) + _mm_extract_epi32(four, 1);
}

void round_group_avx2(const float *x, rounded *out) {
    __m128 sum = _mm_setzero_ps();
    __m256 v[4], largest = _mm256_setzero_ps(), positive = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int at = 0; at < 4; at++) {
        v[at] = _mm256_loadu_ps(x + 8 * at);
        largest = _mm256_max_ps(_mm256_and_ps(v[at], positive), largest);
        sum = _mm_add_ps(_mm_add_ps(sum, _mm256_castps256_ps128(v[at])), _mm256_extractf128_ps(v[at], 1));
    }
    float most = largest_of(largest);
    sum = _mm_add_ps(sum, _mm_movehdup_ps(sum));
    out->sum = _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehl_ps(sum, sum))); /* (0 + 1) + (2 + 3) */
    __m256 times = _mm256_set1_ps(most > SMALLEST ? 127.0f / most : 0.0f);
    __m256i codes[4];
    for (int at = 0; at < 4; at++) codes[at] = _mm256_cvtps_epi32(_mm256_mul_ps(v[at], times));
    __m256i first = _mm256_packs_epi32(codes[0], codes[1]), second = _mm256_packs_epi32(codes[2], codes[3]);
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), in_order);
    _mm256_storeu_si256((__m256i *)out->codes, bytes);
    out->offset = -8 * total_of(bytes);
    out->scales[0] = most * (1.0f / 127.0f) + (out->sum - out->sum);
}

#define MOST_OF_SET SOME_ROWS

/* Codes of eight rows in 4, 5 or 6 bits, columns 4 * quad to 4 * quad + 3; `half` numbers the rows of a tile. */
PART __m256i quad256(const uint8_t *tile, int half, int quad, int bits) {
    __m256i packed = _mm256_loadu_si256((const __m256i *)(tile + 64 * (quad % 4) + 32 * half));
    __m256i low = _mm256_and_si256(quad < 4 ? packed : _mm256_srli_epi16(packed, 4), _mm256_set1_epi8(15));
    if (bits == 4) return low;
    if (bits == 6) {
        __m256i high = _mm256_loadu_si256((const __m256i *)(tile + 256 + 64 * (quad / 4) + 32 * half));
        int left = 4 - 2 * (quad % 4);
        __m256i upper = left > 0 ? _mm256_slli_epi16(high, left) : _mm256_srli_epi16(high, -left);
        return _mm256_or_si256(low, _mm256_and_si256(upper, _mm256_set1_epi8(48)));
    }
    int32_t fifth;
    memcpy(&fifth, tile + 256 + 8 * quad + 4 * half, sizeof fifth);
    __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    __m256i place = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(fifth), place), bit);
    return _mm256_or_si256(low, _mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), _mm256_set1_epi8(16)));
}

/* Adds products to the integer sums of eight rows of W with each of `rows` rows of x, in 4, 5 or 6 bits. Lanes of 16 bits
 * hold 8, 4 and 2 quads: at most 8 * 2 * 15 * 127, 4 * 2 * 31 * 127 and 2 * 2 * 63 * 127. */
PART void add_words(const uint8_t *tile, int half, int part, const rounded *x, int bits, int rows,
                    __m256i sums[]) {
    int span = bits == 4 ? 8 : bits == 5 ? 4 : 2, first = part * 4, end = bits == 6 ? first + 4 : 8;
#pragma GCC unroll 4
    for (int begin = first; begin < end; begin += span) {
        __m256i words[SOME_ROWS];
#pragma GCC unroll 8
        for (int quad = begin; quad < begin + span; quad++) {
            __m256i codes = quad256(tile, half, quad, bits);
#pragma GCC unroll 4
            for (int row = 0; row < rows; row++) {
                __m256i products = _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four_codes(x + row, quad)));
                words[row] = quad == begin ? products : _mm256_add_epi16(words[row], products);
            }
        }
#pragma GCC unroll 4
        for (int row = 0; row < rows; row++)
            sums[row] = _mm256_add_epi32(sums[row], _mm256_madd_epi16(words[row], _mm256_set1_epi16(1)));
    }
}

/* The same in 8 bits, where two products overflow 16 bits. */
PART void add_bytes(const uint8_t *tile, int half, const rounded *x, int rows, __m256i sums[]) {
    __m256i pairs[SOME_ROWS][2];
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++) pairs[row][0] = pairs[row][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int quad = 0; quad < GROUP / 4; quad++)
#pragma GCC unroll 2
        for (int four = 0; four < 2; four++) {
            const uint8_t *at = tile + 64 * quad + 32 * half + 16 * four;
            __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)at));
#pragma GCC unroll 4
            for (int row = 0; row < rows; row++) {
                __m256i values = _mm256_cvtepi8_epi16(_mm_set1_epi32(four_codes(x + row, quad)));
                pairs[row][four] = _mm256_add_epi32(pairs[row][four], _mm256_madd_epi16(codes, values));
            }
        }
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++) {
        __m256i joined = _mm256_hadd_epi32(pairs[row][0], pairs[row][1]);
        sums[row] = _mm256_add_epi32(sums[row], _mm256_permute4x64_epi64(joined, 0xd8));
    }
}

PART __m256 eight_halves(const uint8_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }

/* Eight of the sixteen rows of W at a time with `rows` rows of x. */
PART void multiply(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int bits, int minimums, int rows,
                   float out[][TILE_ROWS]) {
    __m256 sums[2][SOME_ROWS];
    for (int row = 0; row < rows; row++) sums[0][row] = sums[1][row] = _mm256_setzero_ps();
    for (int64_t group = 0; group < groups; group++, x += step, w += group_bytes(bits, minimums))
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const uint8_t *factors = w + code_bytes(bits) + FACTOR_BYTES / 2 * half;
#pragma GCC unroll 2
            for (int part = 0; part < parts_of(bits); part++, factors += FACTOR_BYTES) {
                __m256i codes[SOME_ROWS];
#pragma GCC unroll 4
                for (int row = 0; row < rows; row++)
                    codes[row] = _mm256_set1_epi32(offset_of(x + row, bits, part));
                if (bits == 8)
                    add_bytes(w, half, x, rows, codes);
                else
                    add_words(w, half, part, x, bits, rows, codes);
                __m256 scales = eight_halves(factors);
#pragma GCC unroll 4
                for (int row = 0; row < rows; row++) {
                    __m256 scaled = _mm256_mul_ps(scales, _mm256_set1_ps(x[row].scales[part]));
                    sums[half][row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes[row]), scaled, sums[half][row]);
                }
            }
            if (!minimums) continue;
            __m256 lowest = eight_halves(factors);
#pragma GCC unroll 4
            for (int row = 0; row < rows; row++)
                sums[half][row] = _mm256_fmadd_ps(lowest, _mm256_set1_ps(x[row].sum), sums[half][row]);
        }
    for (int row = 0; row < rows; row++)
        for (int half = 0; half < 2; half++) _mm256_storeu_ps(out[row] + 8 * half, sums[half][row]);
}

FOR_EACH_KIND(DEFINE_MULTIPLY)

static int is_supported(void) { return 1; }

const instruction_set AVX2 = {"avx2", is_supported, round_group_avx2, MOST_OF_SET, {FOR_EACH_KIND(MULTIPLY)}};
#endif
