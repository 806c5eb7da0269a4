#include "rank_values.hpp"

#include "rank_values_steps.hpp"

#include <algorithm>
#include <cfloat>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace scfast {
namespace {

constexpr int kCellsPerTask = 16;  // cells differ in length by 10 x, so threads draw small tasks
constexpr int kSmall = 48;         // below it sorting by keys costs more than comparisons do

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
  const Genes none = {nullptr, nullptr, -1};
  if (outside | refused) return none;
  if (falls && a_column_twice(indices, n, cell, s.seen)) return none;
  Genes genes = {s.columns, s.counts, n};
  if constexpr (std::is_same_v<Index, int32_t> && std::is_same_v<Count, float>) {
    if (!zeros && !in.n_slots) genes.columns = indices, genes.counts = data;  // as they lie
  }
  if (genes.columns == s.columns) genes.n = collect(in, indices, data, n, s);
  const float total = in.n_counts[cell];
  if (genes.n && !(total > 0 && total <= FLT_MAX && 1.0f / total <= FLT_MAX)) return none;
  return genes;
}

// ---- order and output -------------------------------------------------------------------------------------------

inline void write(const uint32_t* items, int64_t n, uint32_t mask, const int32_t* kept, const int32_t* token_ids,
                  int32_t* tokens, int32_t* columns) {
  for (int64_t i = 0; i < n; ++i) {
    const int32_t column = kept[items[i] & mask];
    columns[i] = column;
    tokens[i] = token_ids[column];
  }
}

struct Before {  // larger value first, then smaller column
  const double* values;
  const int32_t* columns;
  bool operator()(uint32_t a, uint32_t b) const {
    return values[a] != values[b] ? values[a] > values[b] : columns[a] < columns[b];
  }
};

// Where keys tie the whole value decides. The items lose their keys there, in all of a tie that begins before `wanted`.
void order_ties(uint32_t* items, const uint32_t* places, int64_t n_ties, uint32_t gene, const Before& before) {
  for (int64_t t = 0; t < n_ties;) {
    const int64_t begin = places[t];
    int64_t end = begin + 1;
    while ((items[begin] ^ items[end]) <= gene) ++end;
    while (t < n_ties && places[t] < end) ++t;
    for (int64_t i = begin; i < end; ++i) items[i] &= gene;
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
  uint32_t gene = ~0u;  // of an item, the bits of the gene's number
  if (n < kSmall || n > 1 << kRadixBits) {
    for (int64_t i = 0; i < n; ++i) s.items[i] = static_cast<uint32_t>(i);
    std::sort(s.items, s.items + n, before);
  } else {  // few genes share a key, and comparing those is cheaper than longer keys
    gene = (1u << Steps::order(s, n)) - 1;
    s.items[n] = ~s.items[n - 1];  // its key is another
    order_ties(s.items, s.other, Steps::find_ties(s.items, wanted, gene, s.other), gene, before);
  }
  write(s.items, wanted, gene, s.kept, in.token_ids, tokens, columns);
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
  int64_t* starts;  // of the cells' genes if every entry were one
  if (!allocate(starts, in.n_cells + 1)) return std::free(reciprocals), false;
  int64_t longest = 0;
  for (int64_t i = 0; i < in.n_cells; ++i) {
    const int64_t n = in.indptr[i + 1] - in.indptr[i];
    longest = std::max(longest, n);
    starts[i + 1] = starts[i] + std::min(n, limit);
  }
  bool failed = false;
#pragma omp parallel num_threads(in.threads) reduction(|| : failed)
  {
    Scratch s = {};
    failed = !(allocate(s.columns, longest) && allocate(s.kept, longest) && allocate(s.counts, longest) &&
               allocate(s.factors, longest) && allocate(s.values, longest) && allocate(s.items, longest) &&
               allocate(s.other, longest) && allocate(s.seen, in.n_columns) && allocate(s.sums, in.n_slots) &&
               allocate(s.summed, in.n_slots));
#pragma omp for schedule(dynamic, kCellsPerTask)
    for (int64_t i = 0; i < in.n_cells; ++i)
      if (!failed)
        rank(in, reciprocals, i, limit, s, n_expressed + i, n_in_vocabulary + i, token_ids + starts[i],
             columns + starts[i]);
    for (void* p : {(void*)s.columns, (void*)s.kept, (void*)s.counts, (void*)s.factors, (void*)s.values, (void*)s.items,
                    (void*)s.other, (void*)s.seen, (void*)s.sums, (void*)s.summed})
      std::free(p);
  }
#pragma omp parallel for num_threads(std::min(in.threads, 2))
  for (int array = 0; array < 2; ++array) {  // closes the gaps; waiting in turn for places would stall busy machines
    int32_t *from = array ? columns : token_ids, *to = from;
    for (int64_t i = 0; i < in.n_cells && !failed; ++i) {
      const int64_t n = std::min(n_in_vocabulary[i], limit);
      if (to != from + starts[i]) std::memmove(to, from + starts[i], static_cast<size_t>(n) * sizeof(int32_t));
      to += n;
    }
  }
  std::free(starts);
  std::free(reciprocals);
  return !failed;
}

}  // namespace

bool rank_values(const RankInput& in, int64_t limit, bool avx512, int64_t* n_expressed, int64_t* n_in_vocabulary,
                 int32_t* token_ids, int32_t* columns) {
  return with_csr_types(in.wide_indices, in.count_type, [&](auto index, auto count) {
    return rank_cells<decltype(index), decltype(count)>(in, limit, avx512, n_expressed, n_in_vocabulary, token_ids,
                                                        columns);
  });
}

}  // namespace scfast
