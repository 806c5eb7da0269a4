// cosine_topk: of every row of x the k most similar rows of y (of x: other rows), largest first, equal ones by the
// smaller index; float32 and int64 [N, k]. Pairs that are NaN do not count; where fewer than k do, the rest is NaN and
// -1. What the lists hold does not depend on the order in which tiles come, so threads share them, a lock for each.
#pragma once
#include <sched.h>

#include "cosine.hpp"

namespace {

constexpr int kHeld = 32;      // candidates of a row before they are merged into its list
constexpr int kLocks = 1024;

SCFAST_INLINE bool better(float s, int64_t index, float than, int64_t its_index) {
  return s > than || (s == than && index < its_index);
}

// The lists, sorted at all times; -inf and -1 where nothing has been found yet.
struct Nearest {
  float* values;
  int64_t* indices;
  int k;
  uint8_t* locks;

  float bound(int64_t row) const {
    float last;
    __atomic_load(values + row * k + k - 1, &last, __ATOMIC_RELAXED);
    return last;
  }

  // s is equal to a bound of the row: whether its index is too large to replace the one there.
  bool beyond(int64_t row, int32_t index) const {
    const int64_t last = __atomic_load_n(indices + row * k + k - 1, __ATOMIC_RELAXED);
    return last >= 0 && index > last;
  }

  void merge(int64_t row, float* s, int32_t* index, int n) const {
    sort(s, index, n);
    uint8_t* lock = locks + row % kLocks;
    while (__atomic_test_and_set(lock, __ATOMIC_ACQUIRE)) sched_yield();
    float* value = values + row * k;
    int64_t* key = indices + row * k;
    int kept = k, taken = n;
    for (int surplus = n; surplus > 0; surplus--) {  // the worst of both go
      if (kept && better(s[taken - 1], index[taken - 1], value[kept - 1], key[kept - 1]))
        kept--;
      else
        taken--;
    }
    for (int at = k - 1; taken; at--) {
      const bool from_list = kept && better(s[taken - 1], index[taken - 1], value[kept - 1], key[kept - 1]);
      const float v = from_list ? value[kept - 1] : s[taken - 1];
      const int64_t i = from_list ? key[kept - 1] : index[taken - 1];
      from_list ? kept-- : taken--;
      __atomic_store(value + at, &v, __ATOMIC_RELAXED);
      __atomic_store_n(key + at, i, __ATOMIC_RELAXED);
    }
    __atomic_clear(lock, __ATOMIC_RELEASE);
  }

  static void sort(float* s, int32_t* index, int n) {
    for (int i = 1; i < n; i++) {
      const float x = s[i];
      const int32_t key = index[i];
      int at = i;
      for (; at > 0 && better(x, key, s[at - 1], index[at - 1]); at--) s[at] = s[at - 1], index[at] = index[at - 1];
      s[at] = x, index[at] = key;
    }
  }
};

// Candidates of neighbouring rows, and the bounds that they reached.
struct Candidates {
  float *s = nullptr, *bounds = nullptr;
  int32_t *index = nullptr, *n = nullptr;
  int64_t first = 0;  // packed row of the first
  int rows = 0;

  void take(Scratch& scratch, int most) {
    s = scratch.take<float>((size_t)most * kHeld);
    index = scratch.take<int32_t>((size_t)most * kHeld);
    bounds = scratch.take<float>(most + kTileColumns);
    n = scratch.take<int32_t>(most);
  }

  void begin(const Nearest& lists, int64_t first_row, int64_t n_rows) {
    first = first_row, rows = (int)n_rows;
    for (int i = 0; i < rows; i++) bounds[i] = lists.bound(first + i), n[i] = 0;
    for (int i = rows; i < rows + kTileColumns; i++) bounds[i] = INFINITY;  // lanes beyond
  }

  void add(const Nearest& lists, int row, float x, int64_t key) {
    if (x == bounds[row] && lists.beyond(first + row, (int32_t)key)) return;
    const int at = n[row]++;
    s[row * kHeld + at] = x, index[row * kHeld + at] = (int32_t)key;
    if (n[row] == kHeld) merge(lists, row);
  }

  void merge(const Nearest& lists, int row) {
    if (n[row]) lists.merge(first + row, s + row * kHeld, index + row * kHeld, n[row]);
    n[row] = 0;
    bounds[row] = lists.bound(first + row);
  }

  void finish(const Nearest& lists) {
    for (int row = 0; row < rows; row++)
      if (n[row]) merge(lists, row);
  }
};

struct CosineTopkJob {
  static constexpr int kDiagonal = 0;
  Nearest lists;
  bool itself;
  Candidates row, column;
  int64_t x0 = 0, row0 = 0, col0 = 0;

  void take(Scratch& scratch, int rows, int columns) {
    row.take(scratch, rows);
    if (itself) column.take(scratch, columns);
  }

  void begin(const PairUnit& u) {
    x0 = u.x0, col0 = u.col0;
    if (itself) column.begin(lists, x0 + u.col0, u.col1 - u.col0);
  }

  void rows(int64_t first, int64_t last) {
    row0 = first;
    row.begin(lists, x0 + first, last - first);
  }

  NoStep steps(int) const { return {}; }

  void tile(const PairTile& t) {
    const int first = (int)(t.row - row0), left = (int)(t.col - col0);
    for (int r = 0; r < t.rows; r++) {
      const vf bound = splat(row.bounds[first + r]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; v++) {
        const vf x = load(t.s + r * kTileColumns + v * W);
        vi reached = x >= bound;
        if (itself) reached |= x >= loadu(column.bounds + left + v * W);
        const uint32_t found = bits(reached);
        if (__builtin_expect(found, 0)) add(t, r, first + r, left, v * W, found);
      }
    }
  }

  void add(const PairTile& t, int r, int at, int left, int lane0, uint32_t found) {
    for (; found; found &= found - 1) {
      const int lane = lane0 + __builtin_ctz(found);
      if (lane < t.from[r] || lane >= t.to) continue;
      const float x = t.s[r * kTileColumns + lane];
      if (x >= row.bounds[at]) row.add(lists, at, x, t.col + lane);
      if (itself && x >= column.bounds[left + lane]) column.add(lists, left + lane, x, t.row + r);
    }
  }

  void rows_done() { row.finish(lists); }
  void end(const PairUnit&) {
    if (itself) column.finish(lists);
  }
};

static bool cosine_topk(const scfast::CosineTopkArgs* args) {
  const CosineArgs& where = args->where;
  const Pairs pairs(where);
  uint8_t* locks = (uint8_t*)calloc(kLocks, 1);
  const int64_t entries = where.n_cells ? where.cu_x[where.n_cells] * args->k : 0;
  for (int64_t i = 0; i < entries; i++) args->values[i] = -INFINITY, args->indices[i] = -1;
  const Nearest lists = {args->values, args->indices, args->k, locks};
  const bool done = locks && pairs.ready() && walk_pairs(pairs, CosineTopkJob{lists, where.y == nullptr, {}, {}});
  for (int64_t i = 0; i < entries; i++)
    if (args->indices[i] < 0) args->values[i] = NAN;
  free(locks);
  return done;
}

}  // namespace
