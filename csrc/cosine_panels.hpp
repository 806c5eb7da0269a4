// Rows as panels and the register tile over them: what the loop over pairs is made of.
#pragma once
#include "problem.hpp"

namespace {

using scfast::CosineArgs;

constexpr int kTileVectors = 3;                  // with KT rows they fill the registers: 24 accumulators of 32
constexpr int kTileColumns = kTileVectors * W;   // rows of y of a tile
constexpr int kDepthBlock = 96;                 // words: that much of a panel of columns, 18 KB, stays in L1

// What a job does while a product runs, step by step of its depth: nothing.
struct NoStep {
  inline __attribute__((always_inline)) void operator()(int) const {}
};

// c[row][column] (+)= sum_d a[d][row] * b[d][column]; the last block of the depth leaves similarities: times the
// factors (of bfloat16 only: float32 rows have length 1), within [-1, 1], NaN as it is. A sixth of what the processor
// can issue is left over: step(d) uses it.
template <class Dot, class Step>
SCFAST_INLINE void product(const typename Dot::T* a, const typename Dot::T* b, int depth, int next_panel,
                           const float* a_factor, const float* b_factor, bool first, bool last, float* c,
                           const Step& step) {
  vf acc[KT][kTileVectors];
  for (int r = 0; r < KT; r++)
    for (int v = 0; v < kTileVectors; v++) acc[r][v] = vf{};
  if (!first)
    for (int i = 0; i < KT * kTileVectors; i++) __builtin_prefetch(c + i * W, 1);
  for (int d = 0; d < depth; d++) {
    __builtin_prefetch(a + next_panel + d * KT);  // rows stream past; the columns' panel stays
    step(d);
    typename Dot::V column[kTileVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; v++) column[v] = Dot::get(b + (d * kTileVectors + v) * W);
#pragma GCC unroll 8
    for (int r = 0; r < KT; r++) {
      const typename Dot::V row = Dot::all(a[d * KT + r]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; v++) acc[r][v] = Dot::dot(acc[r][v], row, column[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < KT; r++)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; v++) {
      vf x = acc[r][v];
      float* to = c + (r * kTileVectors + v) * W;
      if (!first) x = x + load(to);
      if (last) {
        if (Dot::kPack > 1) x = x * (load(b_factor + v * W) * a_factor[r]);
        x = min(splat(1.f), max(splat(-1.f), x));
      }
      store(to, x);
    }
}

// to[column][0:4] = from[0:4][column], the bits as they are.
SCFAST_INLINE void turn(const void* const* from, int columns, int ld, void* to) {
  const float* const* x = (const float* const*)from;
  float* y = (float*)to;
  int c = 0;
#if defined(__SSE2__)
  for (; c + 4 <= columns; c += 4) {
    __m128 x0 = _mm_loadu_ps(x[0] + c), x1 = _mm_loadu_ps(x[1] + c), x2 = _mm_loadu_ps(x[2] + c),
           x3 = _mm_loadu_ps(x[3] + c);
    _MM_TRANSPOSE4_PS(x0, x1, x2, x3);
    _mm_store_ps(y + (size_t)(c + 0) * ld, x0);
    _mm_store_ps(y + (size_t)(c + 1) * ld, x1);
    _mm_store_ps(y + (size_t)(c + 2) * ld, x2);
    _mm_store_ps(y + (size_t)(c + 3) * ld, x3);
  }
#endif
  for (; c < columns; c++)
    for (int i = 0; i < 4; i++) memcpy(y + (size_t)c * ld + i, x[i] + c, 4);
}

// Squares are summed in float64: no length overflows, none vanishes.
SCFAST_INLINE double sum_of_squares(const float* x, int n) {
  constexpr int kSums = 2 * W;
  double sums[kSums] = {};
  int i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int lane = 0; lane < kSums; lane++) sums[lane] += (double)x[i + lane] * x[i + lane];
  for (int lane = 0; i < n; i++, lane++) sums[lane] += (double)x[i] * x[i];
  double total = 0;
  for (int lane = 0; lane < kSums; lane++) total += sums[lane];
  return total;
}

template <class Dot>
struct Panels {
  int dtype = 0, dim = 0, depth = 0;  // depth: words of a row
  float* unpacked = nullptr;          // [4][dim], rows of float32
  typename Dot::T* words = nullptr;   // [4][depth]

  void take(Scratch& scratch, const CosineArgs& a) {
    dtype = a.dtype, dim = a.dim, depth = (dim + Dot::kPack - 1) / Dot::kPack;
    unpacked = scratch.take<float>(dim);
    words = scratch.take<typename Dot::T>(4 * (size_t)depth);
  }

  // Panel [depth][lanes] of up to `lanes` rows from `first` on; lanes without a row are 0. Returns rows of zeros.
  template <int lanes>
  int64_t pack(const void* rows, int64_t stride, int64_t first, int64_t left, typename Dot::T* panel, float* factor) {
    const int n = left < lanes ? (int)left : lanes;
    int64_t zeros = 0;
    for (int lane = 0; lane < lanes; lane += 4) {
      const void* x[4];
      for (int i = 0; i < 4; i++) {
        typename Dot::T* to = words + (size_t)i * depth;
        x[i] = to;
        factor[lane + i] = 0.f;
        if (lane + i < n) {
          to_float((const char*)rows + (first + lane + i) * stride * (int64_t)size_of(dtype), dtype, dim, unpacked);
          const double squares = sum_of_squares(unpacked, dim);
          zeros += squares == 0;
          factor[lane + i] = scaled(squares, to);
        } else {
          memset(to, 0, sizeof(*to) * depth);
        }
      }
      turn(x, depth, lanes, panel + lane);
    }
    return zeros;
  }

  // The unpacked row divided by its length.
  float scaled(double squares, float* to) const {
    const double factor = squares > 0 ? 1 / sqrt(squares) : 0;
    if (!(squares < (double)INFINITY)) {
      for (int d = 0; d < dim; d++) to[d] = NAN;
    } else if (factor >= FLT_MIN && factor <= FLT_MAX) {
      const float f = (float)factor;
      for (int d = 0; d < dim; d++) to[d] = unpacked[d] * f;
    } else {
      for (int d = 0; d < dim; d++) to[d] = (float)(unpacked[d] * factor);
    }
    return 1.f;
  }

#if defined(SCFAST_BF16)
  // The row times a power of two, which is exact; what is left of 1 / length is returned.
  float scaled(double squares, uint32_t* to) const {
    if (!(squares < (double)INFINITY)) {
      memset(to, 0, sizeof(*to) * depth);
      return NAN;
    }
    int exponent = 0;
    const double length = frexp(sqrt(squares), &exponent);
    const double power = ldexp(1.0, -exponent);
    to[depth - 1] = 0;
    uint16_t* halves = (uint16_t*)to;
    for (int d = 0; d < dim; d++) halves[d] = float_to_bfloat16((float)(unpacked[d] * power));
    return squares > 0 ? (float)(1 / length) : 0.f;
  }
#endif
};

}  // namespace
