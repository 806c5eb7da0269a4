// One vector of the instruction set that this file is compiled for, and what the kernels do with it.
// Everything has internal linkage: a function shared between instruction sets could be the wrong one at run time.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;  // float lanes of a vector
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(4 * W), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * W), may_alias));
typedef float vf_unaligned __attribute__((vector_size(4 * W), may_alias, aligned(4)));
typedef int32_t vi_unaligned __attribute__((vector_size(4 * W), may_alias, aligned(4)));

#define SCFAST_INLINE static inline __attribute__((always_inline))

SCFAST_INLINE vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
SCFAST_INLINE vf loadu(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
SCFAST_INLINE void store(float* p, vf x) { *reinterpret_cast<vf*>(p) = x; }
SCFAST_INLINE void storeu(float* p, vf x) { *reinterpret_cast<vf_unaligned*>(p) = x; }
SCFAST_INLINE vf splat(float x) { return x - vf{}; }
SCFAST_INLINE vi splat(int32_t x) { return x - vi{}; }

// The larger of two; b where either is NaN.
SCFAST_INLINE vf max(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// The smaller of two; b where either is NaN.
SCFAST_INLINE vf min(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#elif defined(__SSE2__)
  return _mm_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

SCFAST_INLINE vf select(vi mask, vf yes, vf no) { return mask ? yes : no; }

// Lane i of a comparison as bit i.
SCFAST_INLINE uint32_t bits(vi mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return (uint32_t)_mm256_movemask_ps((__m256)mask);
#elif defined(__SSE2__)
  return (uint32_t)_mm_movemask_ps((__m128)mask);
#else
  uint32_t found = 0;
  for (int i = 0; i < W; i++) found |= (uint32_t)(mask[i] & 1) << i;
  return found;
#endif
}

SCFAST_INLINE vf square_root(vf x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(x);
#else
  for (int i = 0; i < W; i++) x[i] = sqrtf(x[i]);
  return x;
#endif
}

// 2^x for x <= 0; 0 below 2^-126, NaN for NaN. Minimax polynomial of degree 5, exact at 0, error 1e-7.
SCFAST_INLINE vf exp2_negative(vf x) {
#if defined(__AVX512F__)
  const vf f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
#else
  const vf clamped = max(splat(-126.f), x);
  const vf magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const vf shifted = (clamped - 0.5f) + magic;
  const vf f = clamped - (shifted - magic);
#endif
  vf p = splat(1.86713017e-3f);
  p = p * f + 9.01702978e-3f;
  p = p * f + 5.57999127e-2f;
  p = p * f + 2.40164444e-1f;
  p = p * f + 6.93151295e-1f;
  p = p * f + 1.f;
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, x);  // times 2^floor(x); the fraction of -inf is 0
#else
  const vi exponent = (vi)shifted - (vi)magic + 127;
  return select(x < splat(-126.f), vf{}, p * (vf)(exponent << 23));
#endif
}

// log2 of x > 0 (normal numbers), relative error 2e-7.
SCFAST_INLINE vf log2_positive(vf x) {
  const vi bits = (vi)x;
  const vi shift = (bits - 0x3f3504f3) >> 23;  // the exponent, for a mantissa in [sqrt(1/2), sqrt(2))
  const vf m = (vf)(bits - (shift << 23));
  const vf s = (m - 1.f) / (m + 1.f);
  const vf s2 = s * s;
  const vf series = ((s2 * (2.f / 9) + 2.f / 7) * s2 + 2.f / 5) * s2 + 2.f / 3;
  return __builtin_convertvector(shift, vf) + 1.44269504f * (s * 2.f + s * s2 * series);
}

// tanh with relative error 3e-7: an odd polynomial near 0, 1 - 2 / (1 + e^2x) elsewhere.
SCFAST_INLINE vf tanh(vf x) {
  const vf magnitude = (vf)((vi)x & 0x7fffffff);
  const vf x2 = x * x;
  vf p = splat(-5.70498826e-3f);
  p = p * x2 + 2.0639088e-2f;
  p = p * x2 - 5.37397154e-2f;
  p = p * x2 + 1.33314416e-1f;
  p = p * x2 - 3.33332807e-1f;
  const vf near = x + x * x2 * p;
  const vf decay = exp2_negative(magnitude * -2.88539008f);  // e^-2|x|
  const vf far = (1.f - decay) / (1.f + decay);
  const vf signed_far = (vf)((vi)far | ((vi)x & (int32_t)0x80000000));
  return select(magnitude < splat(0.625f), near, signed_far);
}

// Lane i of the result is the sum of the lanes of rows[i].
SCFAST_INLINE vf sum_each(vf rows[W]) {
#if defined(__AVX512F__)
  vf four[4];
  for (int i = 0; i < 4; i++) {
    const vf* r = rows + 4 * i;
    const vf ab = _mm512_unpacklo_ps(r[0], r[1]) + _mm512_unpackhi_ps(r[0], r[1]);
    const vf cd = _mm512_unpacklo_ps(r[2], r[3]) + _mm512_unpackhi_ps(r[2], r[3]);
    four[i] = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
  }
  const vf low = _mm512_shuffle_f32x4(four[0], four[1], 0x88) + _mm512_shuffle_f32x4(four[0], four[1], 0xdd);
  const vf high = _mm512_shuffle_f32x4(four[2], four[3], 0x88) + _mm512_shuffle_f32x4(four[2], four[3], 0xdd);
  return _mm512_shuffle_f32x4(low, high, 0x88) + _mm512_shuffle_f32x4(low, high, 0xdd);
#elif defined(__AVX2__)
  vf four[2];
  for (int i = 0; i < 2; i++) {
    const vf* r = rows + 4 * i;
    const vf ab = _mm256_unpacklo_ps(r[0], r[1]) + _mm256_unpackhi_ps(r[0], r[1]);
    const vf cd = _mm256_unpacklo_ps(r[2], r[3]) + _mm256_unpackhi_ps(r[2], r[3]);
    four[i] = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
  }
  return _mm256_permute2f128_ps(four[0], four[1], 0x20) + _mm256_permute2f128_ps(four[0], four[1], 0x31);
#else
  vf sums;
  for (int i = 0; i < W; i++) sums[i] = (rows[i][0] + rows[i][1]) + (rows[i][2] + rows[i][3]);
  return sums;
#endif
}

}  // namespace
