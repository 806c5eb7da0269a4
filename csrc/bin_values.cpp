#include "bin_values.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace scfast {
namespace {

constexpr int kCellsPerTask = 16;
constexpr int kSmallCounts = 1024;  // whole counts below it are grouped by a table
constexpr int kSmallRow = 64;       // below it comparisons cost less than a radix sort
constexpr int kDigitBits = 11;      // three of them cover a key
constexpr uint32_t kDigits = 1 << kDigitBits;

struct Digits {  // edges <= value, edges < value; in a segment its bin, nothing
  int32_t left, right;
};

// Equal counts of a cell are one group; groups lie in order of value.
struct Scratch {
  uint64_t *items, *other;  // [longest row] key << 32 | place in the row
  int32_t* group;           // [longest row] of every entry, -1: a zero
  double* values;           // [longest row] of the groups
  int32_t* ends;            // [longest row] entries in this group and those before it
  Digits* digits;           // [longest row] of the groups
  int32_t* table;           // [kSmallCounts] zeros between cells
  double* edges;            // [n_levels]
};

// ---- random numbers -------------------------------------------------------------------------------------------

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;

inline uint64_t split_mix(uint64_t start, uint64_t number) {
  uint64_t z = start + (number + 1) * kGolden;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

inline double unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }  // [0, 1)

// ---- groups of equal counts -----------------------------------------------------------------------------------

template <class Count>
bool are_small(const Count* data, int64_t n) {
  int large = 0, broken = 0;
  for (int64_t p = 0; p < n; ++p) large |= data[p] < Count(kSmallCounts) ? 0 : 1;
  if (large) return false;
  for (int64_t p = 0; p < n; ++p) broken |= static_cast<Count>(static_cast<int32_t>(data[p])) != data[p];
  return !broken;
}

template <class Count>
int32_t group_small(const Count* data, int64_t n, const Scratch& s) {
  int32_t highest = 0, n_groups = 0, total = 0;
  for (int64_t p = 0; p < n; ++p) {
    s.group[p] = static_cast<int32_t>(data[p]);
    highest = std::max(highest, s.group[p]);
    ++s.table[s.group[p]];
  }
  s.table[0] = -1;
  for (int32_t value = 1; value <= highest; ++value) {
    if (s.table[value] == 0) continue;
    s.values[n_groups] = value;
    s.ends[n_groups] = total += s.table[value];
    s.table[value] = n_groups++;
  }
  for (int64_t p = 0; p < n; ++p) s.group[p] = s.table[s.group[p]];
  std::memset(s.table, 0, static_cast<size_t>(highest + 1) * sizeof(int32_t));
  return n_groups;
}

// Orders as numbers from 0 do; all of a float, the leading bits of a double.
template <class Count>
uint32_t key_of(Count count) {
  if constexpr (std::is_same_v<Count, float>) {
    uint32_t bits;
    std::memcpy(&bits, &count, sizeof bits);
    return bits;
  } else {
    const double value = static_cast<double>(count);
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<uint32_t>(bits >> 32);
  }
}

// The n items by their keys, stably.
void radix_sort(Scratch& s, int64_t n) {
  uint32_t starts[3][kDigits] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int d = 0; d < 3; ++d) ++starts[d][s.items[i] >> (32 + d * kDigitBits) & (kDigits - 1)];
  for (int d = 0; d < 3; ++d) {
    const int shift = 32 + d * kDigitBits;
    uint32_t* start = starts[d];
    if (start[s.items[0] >> shift & (kDigits - 1)] == n) continue;  // all share the digit
    for (uint32_t sum = 0, k = 0; k < kDigits; ++k) sum += std::exchange(start[k], sum);
    for (int64_t i = 0; i < n; ++i) s.other[start[s.items[i] >> shift & (kDigits - 1)]++] = s.items[i];
    std::swap(s.items, s.other);
  }
}

template <class Count>
int32_t group_sorted(const Count* data, int64_t n, Scratch& s) {
  int64_t n_items = 0;
  for (int64_t p = 0; p < n; ++p) {
    s.group[p] = -1;
    if (data[p] > Count(0)) s.items[n_items++] = uint64_t{key_of(data[p])} << 32 | static_cast<uint64_t>(p);
  }
  if (n_items < kSmallRow)
    std::sort(s.items, s.items + n_items);
  else
    radix_sort(s, n_items);
  const auto value = [&](int64_t i) { return static_cast<double>(data[static_cast<uint32_t>(s.items[i])]); };
  if constexpr (!std::is_same_v<Count, float>) {  // the whole value decides where leading bits tie
    const auto smaller = [&](uint64_t a, uint64_t b) {
      return static_cast<double>(data[static_cast<uint32_t>(a)]) < static_cast<double>(data[static_cast<uint32_t>(b)]);
    };
    for (int64_t begin = 0, end; begin < n_items; begin = end) {
      for (end = begin + 1; end < n_items && s.items[end] >> 32 == s.items[begin] >> 32;) ++end;
      if (end - begin > 1) std::sort(s.items + begin, s.items + end, smaller);
    }
  }
  int32_t n_groups = 0;
  for (int64_t i = 0; i < n_items; ++i) {
    if (i == 0 || value(i) != value(i - 1)) s.values[n_groups++] = value(i);
    s.ends[n_groups - 1] = static_cast<int32_t>(i + 1);
    s.group[static_cast<uint32_t>(s.items[i])] = n_groups - 1;
  }
  return n_groups;
}

// ---- bins -------------------------------------------------------------------------------------------------------

// NumPy's linear quantiles: neighbours are subtracted in the precision of the counts, the rest is float64.
template <class Count>
void find_edges(const BinInput& in, int32_t n_groups, const Scratch& s) {
  using Real = std::conditional_t<std::is_same_v<Count, float>, float, double>;
  const int64_t n = s.ends[n_groups - 1];
  for (int32_t e = 0, g = 0; e < in.n_levels; ++e) {
    const double at = static_cast<double>(n - 1) * in.levels[e], below = std::trunc(at), part = at - below;
    if (at >= static_cast<double>(n - 1)) {
      s.edges[e] = s.values[n_groups - 1];
      continue;
    }
    while (s.ends[g] <= static_cast<int64_t>(below)) ++g;
    const double a = s.values[g], b = s.ends[g] > static_cast<int64_t>(below) + 1 ? a : s.values[g + 1];
    const double apart = static_cast<double>(static_cast<Real>(b) - static_cast<Real>(a));
    s.edges[e] = part >= 0.5 ? b - apart * (1 - part) : a + apart * part;
  }
}

template <class Index, class Count>
void by_quantile(const BinInput& in, int64_t cell, const Index* indices, int64_t n, int32_t n_groups, const Scratch& s,
                 int32_t* bins) {
  if (n_groups) find_edges<Count>(in, n_groups, s);
  for (int32_t g = 0, right = 0; g < n_groups; ++g) {
    while (right < in.n_levels && s.edges[right] < s.values[g]) ++right;
    int32_t left = right;
    while (left < in.n_levels && s.edges[left] <= s.values[g]) ++left;
    s.digits[g] = {left, right};
  }
  const uint64_t stream = split_mix(in.seed, static_cast<uint64_t>(in.row_ids[cell]));
  for (int64_t p = 0; p < n; ++p) {
    if (s.group[p] < 0) {
      bins[p] = 0;
      continue;
    }
    const Digits digits = s.digits[s.group[p]];
    const double u =
        in.uniforms ? in.uniforms[in.indptr[cell] + p] : unit(split_mix(stream, static_cast<uint64_t>(indices[p])));
    const double place = u * (digits.right - digits.left) + digits.left;
    const int32_t whole = static_cast<int32_t>(place);
    bins[p] = whole + (whole < place);
  }
}

void by_segment(const BinInput& in, int64_t n, int32_t n_groups, const Scratch& s, int32_t* bins) {
  for (int32_t g = 0; g < n_groups; ++g) {
    const int64_t smaller = g > 0 ? s.ends[g - 1] : 0;
    s.digits[g].left = static_cast<int32_t>(1 + smaller * (in.n_bins - 1) / s.ends[n_groups - 1]);
  }
  for (int64_t p = 0; p < n; ++p) bins[p] = s.group[p] < 0 ? 0 : s.digits[s.group[p]].left;
}

template <class Count>
void by_value(const BinInput& in, int64_t cell, const Count* data, int64_t n, int32_t* bins) {
  const double scale = in.scales ? in.scales[cell] : 1.0;
  const int32_t last = static_cast<int32_t>(std::nearbyint(in.cutoff));
  for (int64_t p = 0; p < n; ++p) {
    const double x = static_cast<double>(data[p]) * scale;
    if (!(x > 0))
      bins[p] = 0;
    else if (x <= in.cutoff)
      bins[p] = x <= 1 ? 1 : static_cast<int32_t>(std::nearbyint(x));
    else
      bins[p] = last + static_cast<int32_t>(std::lower_bound(in.levels, in.levels + in.n_levels, x) - in.levels);
  }
}

template <class Index, class Count>
void bin_cell(const BinInput& in, int64_t cell, Scratch& s, int32_t* bins, int8_t* state) {
  const int64_t n = in.indptr[cell + 1] - in.indptr[cell];
  const Index* indices = static_cast<const Index*>(in.indices) + in.indptr[cell];
  const Count* data = static_cast<const Count*>(in.data) + in.indptr[cell];
  int refused = 0, falls = n && indices[0] < 0;
  for (int64_t p = 0; p < n; ++p)
    refused |= (data[p] >= Count(0) ? 0 : 1) | (data[p] <= std::numeric_limits<Count>::max() ? 0 : 1);
  for (int64_t p = 1; p < n; ++p) falls |= indices[p] <= indices[p - 1];
  *state = refused ? kBadCount : falls ? kColumnsFall : kBinned;
  if (refused) return;
  if (in.mode == kBinValue) return by_value(in, cell, data, n, bins);
  const int32_t n_groups = are_small(data, n) ? group_small(data, n, s) : group_sorted(data, n, s);
  if (in.mode == kBinSegment) return by_segment(in, n, n_groups, s, bins);
  by_quantile<Index, Count>(in, cell, indices, n, n_groups, s, bins);
}

template <class T>
bool allocate(T*& p, int64_t n) {  // zeros, and never nothing
  return (p = static_cast<T*>(std::calloc(static_cast<size_t>(n) + 1, sizeof(T)))) != nullptr;
}

template <class Index, class Count>
bool bin_cells(const BinInput& in, int32_t* bins, int8_t* states) {
  int64_t longest = 0;
  for (int64_t i = 0; i < in.n_cells; ++i) longest = std::max(longest, in.indptr[i + 1] - in.indptr[i]);
  bool failed = false;
#pragma omp parallel num_threads(in.threads) reduction(|| : failed)
  {
    Scratch s = {};
    failed = !(allocate(s.items, longest) && allocate(s.other, longest) && allocate(s.group, longest) &&
               allocate(s.values, longest) && allocate(s.ends, longest) && allocate(s.digits, longest) &&
               allocate(s.table, kSmallCounts) && allocate(s.edges, in.n_levels));
#pragma omp for schedule(dynamic, kCellsPerTask)
    for (int64_t i = 0; i < in.n_cells; ++i)
      if (!failed) bin_cell<Index, Count>(in, i, s, bins + (in.indptr[i] - in.indptr[0]), states + i);
    for (void* p : {(void*)s.items, (void*)s.other, (void*)s.group, (void*)s.values, (void*)s.ends, (void*)s.digits,
                    (void*)s.table, (void*)s.edges})
      std::free(p);
  }
  return !failed;
}

}  // namespace

bool bin_values(const BinInput& in, int32_t* bins, int8_t* states) {
  return with_csr_types(in.wide_indices, in.count_type, [&](auto index, auto count) {
    return bin_cells<decltype(index), decltype(count)>(in, bins, states);
  });
}

}  // namespace scfast
