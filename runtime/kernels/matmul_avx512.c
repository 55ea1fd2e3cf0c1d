/* AVX-512 with VNNI, the dot products of bytes. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#include "instruction_set.h"
#include <string.h>
#include <immintrin.h>

#define MOST_OF_SET 8

PART __m512 halves512(const uint8_t *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }

/* Codes of sixteen rows, columns 4 * quad to 4 * quad + 3. */
PART __m512i quad512(const uint8_t *tile, int quad, int bits) {
    if (bits == 8) return _mm512_loadu_si512(tile + 64 * quad);
    __m512i packed = _mm512_loadu_si512(tile + 64 * (quad % 4)), nibble = _mm512_set1_epi8(15);
    __m512i low = _mm512_and_si512(quad < 4 ? packed : _mm512_srli_epi16(packed, 4), nibble);
    if (bits == 4) return low;
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

/* Sixteen rows of W with `rows` rows of x. */
PART void multiply(const rounded *x, int64_t step, const uint8_t *w, int64_t groups, int bits, int minimums, int rows,
                   float out[][TILE_ROWS]) {
    __m512 sums[MOST_OF_SET];
    int quads = GROUP / 4 / parts_of(bits);
    for (int row = 0; row < rows; row++) sums[row] = _mm512_setzero_ps();
    for (int64_t group = 0; group < groups; group++, x += step, w += group_bytes(bits, minimums)) {
        const uint8_t *factors = w + code_bytes(bits);
#pragma GCC unroll 2
        for (int part = 0; part < parts_of(bits); part++, factors += FACTOR_BYTES) {
            __m512i codes[MOST_OF_SET];
            __m512 scales = halves512(factors);
            for (int row = 0; row < rows; row++) codes[row] = _mm512_set1_epi32(offset_of(x + row, bits, part));
#pragma GCC unroll 8
            for (int quad = part * quads; quad < (part + 1) * quads; quad++) {
                __m512i columns = quad512(w, quad, bits);
#pragma GCC unroll 8
                for (int row = 0; row < rows; row++) {
                    __m512i four = _mm512_set1_epi32(four_codes(x + row, quad));
                    codes[row] = _mm512_dpbusd_epi32(codes[row], columns, four);
                }
            }
#pragma GCC unroll 8
            for (int row = 0; row < rows; row++) {
                __m512 scaled = _mm512_mul_ps(scales, _mm512_set1_ps(x[row].scales[part]));
                sums[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes[row]), scaled, sums[row]);
            }
        }
        if (!minimums) continue;
        __m512 lowest = halves512(factors);
        for (int row = 0; row < rows; row++)
            sums[row] = _mm512_fmadd_ps(lowest, _mm512_set1_ps(x[row].sum), sums[row]);
    }
    for (int row = 0; row < rows; row++) _mm512_storeu_ps(out[row], sums[row]);
}

FOR_EACH_KIND(DEFINE_MULTIPLY)

static int is_supported(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

const instruction_set AVX512 = {"avx512", is_supported, round_group_avx2, MOST_OF_SET, {FOR_EACH_KIND(MULTIPLY)}};
#endif
