#include "rank_values.hpp"

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
constexpr int kSmall = 48;         // below it two radix passes cost more than comparisons do
constexpr int kKeyBits = 16;       // of a value's leading bits: two passes over 256 buckets, few equal keys left
constexpr int kRadix = 256;

template <class T>
T* allocate(int64_t n) {
  return static_cast<T*>(std::malloc(static_cast<size_t>(std::max<int64_t>(n, 1)) * sizeof(T)));
}

template <class T>
T* zeros(int64_t n) {
  return static_cast<T*>(std::calloc(static_cast<size_t>(n) + 1, sizeof(T)));
}

int64_t longest_row(const RankInput& in) {
  int64_t longest = 0;
  for (int64_t i = 0; i < in.n_cells; ++i) longest = std::max(longest, in.indptr[i + 1] - in.indptr[i]);
  return longest;
}

// ---- first pass -----------------------------------------------------------------------------------------------

struct Seen {       // marks, cleared by moving on to the next number
  int64_t* slot;    // [n_slots]
  int64_t* column;  // [n_columns], touched only where a row's columns do not rise
  int64_t now;
};

template <class Count>
constexpr Count largest() {  // what the first rounding, to float32, can hold
  return std::is_floating_point_v<Count> ? static_cast<Count>(FLT_MAX) : std::numeric_limits<Count>::max();
}

template <class Index, class Count>
int64_t count_cell(const RankInput& in, const uint8_t* has_token, int64_t cell, Seen* seen, int64_t* in_vocabulary) {
  using Unsigned = std::make_unsigned_t<Index>;
  const int64_t n = in.indptr[cell + 1] - in.indptr[cell];
  const Index* indices = static_cast<const Index*>(in.indices) + in.indptr[cell];
  const Count* data = static_cast<const Count*>(in.data) + in.indptr[cell];
  const Unsigned n_columns = static_cast<Unsigned>(in.n_columns);
  int outside = 0, refused = 0, falls = 0;  // checks apart from look-ups, so that they vectorise
  int64_t expressed = 0, tokens = 0;
  for (int64_t p = 0; p < n; ++p) outside |= static_cast<Unsigned>(indices[p]) >= n_columns;
  for (int64_t p = 1; p < n; ++p) falls |= indices[p] <= indices[p - 1];
  for (int64_t p = 0; p < n; ++p) refused |= (data[p] >= Count(0) ? 0 : 1) | (data[p] <= largest<Count>() ? 0 : 1);
  for (int64_t p = 0; p < n; ++p) expressed += data[p] > Count(0);
  if (outside | refused) return -1;

  if (expressed == n) {
    for (int64_t p = 0; p < n; ++p) tokens += has_token[indices[p]];
  } else {  // zeros are stored
    for (int64_t p = 0; p < n; ++p) tokens += data[p] > Count(0) ? has_token[indices[p]] : 0;
  }
  ++seen->now;
  if (falls) {  // columns in any order are fine, a column twice is not
    for (int64_t p = 0; p < n; ++p) {
      if (seen->column[indices[p]] == seen->now) return -1;
      seen->column[indices[p]] = seen->now;
    }
  }
  if (in.n_slots) {  // several columns of one gene are one gene
    for (int64_t p = 0; p < n; ++p) {
      const int32_t slot = in.slots[indices[p]];
      if (slot < 0 || !(data[p] > Count(0))) continue;
      if (seen->slot[slot] == seen->now) {
        --expressed;
        tokens -= has_token[indices[p]];
      }
      seen->slot[slot] = seen->now;
    }
  }
  const float total = in.n_counts[cell];
  if (expressed && !(total > 0 && total <= FLT_MAX && 1.0f / total <= FLT_MAX)) return -1;
  *in_vocabulary = tokens;
  return expressed;
}

// ---- second pass ----------------------------------------------------------------------------------------------

struct Scratch {
  uint32_t *items, *other; // [longest row + n_slots + 1] leading bits of the value << kKeyBits | entry
  double* sums;            // [n_slots] counts of genes of several columns, zero between cells
  int32_t* summed;         // [n_slots] slots that follow the row as entries of their own
};

// The entries of one cell: its row, then the sums. Values are computed where they are needed, which is twice for the
// few whose leading bits tie: the cell stays in the first-level cache.
template <class Index, class Count>
struct Entries {
  const Index* indices;
  const Count* data;
  int64_t row;                // entries below are those of the matrix
  float reciprocal, target;   // 1 / n_counts
  const double* reciprocals;  // [n_columns] 1 / factor; -1 where the column has no token, or is summed
  const RankInput& in;
  const Scratch& s;

  int32_t column(int64_t e) const {
    return e < row ? static_cast<int32_t>(indices[e]) : in.slot_columns[s.summed[e - row]];
  }
  double value(int64_t e) const {  // below zero, and never -0: the entry has no place
    const double factor = e < row ? reciprocals[indices[e]] : 1.0 / in.factors[column(e)];
    const double count = e < row ? static_cast<double>(data[e]) : s.sums[s.summed[e - row]];
    return factor < 0 ? -1.0 : value_of(count, factor);
  }
  double value_of(double count, double factor) const {
    const float scaled = static_cast<float>(count) * reciprocal * target;
    return count > 0 ? static_cast<double>(scaled) * factor : -1.0;
  }
  bool before(uint32_t a, uint32_t b) const { // larger value first, then smaller column
    const double va = value(a), vb = value(b);
    return va != vb ? va > vb : column(a) < column(b);
  }
};

inline uint32_t upper_half(double value) { // of positive doubles: orders as they do
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint32_t>(bits >> 32);
}

// Adds up the cell's genes of several columns; returns how many there are.
template <class Index, class Count>
int64_t sum_groups(const Entries<Index, Count>& cell) {
  int64_t n = 0;
  for (int64_t p = 0; p < cell.row; ++p) {
    const int32_t slot = cell.in.slots[cell.indices[p]];
    if (slot < 0 || !(cell.data[p] > Count(0))) continue;
    if (cell.s.sums[slot] == 0) cell.s.summed[n++] = slot;
    cell.s.sums[slot] += static_cast<double>(cell.data[p]);
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t slot = cell.s.summed[i];
    if (cell.in.token_ids[cell.in.slot_columns[slot]] >= 0) {
      cell.s.summed[kept++] = slot;
    } else {
      cell.s.sums[slot] = 0;
    }
  }
  return kept;
}

// One stable pass over a digit of the items; false: all of them share it, nothing moved. One half goes forwards into
// the fronts of the buckets, the other backwards into their ends: a load of a bucket's place that waits for the store
// before it then has another chain to overlap with.
bool radix_pass(const uint32_t* from, uint32_t* to, int64_t n, int shift, const uint32_t* even, const uint32_t* odd) {
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

// The cell's n entries, at most 2^16, by the leading bits of their values, stably: items of key and entry, and one
// more whose key is another. Few entries share a key, and comparing those is cheaper than another pass.
template <class Index, class Count>
uint32_t* order_by_key(const Entries<Index, Count>& cell, int64_t n) {
  uint32_t *items = cell.s.items, *other = cell.s.other;
  for (int64_t e = 0; e < cell.row; ++e)
    items[e] = upper_half(cell.value_of(static_cast<double>(cell.data[e]), cell.reciprocals[cell.indices[e]]));
  for (int64_t e = cell.row; e < n; ++e) items[e] = upper_half(cell.value(e));
  uint32_t low = ~0u; // entries below zero are the largest as unsigned and the smallest as signed numbers
  int32_t high = 0;
  for (int64_t i = 0; i < n; ++i) {
    low = std::min(low, items[i]);
    high = std::max(high, static_cast<int32_t>(items[i]));
  }
  const int32_t range = high - static_cast<int32_t>(low);
  int shift = 0;
  while (((range >> shift) + 1) >> kKeyBits) ++shift;
  const int32_t below = static_cast<int32_t>(low) - (1 << shift);  // theirs is a key of its own, the last
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = static_cast<uint32_t>(high - std::max(static_cast<int32_t>(items[i]), below)) >> shift;
    items[i] = key << kKeyBits | static_cast<uint32_t>(i);
  }
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
  if (radix_pass(items, other, n, kKeyBits, counts[0], counts[1])) std::swap(items, other);
  if (radix_pass(items, other, n, kKeyBits + 8, counts[2], counts[3])) std::swap(items, other);
  items[n] = ~items[n - 1];
  return items;
}

template <class Index, class Count>
void fill_cell(const RankInput& in, const double* reciprocals, int64_t number, const Scratch& s, int64_t wanted,
               int64_t* token_ids, int64_t* columns) {
  const int64_t begin = in.indptr[number];
  const Entries<Index, Count> cell = {static_cast<const Index*>(in.indices) + begin,
                                      static_cast<const Count*>(in.data) + begin,
                                      in.indptr[number + 1] - begin,
                                      1.0f / in.n_counts[number],
                                      in.target,
                                      reciprocals,
                                      in,
                                      s};
  const auto before = [&cell](uint32_t a, uint32_t b) { return cell.before(a, b); };
  const auto emit = [&cell, token_ids, columns, tokens = in.token_ids](int64_t place, uint32_t entry) {
    const int32_t column = cell.column(entry);
    columns[place] = column;
    token_ids[place] = tokens[column];
  };
  const int64_t n_sums = in.n_slots ? sum_groups(cell) : 0, n = cell.row + n_sums;
  if (n < kSmall || n > (int64_t{1} << kKeyBits)) {  // the entry's number has to fit beside the key
    uint32_t* items = s.items;
    for (int64_t i = 0; i < n; ++i) items[i] = static_cast<uint32_t>(i);
    std::sort(items, items + n, before);
    for (int64_t i = 0; i < wanted; ++i) emit(i, items[i]);
  } else {
    uint32_t* items = order_by_key(cell, n);
    uint32_t* ties = items == s.items ? s.other : s.items;
    constexpr uint32_t entry = (1u << kKeyBits) - 1;
    int64_t n_ties = 0;  // places whose key the next place has too
    for (int64_t i = 0; i < wanted; ++i) {
      ties[n_ties] = static_cast<uint32_t>(i);
      n_ties += (items[i] ^ items[i + 1]) <= entry;
      emit(i, items[i] & entry);
    }
    for (int64_t t = 0; t < n_ties;) {  // there the whole value decides
      const int64_t begin = ties[t];
      int64_t end = begin + 1;
      while ((items[begin] ^ items[end]) <= entry) ++end;
      while (t < n_ties && ties[t] < end) ++t;
      for (int64_t i = begin; i < end; ++i) items[i] &= entry;
      if (std::is_sorted(items + begin, items + end, before)) continue;
      std::sort(items + begin, items + end, before);
      for (int64_t i = begin; i < std::min(end, wanted); ++i) emit(i, items[i]);
    }
  }
  for (int64_t i = 0; i < n_sums; ++i) s.sums[s.summed[i]] = 0;
}

// ---- both passes over all cells, for one pair of types ---------------------------------------------------------

template <class Index, class Count>
bool count_cells(const RankInput& in, int64_t* n_expressed, int64_t* n_in_vocabulary) {
  uint8_t* has_token = allocate<uint8_t>(in.n_columns);
  if (!has_token) return false;
  for (int64_t c = 0; c < in.n_columns; ++c)
    has_token[c] = in.token_ids[in.slots[c] < 0 ? c : in.slot_columns[in.slots[c]]] >= 0;
  bool failed = false;
#pragma omp parallel num_threads(in.threads) reduction(|| : failed)
  {
    Seen seen = {zeros<int64_t>(in.n_slots), zeros<int64_t>(in.n_columns), 0};
    failed = !seen.slot || !seen.column;
#pragma omp for schedule(dynamic, kCellsPerTask)
    for (int64_t cell = 0; cell < in.n_cells; ++cell) {
      if (failed) continue;
      n_in_vocabulary[cell] = 0;
      n_expressed[cell] = count_cell<Index, Count>(in, has_token, cell, &seen, &n_in_vocabulary[cell]);
    }
    std::free(seen.slot);
    std::free(seen.column);
  }
  std::free(has_token);
  return !failed;
}

template <class Index, class Count>
bool fill_cells(const RankInput& in, const int64_t* offsets, int64_t* token_ids, int64_t* columns) {
  double* reciprocals = allocate<double>(in.n_columns);
  if (!reciprocals) return false;
  for (int64_t c = 0; c < in.n_columns; ++c)
    reciprocals[c] = in.token_ids[c] < 0 || in.slots[c] >= 0 ? -1.0 : 1.0 / in.factors[c];
  const int64_t longest = longest_row(in);
  bool failed = false;
#pragma omp parallel num_threads(in.threads) reduction(|| : failed)
  {
    const int64_t room = longest + in.n_slots + 1;
    Scratch s = {allocate<uint32_t>(room), allocate<uint32_t>(room), zeros<double>(in.n_slots),
                 allocate<int32_t>(in.n_slots)};
    failed = !s.items || !s.other || !s.sums || !s.summed;
#pragma omp for schedule(dynamic, kCellsPerTask)
    for (int64_t cell = 0; cell < in.n_cells; ++cell)
      if (const int64_t begin = offsets[cell], wanted = offsets[cell + 1] - begin; wanted > 0 && !failed)
        fill_cell<Index, Count>(in, reciprocals, cell, s, wanted, token_ids + begin, columns + begin);
    for (void* p : {static_cast<void*>(s.items), static_cast<void*>(s.other), static_cast<void*>(s.sums),
                    static_cast<void*>(s.summed)})
      std::free(p);
  }
  std::free(reciprocals);
  return !failed;
}

template <class Visit>
bool with_types(const RankInput& in, const Visit& visit) {
  const auto with_count = [&](auto index) {
    switch (in.count_type) {
      case kCountFloat32:
        return visit(index, float{});
      case kCountFloat64:
        return visit(index, double{});
      case kCountInt32:
        return visit(index, int32_t{});
      default:
        return visit(index, int64_t{});
    }
  };
  return in.wide_indices ? with_count(int64_t{}) : with_count(int32_t{});
}

}  // namespace

bool rank_values_count(const RankInput& in, int64_t* n_expressed, int64_t* n_in_vocabulary) {
  return with_types(in, [&](auto index, auto count) {
    return count_cells<decltype(index), decltype(count)>(in, n_expressed, n_in_vocabulary);
  });
}

bool rank_values_fill(const RankInput& in, const int64_t* offsets, int64_t* token_ids, int64_t* columns) {
  return with_types(in, [&](auto index, auto count) {
    return fill_cells<decltype(index), decltype(count)>(in, offsets, token_ids, columns);
  });
}

}  // namespace scfast
