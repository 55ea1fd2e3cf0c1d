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
typedef float32x4_t quad; /* four neighbours, each of which is multiplied with a whole register */

static inline floats load(const float *at) { return vld1q_f32(at); }
static inline void store(float *at, floats value) { vst1q_f32(at, value); }
static inline floats same(float value) { return vdupq_n_f32(value); }
static inline floats larger(floats a, floats b) { return vmaxq_f32(a, b); }
static inline floats fused(floats a, floats b, floats sum) { return vfmaq_f32(sum, a, b); } /* a * b + sum */
static inline integers nearest(floats value) { return vcvtnq_s32_f32(value); } /* ties to even */
static inline quad load_quad(const float *at) { return vld1q_f32(at); }
#define FUSED_WITH(value, four, index, sum) vfmaq_laneq_f32(sum, value, four, index)

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

#else
#error "built for aarch64, or for x86-64 with -march=x86-64-v3"
#endif

enum { EIGHT = 8 / LANES }; /* registers that hold eight floats */
#endif
