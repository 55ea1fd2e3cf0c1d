/* Eight floats at a time on both kinds of CPU: two registers of NEON, or one of AVX2.
 *
 * Both do the same operations in the same order, so that results are equal to the bit. Contraction to fused
 * multiply-adds is off: one stands where `fused` is called.
 */
#ifndef MERINO_LANES_H
#define MERINO_LANES_H
#include <stdint.h>

#if defined(__aarch64__)
#include <arm_neon.h>

enum { LANES = 4 };
typedef float32x4_t floats;
typedef int32x4_t integers;
typedef float32x4_t quad; /* four neighbors, each of which is multiplied with a whole register */

static inline floats load(const float *at) { return vld1q_f32(at); }
static inline void store(float *at, floats value) { vst1q_f32(at, value); }
static inline floats same(float value) { return vdupq_n_f32(value); }
static inline floats larger(floats a, floats b) { return vmaxq_f32(a, b); }
static inline floats fused(floats a, floats b, floats sum) { return vfmaq_f32(sum, a, b); } /* a * b + sum */
static inline integers nearest(floats value) { return vcvtnq_s32_f32(value); } /* ties to even */
static inline quad load_quad(const float *at) { return vld1q_f32(at); }
#define FUSED_WITH(value, four, index, sum) vfmaq_laneq_f32(sum, value, four, index)

static inline void load_eight(const float *at, floats out[2]) { out[0] = load(at), out[1] = load(at + 4); }
static inline void load_codes(const int8_t *at, floats out[2]) {
    int16x8_t wide = vmovl_s8(vld1_s8(at));
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), out[1] = vcvtq_f32_s32(vmovl_high_s16(wide));
}
static inline float32x4_t sums_of_halves(const floats x[4][2], int half) {
    return vpaddq_f32(vpaddq_f32(x[0][half], x[1][half]), vpaddq_f32(x[2][half], x[3][half]));
}
/* out [4] = the sum of each of four eights. */
static inline void store_sums(const floats x[4][2], float *out) {
    vst1q_f32(out, vaddq_f32(sums_of_halves(x, 0), sums_of_halves(x, 1)));
}

#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

enum { LANES = 8 };
typedef __m256 floats;
typedef int32_t integers __attribute__((vector_size(32)));
typedef const float *quad;

static inline floats load(const float *at) { return _mm256_loadu_ps(at); }
static inline void store(float *at, floats value) { _mm256_storeu_ps(at, value); }
static inline floats same(float value) { return _mm256_set1_ps(value); }
static inline floats larger(floats a, floats b) { return _mm256_max_ps(a, b); }
static inline floats fused(floats a, floats b, floats sum) { return _mm256_fmadd_ps(a, b, sum); }
static inline integers nearest(floats value) { return (integers)_mm256_cvtps_epi32(value); }
static inline quad load_quad(const float *at) { return at; }
#define FUSED_WITH(value, four, index, sum) _mm256_fmadd_ps(value, _mm256_broadcast_ss((four) + (index)), sum)

static inline void load_eight(const float *at, floats out[1]) { out[0] = load(at); }
static inline void load_codes(const int8_t *at, floats out[1]) {
    out[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}
static inline void store_sums(const floats x[4][1], float *out) {
    __m256 both = _mm256_hadd_ps(_mm256_hadd_ps(x[0][0], x[1][0]), _mm256_hadd_ps(x[2][0], x[3][0]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
}

#else
#error "built for aarch64, or for x86-64 with -march=x86-64-v3"
#endif

enum { EIGHT = 8 / LANES }; /* registers that hold eight floats */
#endif
