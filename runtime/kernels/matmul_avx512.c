/* AVX-512 with VNNI, the dot products of bytes. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#include "instruction_set.h"
#include <string.h>
#include <immintrin.h>

#define PART static inline __attribute__((always_inline))

PART __m256 eight_halves(const uint8_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }

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

/* sums + (the integer sums of a group, less the offset of the codes) * scales. `halves`: of these sums */
PART __m256 add_group(__m256 sums, __m512i halves, const rounded *x, __m256 scales) {
    __m512i rows = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i wholes = _mm512_add_epi32(_mm512_unpacklo_epi64(halves, halves), _mm512_unpackhi_epi64(halves, halves));
    __m256i codes = _mm512_castsi512_si256(_mm512_permutexvar_epi32(rows, wholes));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(x->eight_sums))), _mm256_mul_ps(scales, _mm256_set1_ps(x->scales[0])), sums);
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
            for (int row = 0; row < rows; row++) codes[row] = _mm512_set1_epi32(-offset_sum(x + row * groups, bits, part));
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

/* One tile with one row of x. */
PART void decode(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums, float *out) {
    if (bits == 4)
        decode512(x, w, groups, minimums, out);
    else
        multiply16(x, w, groups, bits, minimums, 1, (float(*)[MOST_TILE_ROWS])out);
}

/* One tile with four rows of x; in 4 bits `pair` multiplies two tiles at once. */
PART void prefill(const rounded *x, const uint8_t *w, int64_t groups, int bits, int minimums,
                  float out[PREFILL_ROWS][MOST_TILE_ROWS]) {
    multiply16(x, w, groups, bits, minimums, PREFILL_ROWS, out);
}

/* Compiled for each number of rows. */
static void pair(const rounded *x, const uint8_t *w, int64_t groups, int64_t next, int minimums, int rows,
                 float out[][MOST_TILE_ROWS]) {
    if (rows == PAIR_ROWS)
        multiply4(x, w, groups, next, minimums, PAIR_ROWS, out);
    else if (rows == PREFILL_ROWS)
        multiply4(x, w, groups, next, minimums, PREFILL_ROWS, out);
    else
        multiply4(x, w, groups, next, minimums, 1, out);
}

FOR_EACH_KIND(DEFINE_DECODE)
DEFINE_PREFILL(5, 0) DEFINE_PREFILL(5, 1) DEFINE_PREFILL(6, 0) DEFINE_PREFILL(8, 0) DEFINE_PREFILL(8, 1)

static int is_supported(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

const instruction_set AVX512 = {
    "avx512", is_supported, round_group_avx2,
    {DECODE_ONLY(4, 0) DECODE_ONLY(4, 1) DECODE_AND_PREFILL(5, 0) DECODE_AND_PREFILL(5, 1) DECODE_AND_PREFILL(6, 0)
     DECODE_AND_PREFILL(8, 0) DECODE_AND_PREFILL(8, 1)}, pair};
#endif
