// float32 from and to the three input types. bfloat16 rounds to nearest even; NaN stays NaN.
#pragma once
#include "args.hpp"
#include "simd.hpp"

namespace {

using scfast::kBfloat16;
using scfast::kFloat16;
using scfast::kFloat32;

// _Float16 where C++ has it: on AArch64 only from GCC 13, which before calls it __fp16.
#if defined(__aarch64__)
using Half = __fp16;
#else
using Half = _Float16;
#endif

SCFAST_INLINE float bfloat16_to_float(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

SCFAST_INLINE uint16_t float_to_bfloat16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

SCFAST_INLINE size_t size_of(int dtype) { return dtype == kFloat32 ? 4 : 2; }

// Rows of one head lie a whole token apart, each on a page of its own where there are many heads: the hardware does
// not see them coming. How far ahead a loop over rows asks for them.
constexpr int kRowsAhead = 12;

SCFAST_INLINE void prefetch_row(const void* row, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)row + i);
}

// n numbers to float32.
static void to_float(const void* from, int dtype, int n, float* to) {
  if (dtype == kFloat32) {
    memcpy(to, from, 4 * (size_t)n);
  } else if (dtype == kBfloat16) {
    const uint16_t* x = (const uint16_t*)from;
    for (int i = 0; i < n; i++) to[i] = bfloat16_to_float(x[i]);
  } else {
    const uint16_t* x = (const uint16_t*)from;
    int i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16) storeu(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(x + i))));
#elif defined(__F16C__)
    for (; i + 8 <= n; i += 8) storeu(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(x + i))));
#endif
    for (; i < n; i++) {
      Half half;
      memcpy(&half, x + i, 2);
      to[i] = (float)half;
    }
  }
}

// n numbers times a factor, from float32 to the type of the output.
static void from_float(const float* from, float factor, int n, int dtype, void* to) {
  if (dtype == kFloat32) {
    float* x = (float*)to;
    for (int i = 0; i < n; i++) x[i] = from[i] * factor;
  } else if (dtype == kBfloat16) {
    uint16_t* x = (uint16_t*)to;
    for (int i = 0; i < n; i++) x[i] = float_to_bfloat16(from[i] * factor);
  } else {
    uint16_t* x = (uint16_t*)to;
    for (int i = 0; i < n; i++) {
      const Half half = (Half)(from[i] * factor);
      memcpy(x + i, &half, 2);
    }
  }
}

}  // namespace
