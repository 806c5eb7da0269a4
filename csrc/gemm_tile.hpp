// The two register tiles under the strip loop. Query rows lie in the lanes of NV vectors, keys are broadcast:
// keys need no packing, softmax is vertical, and the values' product reads its weights from one cache line.
#pragma once
#include "simd.hpp"

namespace {

// How two elements meet: float32, or pairs of bfloat16 in one 32-bit word.
struct Float32 {
  typedef float T;
  static constexpr int kPack = 1;  // inputs per word
  typedef vf V;
  SCFAST_INLINE V get(const T* p) { return load(p); }
  SCFAST_INLINE V all(T x) { return splat(x); }
  SCFAST_INLINE vf dot(vf acc, V a, V b) { return a * b + acc; }
};

#if defined(SCFAST_BF16)
struct Bfloat16Pair {
  typedef uint32_t T;
  static constexpr int kPack = 2;
  typedef vi V;
  SCFAST_INLINE V get(const T* p) { return *reinterpret_cast<const vi*>(p); }
  SCFAST_INLINE V all(T x) { return splat((int32_t)x); }
  SCFAST_INLINE vf dot(vf acc, V a, V b) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#else  // the same products in two steps, so that the layout can be tested on any AVX-512 machine
    const vf odd = (vf)(a & (int32_t)0xffff0000) * (vf)(b & (int32_t)0xffff0000);
    return acc + odd + (vf)(a << 16) * (vf)(b << 16);
#endif
  }
};
#endif

// Keys of one tile: the accumulators fill the register file.
#if defined(__AVX512F__)
constexpr int KT = 8;
#else
constexpr int KT = 4;
#endif

constexpr int kCacheLine = 64;

// scores[key][lane] = sum_d q[d][lane] * k[key][d]; `largest` follows. Only the first `valid` keys are written.
// Asks for the next tile of keys and, into the second-level cache, for `depth` lines at `soon`.
template <class Dot, int NV>
SCFAST_INLINE void score_tile(const typename Dot::T* q, const typename Dot::T* k, int ldk, int depth, float factor,
                              int valid, float* scores, vf* largest, const char* soon) {
  vf acc[KT][NV];
  for (int key = 0; key < KT; key++)
    for (int v = 0; v < NV; v++) acc[key][v] = vf{};
  const char* ahead = (const char*)(k + KT * ldk);  // the next tile: a strip's keys stream past once
  for (int d = 0; d < depth; d++) {
    __builtin_prefetch(ahead + (size_t)d * KT * sizeof(*k));
    __builtin_prefetch(soon + (size_t)d * kCacheLine, 0, 2);
    typename Dot::V row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) row[v] = Dot::get(q + (d * NV + v) * W);
#pragma GCC unroll 8
    for (int key = 0; key < KT; key++) {
      const typename Dot::V b = Dot::all(k[key * ldk + d]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) acc[key][v] = Dot::dot(acc[key][v], row[v], b);
    }
  }
  const vf f = splat(factor);
#pragma GCC unroll 8
  for (int key = 0; key < KT; key++) {
    if (key >= valid) break;
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) {
      if (Dot::kPack > 1) acc[key][v] = acc[key][v] * f;
      store(scores + (key * NV + v) * W, acc[key][v]);
      largest[v] = max(largest[v], acc[key][v]);
    }
  }
}

constexpr int kValuesAhead = 8;  // keys; measured: 0 and 64 are slower

// out[row][0 : NC*W] = decay[row] * out + sum_key p[key][row] * v[key][:], for RT rows; without decay, added to out.
// kByRow: p is [row][key].
template <class Dot, int RT, int NC, bool kByRow>
SCFAST_INLINE void value_tile(const typename Dot::T* p, int ldp, const typename Dot::T* v, int ldv, int keys,
                              const float* decay, bool first, float* out, int ldo) {
  vf acc[RT][NC];
#pragma GCC unroll 8
  for (int r = 0; r < RT; r++)
#pragma GCC unroll 4
    for (int c = 0; c < NC; c++) {
      acc[r][c] = first ? vf{} : load(out + r * ldo + c * W);
      if (decay) acc[r][c] = acc[r][c] * decay[r];
    }
  for (int key = 0; key < keys; key++) {
    typename Dot::V value[NC];
#pragma GCC unroll 4
    for (int c = 0; c < NC; c++) {
      __builtin_prefetch(v + (size_t)(key + kValuesAhead) * ldv + c * W);
      value[c] = Dot::get(v + (size_t)key * ldv + c * W);
    }
#pragma GCC unroll 8
    for (int r = 0; r < RT; r++) {
      const typename Dot::V weight = Dot::all(kByRow ? p[r * ldp + key] : p[key * ldp + r]);
#pragma GCC unroll 4
      for (int c = 0; c < NC; c++) acc[r][c] = Dot::dot(acc[r][c], weight, value[c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < RT; r++)
#pragma GCC unroll 4
    for (int c = 0; c < NC; c++) store(out + r * ldo + c * W, acc[r][c]);
}

#if defined(__AVX512F__)
constexpr int kValueColumns = 4;
#else
constexpr int kValueColumns = 2;
#endif

// `room`: rows that may be written, `rows` of which matter.
template <class Dot, int NC, bool kByRow>
SCFAST_INLINE void value_columns(const typename Dot::T* p, int ldp, int room, int rows, const typename Dot::T* v,
                                 int ldv, int keys, const float* decay, bool first, float* out, int ldo) {
  const int step = kByRow ? ldp : 1;  // of p from row to row
  int r = 0;
#define SCFAST_ROWS(RT)                                                                                               \
  value_tile<Dot, RT, NC, kByRow>(p + r * step, ldp, v, ldv, keys, decay ? decay + r : nullptr, first, out + r * ldo, \
                                  ldo)
  for (; r + 6 <= room && r < rows; r += 6) SCFAST_ROWS(6);
  for (; r + 4 <= room && r < rows; r += 4) SCFAST_ROWS(4);
  for (; r + 2 <= room && r < rows; r += 2) SCFAST_ROWS(2);
  for (; r < rows; r++) SCFAST_ROWS(1);
#undef SCFAST_ROWS
}

template <class Dot, bool kByRow>
SCFAST_INLINE void value_product(const typename Dot::T* p, int ldp, int room, int rows, const typename Dot::T* v,
                                 int columns, int keys, const float* decay, bool first, float* out) {
  int c = 0;
  for (; c + kValueColumns * W <= columns; c += kValueColumns * W)
    value_columns<Dot, kValueColumns, kByRow>(p, ldp, room, rows, v + c, columns, keys, decay, first, out + c, columns);
  for (; c + 2 * W <= columns; c += 2 * W)
    value_columns<Dot, 2, kByRow>(p, ldp, room, rows, v + c, columns, keys, decay, first, out + c, columns);
  for (; c < columns; c += W)
    value_columns<Dot, 1, kByRow>(p, ldp, room, rows, v + c, columns, keys, decay, first, out + c, columns);
}

// out[rows][columns] as in value_tile, for a block of keys; `columns` is a multiple of W.
template <class Dot>
static void value_block(const typename Dot::T* p, int lanes, int rows, const typename Dot::T* v, int columns, int keys,
                        const float* decay, bool first, float* out) {
  value_product<Dot, false>(p, lanes, lanes, rows, v, columns, keys, decay, first, out);
}

// out[key][columns] += sum_row p[key][row] * x[row][columns].
template <class Dot>
static void product_by_row(const typename Dot::T* p, int lanes, int keys, const typename Dot::T* x, int columns,
                           int rows, float* out) {
  value_product<Dot, true>(p, lanes, keys, keys, x, columns, rows, nullptr, false, out);
}

}  // namespace
