// The steps of rank_values that compile twice, plainly and for AVX-512 (F, BW, DQ, VL), with the same answers.
// Gathers are left out on purpose: loads one by one are as quick, and on patched processors quicker.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#ifdef SCFAST_X86
#include <immintrin.h>
#endif

#define SCFAST_INLINE inline __attribute__((always_inline))  // compiled for the instruction set of its caller
#define SCFAST_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

namespace scfast {
namespace {

constexpr int kRadixBits = 16;     // of an item for the gene's number; the key is two digits of the radix sort
constexpr int kNetworkBits = 12;   // and where a network sorts: its work grows faster than the cell
constexpr int kRadix = 256;
constexpr int kPad = 16;           // vectors may write past the last gene

struct Scratch {
  int32_t *columns, *kept;   // [longest row + kPad] the cell's genes with a count; those with a token
  float* counts;             // of columns
  double *factors, *values;  // reciprocals, of columns; of kept
  uint32_t *items, *other;   // key << bits | number in kept
  int64_t* seen;             // [n_columns] last cell with this column, where a row's columns do not rise
  double* sums;              // [n_slots] counts of genes of several columns, zero between cells
  int32_t* summed;           // [n_slots] slots with a sum
};

struct Genes {  // of one cell, with a count
  const int32_t* columns;
  const float* counts;
  int64_t n;  // -1: the cell must be refused
};

// ---- sorting ----------------------------------------------------------------------------------------------------

// One stable pass over a digit of the items; false: all of them share it, nothing moved. One half goes forwards into
// the fronts of the buckets, the other backwards into their ends: a load of a bucket's place that waits for the store
// before it then has another chain to overlap with.
inline bool radix_pass(const uint32_t* from, uint32_t* to, int64_t n, int shift, const uint32_t* even,
                       const uint32_t* odd) {
  constexpr uint32_t digit = kRadix - 1;
  uint32_t front[kRadix], end[kRadix], sum = 0;
  if (even[from[0] >> shift & digit] + odd[from[0] >> shift & digit] == n) return false;
  for (int d = 0; d < kRadix; ++d) {
    front[d] = sum;
    sum += even[d] + odd[d];
    end[d] = sum;
  }
  const uint32_t *first = from, *last = from + n;
  while (last - first >= 2) {
    const uint32_t a = *first++, b = *--last;
    to[front[a >> shift & digit]++] = a;
    to[--end[b >> shift & digit]] = b;
  }
  if (first != last) to[front[*first >> shift & digit]] = *first;
  return true;
}

// The n items by their keys, stably.
__attribute__((noinline)) void radix_sort(Scratch& s, int64_t n) {
  const uint32_t* items = s.items;
  uint32_t counts[4][kRadix] = {};  // of each digit in even and odd places, for the same reason
  for (int64_t i = 0; i + 1 < n; i += 2) {
    const uint32_t a = items[i] >> kRadixBits, b = items[i + 1] >> kRadixBits;
    ++counts[0][a & (kRadix - 1)];
    ++counts[1][b & (kRadix - 1)];
    ++counts[2][a >> 8];
    ++counts[3][b >> 8];
  }
  if (n % 2) {
    ++counts[0][items[n - 1] >> kRadixBits & (kRadix - 1)];
    ++counts[2][items[n - 1] >> (kRadixBits + 8)];
  }
  if (radix_pass(s.items, s.other, n, kRadixBits, counts[0], counts[1])) std::swap(s.items, s.other);
  if (radix_pass(s.items, s.other, n, kRadixBits + 8, counts[2], counts[3])) std::swap(s.items, s.other);
}

// ---- the steps that exist twice -------------------------------------------------------------------------------

inline uint32_t upper_half(double value) {  // of numbers from 0: orders as they do
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint32_t>(bits >> 32);
}

// Leading bits of values to items: a key that rises as values fall, then the gene's number in `bits` bits.
SCFAST_INLINE void make_items(uint32_t* items, int64_t n, int bits) {
  int32_t low = INT32_MAX, high = 0;
  for (int64_t i = 0; i < n; ++i) {
    low = std::min(low, static_cast<int32_t>(items[i]));
    high = std::max(high, static_cast<int32_t>(items[i]));
  }
  int shift = 0;
  while (static_cast<int64_t>(high - low) >> shift >> (32 - bits)) ++shift;
  for (int64_t i = 0; i < n; ++i)
    items[i] = (static_cast<uint32_t>(high) - items[i]) >> shift << bits | static_cast<uint32_t>(i);
}

struct Portable {
  // Columns, values and leading bits of the genes with a token; how many they are. The reciprocal of a factor is -1
  // where there is none.
  static int64_t keep(const Genes& genes, float reciprocal, float target, const double* reciprocals, Scratch& s) {
    int64_t kept = 0;
    for (int64_t p = 0; p < genes.n; ++p) {
      const double factor = reciprocals[genes.columns[p]];
      s.kept[kept] = genes.columns[p];
      s.values[kept] = static_cast<double>(genes.counts[p] * reciprocal * target) * factor;
      s.items[kept] = upper_half(s.values[kept]);
      kept += factor >= 0;
    }
    return kept;
  }
  // Places whose key the next place has too.
  static int64_t find_ties(const uint32_t* items, int64_t n, uint32_t gene, uint32_t* places) {
    int64_t found = 0;
    for (int64_t i = 0; i < n; ++i) {
      places[found] = static_cast<uint32_t>(i);
      found += (items[i] ^ items[i + 1]) <= gene;
    }
    return found;
  }
  // Items of the n kept genes in order of their keys; the bits of an item that hold the gene's number.
  static int order(Scratch& s, int64_t n) {
    make_items(s.items, n, kRadixBits);
    radix_sort(s, n);
    return kRadixBits;
  }
};

#ifdef SCFAST_X86
struct Avx512 {
  SCFAST_AVX512 static int64_t keep(const Genes& genes, float reciprocal, float target, const double* reciprocals,
                                    Scratch& s) {
    const __m512 by = _mm512_set1_ps(reciprocal), to = _mm512_set1_ps(target);
    const __m512d zero = _mm512_setzero_pd();
    const __m512i upper = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    for (int64_t p = 0; p < genes.n; ++p) s.factors[p] = reciprocals[genes.columns[p]];
    for (int64_t p = genes.n; p < genes.n + kPad; ++p) s.factors[p] = -1;
    int64_t kept = 0;
    for (int64_t p = 0; p < genes.n; p += 16) {
      const __mmask16 in = static_cast<__mmask16>(genes.n - p >= 16 ? 0xffff : (1 << (genes.n - p)) - 1);
      const __m512i columns = _mm512_maskz_loadu_epi32(in, genes.columns + p);
      const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(in, genes.counts + p), by), to);
      const __m512d first = _mm512_loadu_pd(s.factors + p), last = _mm512_loadu_pd(s.factors + p + 8);
      const __m512d a = _mm512_mul_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(scaled)), first);
      const __m512d b = _mm512_mul_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(scaled, 1)), last);
      const __mmask8 keep_a = _mm512_cmp_pd_mask(first, zero, _CMP_GE_OQ);
      const __mmask8 keep_b = _mm512_cmp_pd_mask(last, zero, _CMP_GE_OQ);
      const __mmask16 keep = static_cast<__mmask16>(keep_a | keep_b << 8);
      const __m512i bits = _mm512_permutex2var_epi32(_mm512_castpd_si512(a), upper, _mm512_castpd_si512(b));
      _mm512_storeu_si512(s.kept + kept, _mm512_maskz_compress_epi32(keep, columns));
      _mm512_storeu_si512(s.items + kept, _mm512_maskz_compress_epi32(keep, bits));
      _mm512_storeu_pd(s.values + kept, _mm512_maskz_compress_pd(keep_a, a));
      _mm512_storeu_pd(s.values + kept + __builtin_popcount(keep_a), _mm512_maskz_compress_pd(keep_b, b));
      kept += __builtin_popcount(keep);
    }
    return kept;
  }
  SCFAST_AVX512 static int64_t find_ties(const uint32_t* items, int64_t n, uint32_t gene, uint32_t* places) {
    __m512i place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    int64_t found = 0;
    for (int64_t i = 0; i < n; i += 16) {
      const __m512i differ = _mm512_xor_si512(_mm512_loadu_si512(items + i), _mm512_loadu_si512(items + i + 1));
      const uint32_t in = n - i >= 16 ? 0xffff : (1u << (n - i)) - 1;
      const __mmask16 tie =
          static_cast<__mmask16>(in & _mm512_cmple_epu32_mask(differ, _mm512_set1_epi32(static_cast<int>(gene))));
      _mm512_storeu_si512(places + found, _mm512_maskz_compress_epi32(tie, place));
      found += __builtin_popcount(tie);
      place = _mm512_add_epi32(place, _mm512_set1_epi32(16));
    }
    return found;
  }
  SCFAST_AVX512 static int order(Scratch& s, int64_t n) {
    const int bits = n <= 1 << kNetworkBits ? kNetworkBits : kRadixBits;
    make_items(s.items, n, bits);
    if (bits == kRadixBits) {
      radix_sort(s, n);
    } else {
      _mm512_storeu_si512(s.items + n, _mm512_set1_epi32(-1));
      network(s.items, (n + 15) / 16);
    }
    return bits;
  }
  // Compares lanes with their partners: the lanes in `upper` keep the larger.
  SCFAST_AVX512 static __m512i exchange(__m512i v, __m512i partners, int upper) {
    return _mm512_mask_max_epu32(_mm512_min_epu32(v, partners), static_cast<__mmask16>(upper), v, partners);
  }
  SCFAST_AVX512 static __m512i by_1(__m512i v) { return exchange(v, _mm512_shuffle_epi32(v, _MM_PERM_CDAB), 0xaaaa); }
  SCFAST_AVX512 static __m512i by_2(__m512i v) { return exchange(v, _mm512_shuffle_epi32(v, _MM_PERM_BADC), 0xcccc); }
  SCFAST_AVX512 static __m512i by_4(__m512i v) { return exchange(v, _mm512_shuffle_i32x4(v, v, 0xb1), 0xf0f0); }
  SCFAST_AVX512 static __m512i by_8(__m512i v) { return exchange(v, _mm512_shuffle_i32x4(v, v, 0x4e), 0xff00); }
  SCFAST_AVX512 static __m512i reversed_4(__m512i v) { return _mm512_shuffle_epi32(v, _MM_PERM_ABCD); }
  SCFAST_AVX512 static __m512i reversed_8(__m512i v) { return reversed_4(_mm512_shuffle_i32x4(v, v, 0xb1)); }
  SCFAST_AVX512 static __m512i reversed(__m512i v) { return reversed_4(_mm512_shuffle_i32x4(v, v, 0x1b)); }
  SCFAST_AVX512 static __m512i sorted(__m512i v) {
    v = by_1(exchange(by_1(v), reversed_4(by_1(v)), 0xcccc));
    v = by_1(by_2(exchange(v, reversed_8(v), 0xf0f0)));
    return by_1(by_2(by_4(exchange(v, reversed(v), 0xff00))));
  }
  SCFAST_AVX512 static __m512i merged(__m512i v) { return by_1(by_2(by_4(by_8(v)))); }
  // Batcher's bitonic network, every comparison with the smaller item first. What would follow the last vector is
  // larger than all, so that comparisons with it change nothing and are left out.
  SCFAST_AVX512 static void network(uint32_t* items, int64_t vectors) {
    __m512i_u* x = reinterpret_cast<__m512i_u*>(items);
    for (int64_t i = 0; i < vectors; ++i) x[i] = sorted(x[i]);
    for (int64_t size = 2; size < 2 * vectors; size *= 2) {
      for (int64_t block = 0; block < vectors; block += size) {
        for (int64_t j = std::min(block + size, vectors) - 1, i = 2 * block + size - 1 - j; i < j; ++i, --j) {
          const __m512i a = x[i], b = reversed(x[j]);
          x[i] = _mm512_min_epu32(a, b);
          x[j] = reversed(_mm512_max_epu32(a, b));
        }
      }
      for (int64_t stride = size / 4; stride > 1; stride /= 2) {
        for (int64_t block = 0; block < vectors; block += 2 * stride) {
          for (int64_t i = block, j = block + stride; i < block + stride && j < vectors; ++i, ++j) {
            const __m512i a = x[i], b = x[j];
            x[i] = _mm512_min_epu32(a, b);
            x[j] = _mm512_max_epu32(a, b);
          }
        }
      }
      for (int64_t i = 0; i < vectors; i += 2) {
        __m512i a = x[i];
        if (i + 1 < vectors) {
          __m512i b = x[i + 1];
          if (size > 2) {
            const __m512i smaller = _mm512_min_epu32(a, b);
            b = _mm512_max_epu32(a, b);
            a = smaller;
          }
          x[i + 1] = merged(b);
        }
        x[i] = merged(a);
      }
    }
  }
};
#endif

}  // namespace
}  // namespace scfast
