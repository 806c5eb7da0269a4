#include "rank_values.hpp"

#include <algorithm>
#include <cfloat>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#ifdef SCFAST_X86
#include <immintrin.h>
#endif

#define SCFAST_INLINE inline __attribute__((always_inline))  // compiled for the instruction set of its caller
#define SCFAST_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))

namespace scfast {
namespace {

constexpr int kCellsPerTask = 16;  // cells differ in length by 10 x, so threads draw small tasks
constexpr int kSmall = 48;         // below it two radix passes cost more than comparisons do
constexpr int kKeyBits = 16;       // of a value's leading bits: two passes over 256 buckets, few equal keys left
constexpr uint32_t kGene = (1u << kKeyBits) - 1;
constexpr int kRadix = 256;
constexpr int kPad = 16;           // vectors may write past the last gene

struct Scratch {
  int32_t *columns, *kept;   // [longest row + kPad] the cell's genes with a count; those with a token
  float* counts;             // of columns
  double* values;            // of kept
  uint32_t *items, *other;   // leading bits of the value << kKeyBits | number in kept
  int64_t* seen;             // [n_columns] last cell with this column, where a row's columns do not rise
  double* sums;              // [n_slots] counts of genes of several columns, zero between cells
  int32_t* summed;           // [n_slots] slots with a sum
  int32_t *tokens, *places;  // token_ids and columns of one task
};

struct Genes {  // of one cell, with a count
  const int32_t* columns;
  const float* counts;
  int64_t n;    // -1: the cell must be refused
  bool rising;  // columns rise
};

template <class Count>
constexpr Count largest() {  // what the first rounding, to float32, can hold
  return std::is_floating_point_v<Count> ? static_cast<Count>(FLT_MAX) : std::numeric_limits<Count>::max();
}

// ---- one row of the matrix ------------------------------------------------------------------------------------

template <class Index>
bool a_column_twice(const Index* indices, int64_t n, int64_t cell, int64_t* seen) {
  for (int64_t p = 0; p < n; ++p) {
    if (seen[indices[p]] == cell + 1) return true;
    seen[indices[p]] = cell + 1;
  }
  return false;
}

// Entries with a count, columns of one gene added up; those follow the others in order of their first column.
template <class Index, class Count>
int64_t collect(const RankInput& in, const Index* indices, const Count* data, int64_t n, const Scratch& s) {
  int64_t kept = 0, n_sums = 0;
  for (int64_t p = 0; p < n; ++p) {
    if (!(data[p] > Count(0))) continue;
    const int32_t slot = in.n_slots ? in.slots[indices[p]] : -1;
    if (slot < 0) {
      s.columns[kept] = static_cast<int32_t>(indices[p]);
      s.counts[kept++] = static_cast<float>(data[p]);
    } else {
      if (s.sums[slot] == 0) s.summed[n_sums++] = slot;
      s.sums[slot] += static_cast<double>(data[p]);
    }
  }
  for (int64_t i = 0; i < n_sums; ++i) {
    const int32_t slot = s.summed[i];
    s.columns[kept] = in.slot_columns[slot];
    s.counts[kept++] = static_cast<float>(s.sums[slot]);
    s.sums[slot] = 0;
  }
  return kept;
}

template <class Index, class Count>
SCFAST_INLINE Genes read_row(const RankInput& in, int64_t cell, const Scratch& s) {
  using Unsigned = std::make_unsigned_t<Index>;
  const int64_t n = in.indptr[cell + 1] - in.indptr[cell];
  const Index* indices = static_cast<const Index*>(in.indices) + in.indptr[cell];
  const Count* data = static_cast<const Count*>(in.data) + in.indptr[cell];
  const Unsigned n_columns = static_cast<Unsigned>(in.n_columns);
  int outside = 0, refused = 0, falls = 0, zeros = 0;  // apart, so that they vectorise
  for (int64_t p = 0; p < n; ++p) outside |= static_cast<Unsigned>(indices[p]) >= n_columns;
  for (int64_t p = 1; p < n; ++p) falls |= indices[p] <= indices[p - 1];
  for (int64_t p = 0; p < n; ++p) {
    refused |= (data[p] >= Count(0) ? 0 : 1) | (data[p] <= largest<Count>() ? 0 : 1);
    zeros |= data[p] > Count(0) ? 0 : 1;
  }
  const Genes none = {nullptr, nullptr, -1, false};
  if (outside | refused) return none;
  if (falls && a_column_twice(indices, n, cell, s.seen)) return none;
  Genes genes = {s.columns, s.counts, n, !falls && !in.n_slots};
  if constexpr (std::is_same_v<Index, int32_t> && std::is_same_v<Count, float>) {
    if (!zeros && !in.n_slots) genes.columns = indices, genes.counts = data;  // as they lie
  }
  if (genes.columns == s.columns) genes.n = collect(in, indices, data, n, s);
  const float total = in.n_counts[cell];
  if (genes.n && !(total > 0 && total <= FLT_MAX && 1.0f / total <= FLT_MAX)) return none;
  return genes;
}

// ---- the steps that exist twice -------------------------------------------------------------------------------

inline uint32_t upper_half(double value) {  // of numbers from 0: orders as they do
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint32_t>(bits >> 32);
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
  static int64_t find_ties(const uint32_t* items, int64_t n, uint32_t* places) {
    int64_t found = 0;
    for (int64_t i = 0; i < n; ++i) {
      places[found] = static_cast<uint32_t>(i);
      found += (items[i] ^ items[i + 1]) <= kGene;
    }
    return found;
  }
  static void write(const uint32_t* items, int64_t n, uint32_t mask, const int32_t* kept, const int32_t* token_ids,
                    int32_t* tokens, int32_t* columns) {
    for (int64_t i = 0; i < n; ++i) {
      columns[i] = kept[items[i] & mask];
      tokens[i] = token_ids[columns[i]];
    }
  }
};

#ifdef SCFAST_X86
struct Avx512 {
  SCFAST_AVX512 static int64_t keep(const Genes& genes, float reciprocal, float target, const double* reciprocals,
                                    Scratch& s) {
    const __m512 by = _mm512_set1_ps(reciprocal), to = _mm512_set1_ps(target);
    const __m512d none = _mm512_set1_pd(-1), zero = _mm512_setzero_pd();
    const __m512i upper = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    int64_t kept = 0;
    for (int64_t p = 0; p < genes.n; p += 16) {
      const __mmask16 in = static_cast<__mmask16>(genes.n - p >= 16 ? 0xffff : (1 << (genes.n - p)) - 1);
      const __m512i columns = _mm512_maskz_loadu_epi32(in, genes.columns + p);
      const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(in, genes.counts + p), by), to);
      const __m512d first =
          _mm512_mask_i32gather_pd(none, static_cast<__mmask8>(in), _mm512_castsi512_si256(columns), reciprocals, 8);
      const __m512d last = _mm512_mask_i32gather_pd(none, static_cast<__mmask8>(in >> 8),
                                                    _mm512_extracti64x4_epi64(columns, 1), reciprocals, 8);
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
  SCFAST_AVX512 static int64_t find_ties(const uint32_t* items, int64_t n, uint32_t* places) {
    __m512i place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    int64_t found = 0;
    for (int64_t i = 0; i < n; i += 16) {
      const __m512i differ = _mm512_xor_si512(_mm512_loadu_si512(items + i), _mm512_loadu_si512(items + i + 1));
      const uint32_t in = n - i >= 16 ? 0xffff : (1u << (n - i)) - 1;
      const __mmask16 tie = static_cast<__mmask16>(in & _mm512_cmple_epu32_mask(differ, _mm512_set1_epi32(kGene)));
      _mm512_storeu_si512(places + found, _mm512_maskz_compress_epi32(tie, place));
      found += __builtin_popcount(tie);
      place = _mm512_add_epi32(place, _mm512_set1_epi32(16));
    }
    return found;
  }
  SCFAST_AVX512 static void write(const uint32_t* items, int64_t n, uint32_t mask, const int32_t* kept,
                                  const int32_t* token_ids, int32_t* tokens, int32_t* columns) {
    const __m512i gene = _mm512_set1_epi32(static_cast<int>(mask));
    for (int64_t i = 0; i < n; i += 16) {
      const __mmask16 in = static_cast<__mmask16>(n - i >= 16 ? 0xffff : (1 << (n - i)) - 1);
      const __m512i number = _mm512_and_si512(_mm512_maskz_loadu_epi32(in, items + i), gene);
      const __m512i column = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), in, number, kept, 4);
      _mm512_mask_storeu_epi32(columns + i, in, column);
      _mm512_mask_storeu_epi32(tokens + i, in, _mm512_mask_i32gather_epi32(column, in, column, token_ids, 4));
    }
  }
};
#endif

// ---- sorting ----------------------------------------------------------------------------------------------------

// One stable pass over a digit of the items; false: all of them share it, nothing moved. One half goes forwards into
// the fronts of the buckets, the other backwards into their ends: a load of a bucket's place that waits for the store
// before it then has another chain to overlap with.
SCFAST_INLINE bool radix_pass(const uint32_t* from, uint32_t* to, int64_t n, int shift, const uint32_t* even,
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

// Sorts the cell's n genes, at most 2^16, by the leading bits of their values, stably: items of key and number, and
// one more whose key is another. Few genes share a key, and comparing those is cheaper than another pass.
SCFAST_INLINE void order_by_key(Scratch& s, int64_t n) {
  uint32_t* items = s.items;
  uint32_t low = ~0u, high = 0;
  for (int64_t i = 0; i < n; ++i) {
    low = std::min(low, items[i]);
    high = std::max(high, items[i]);
  }
  int shift = 0;
  while ((high - low) >> shift >> kKeyBits) ++shift;
  for (int64_t i = 0; i < n; ++i) items[i] = (high - items[i]) >> shift << kKeyBits | static_cast<uint32_t>(i);
  uint32_t counts[4][kRadix] = {};  // of each digit in even and odd places, for the same reason
  for (int64_t i = 0; i + 1 < n; i += 2) {
    const uint32_t a = items[i] >> kKeyBits, b = items[i + 1] >> kKeyBits;
    ++counts[0][a & (kRadix - 1)];
    ++counts[1][b & (kRadix - 1)];
    ++counts[2][a >> 8];
    ++counts[3][b >> 8];
  }
  if (n % 2) {
    ++counts[0][items[n - 1] >> kKeyBits & (kRadix - 1)];
    ++counts[2][items[n - 1] >> (kKeyBits + 8)];
  }
  if (radix_pass(s.items, s.other, n, kKeyBits, counts[0], counts[1])) std::swap(s.items, s.other);
  if (radix_pass(s.items, s.other, n, kKeyBits + 8, counts[2], counts[3])) std::swap(s.items, s.other);
  s.items[n] = ~s.items[n - 1];
}

struct Before {  // larger value first, then smaller column
  const double* values;
  const int32_t* columns;
  bool operator()(uint32_t a, uint32_t b) const {
    return values[a] != values[b] ? values[a] > values[b] : columns[a] < columns[b];
  }
};

// Where keys tie the whole value decides. The items lose their keys there, in all of a tie that begins before `wanted`.
void order_ties(uint32_t* items, const uint32_t* places, int64_t n_ties, const Before& before) {
  for (int64_t t = 0; t < n_ties;) {
    const int64_t begin = places[t];
    int64_t end = begin + 1;
    while ((items[begin] ^ items[end]) <= kGene) ++end;
    while (t < n_ties && places[t] < end) ++t;
    for (int64_t i = begin; i < end; ++i) items[i] &= kGene;
    if (end - begin == 2) {
      if (before(items[begin + 1], items[begin])) std::swap(items[begin], items[begin + 1]);
    } else if (!std::is_sorted(items + begin, items + end, before)) {
      std::sort(items + begin, items + end, before);
    }
  }
}

// ---- all cells ----------------------------------------------------------------------------------------------------

// Ranks one cell into tokens and columns and returns how many genes that are.
template <class Steps, class Index, class Count>
SCFAST_INLINE int64_t rank_cell(const RankInput& in, const double* reciprocals, int64_t cell, int64_t limit, Scratch& s,
                                int64_t* n_expressed, int64_t* n_in_vocabulary, int32_t* tokens, int32_t* columns) {
  const Genes genes = read_row<Index, Count>(in, cell, s);
  const int64_t n = genes.n <= 0 ? 0 : Steps::keep(genes, 1.0f / in.n_counts[cell], in.target, reciprocals, s);
  const int64_t wanted = std::min(n, limit);
  *n_expressed = genes.n;
  *n_in_vocabulary = n;
  if (wanted == 0) return 0;
  const Before before = {s.values, s.kept};
  const bool radix = n >= kSmall && n <= int64_t{kGene} + 1;  // a gene's number has to fit beside the key
  if (radix) {
    order_by_key(s, n);
    order_ties(s.items, s.other, Steps::find_ties(s.items, wanted, s.other), before);
  } else {
    for (int64_t i = 0; i < n; ++i) s.items[i] = static_cast<uint32_t>(i);
    std::sort(s.items, s.items + n, before);
  }
  Steps::write(s.items, wanted, radix ? kGene : ~0u, s.kept, in.token_ids, tokens, columns);
  return wanted;
}

template <class Index, class Count>
int64_t rank_portable(const RankInput& in, const double* reciprocals, int64_t cell, int64_t limit, Scratch& s,
                      int64_t* n_expressed, int64_t* n_in_vocabulary, int32_t* tokens, int32_t* columns) {
  return rank_cell<Portable, Index, Count>(in, reciprocals, cell, limit, s, n_expressed, n_in_vocabulary, tokens,
                                           columns);
}

#ifdef SCFAST_X86
template <class Index, class Count>
SCFAST_AVX512 int64_t rank_avx512(const RankInput& in, const double* reciprocals, int64_t cell, int64_t limit,
                                  Scratch& s, int64_t* n_expressed, int64_t* n_in_vocabulary, int32_t* tokens,
                                  int32_t* columns) {
  return rank_cell<Avx512, Index, Count>(in, reciprocals, cell, limit, s, n_expressed, n_in_vocabulary, tokens,
                                         columns);
}
#endif

template <class T>
bool allocate(T*& p, int64_t n) {  // zeros
  return (p = static_cast<T*>(std::calloc(static_cast<size_t>(n) + kPad, sizeof(T)))) != nullptr;
}

template <class Index, class Count>
bool rank_cells(const RankInput& in, int64_t limit, bool avx512, int64_t* n_expressed, int64_t* n_in_vocabulary,
                int32_t* token_ids, int32_t* columns) {
  auto rank = rank_portable<Index, Count>;
#ifdef SCFAST_X86
  if (avx512) rank = rank_avx512<Index, Count>;
#endif
  double* reciprocals;
  if (!allocate(reciprocals, in.n_columns)) return false;
  for (int64_t c = 0; c < in.n_columns; ++c) reciprocals[c] = in.token_ids[c] < 0 ? -1.0 : 1.0 / in.factors[c];
  const int64_t n_tasks = (in.n_cells + kCellsPerTask - 1) / kCellsPerTask;
  int64_t longest = 0, most = 0, total = 0;  // entries of a row, genes of a task, genes written
  for (int64_t task = 0; task < n_tasks; ++task) {
    int64_t genes = 0;
    for (int64_t i = task * kCellsPerTask; i < std::min((task + 1) * kCellsPerTask, in.n_cells); ++i) {
      const int64_t n = in.indptr[i + 1] - in.indptr[i];
      longest = std::max(longest, n);
      genes += std::min(n, limit);
    }
    most = std::max(most, genes);
  }
  bool failed = false;
#pragma omp parallel num_threads(in.threads) reduction(|| : failed)
  {
    Scratch s = {};
    failed = !(allocate(s.columns, longest) && allocate(s.kept, longest) && allocate(s.counts, longest) &&
               allocate(s.values, longest) && allocate(s.items, longest) && allocate(s.other, longest) &&
               allocate(s.seen, in.n_columns) && allocate(s.sums, in.n_slots) && allocate(s.summed, in.n_slots) &&
               allocate(s.tokens, most) && allocate(s.places, most));
#pragma omp for schedule(dynamic, 1) ordered
    for (int64_t task = 0; task < n_tasks; ++task) {
      int64_t genes = 0, begin;
      for (int64_t i = task * kCellsPerTask; i < std::min((task + 1) * kCellsPerTask, in.n_cells) && !failed; ++i)
        genes += rank(in, reciprocals, i, limit, s, n_expressed + i, n_in_vocabulary + i, s.tokens + genes,
                      s.places + genes);
#pragma omp ordered
      {  // where a task's genes begin is known once those before it are ranked
        begin = total;
        total += genes;
      }
      if (genes) {
        std::memcpy(token_ids + begin, s.tokens, static_cast<size_t>(genes) * sizeof(int32_t));
        std::memcpy(columns + begin, s.places, static_cast<size_t>(genes) * sizeof(int32_t));
      }
    }
    for (void* p : {(void*)s.columns, (void*)s.kept, (void*)s.counts, (void*)s.values, (void*)s.items, (void*)s.other,
                    (void*)s.seen, (void*)s.sums, (void*)s.summed, (void*)s.tokens, (void*)s.places})
      std::free(p);
  }
  std::free(reciprocals);
  return !failed;
}

}  // namespace

bool rank_values(const RankInput& in, int64_t limit, bool avx512, int64_t* n_expressed, int64_t* n_in_vocabulary,
                 int32_t* token_ids, int32_t* columns) {
  const auto with_count = [&](auto index) {
    const auto all = [&](auto count) {
      return rank_cells<decltype(index), decltype(count)>(in, limit, avx512, n_expressed, n_in_vocabulary, token_ids,
                                                          columns);
    };
    switch (in.count_type) {
      case kCountFloat32:
        return all(float{});
      case kCountFloat64:
        return all(double{});
      case kCountInt32:
        return all(int32_t{});
      default:
        return all(int64_t{});
    }
  };
  return in.wide_indices ? with_count(int64_t{}) : with_count(int32_t{});
}

}  // namespace scfast
