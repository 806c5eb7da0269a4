// cosine_threshold: the pairs whose similarity reaches a threshold, as CSR: indptr int64 [N + 1], columns (packed rows
// of y) int64 rising within each row, float32 similarities. Pairs that are NaN are left out.
#pragma once
#include "cosine.hpp"

namespace {

struct FoundPair {
  int32_t row, column;  // within the cell
  float s;
};

// What a unit found: of each row in the order of its columns.
struct FoundPairs {
  FoundPair* pairs;
  int64_t n, room;

  bool add(const FoundPair& pair) {
    if (n == room) {
      const int64_t more = room ? 2 * room : 1024;
      FoundPair* grown = (FoundPair*)realloc(pairs, sizeof(FoundPair) * more);
      if (!grown) return false;
      pairs = grown, room = more;
    }
    pairs[n++] = pair;
    return true;
  }
};

struct ThresholdJob {
  static constexpr int kDiagonal = 0;
  const scfast::CosineThresholdArgs& a;
  FoundPairs* units;
  int64_t* total;  // of all threads
  bool* failed;
  FoundPairs* found = nullptr;
  int64_t reported = 0;
  bool stopped = false;

  void take(Scratch&, int, int) {}
  void begin(const PairUnit& u) { found = units + u.index, reported = 0; }
  void rows(int64_t, int64_t) {
    stopped = __atomic_load_n(total, __ATOMIC_RELAXED) > a.most || __atomic_load_n(failed, __ATOMIC_RELAXED);
  }

  NoStep steps(int) const { return {}; }

  void tile(const PairTile& t) {
    if (stopped) return;
    const vf least = splat(a.threshold);
    for (int r = 0; r < t.rows; r++)
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; v++) {
        const uint32_t reached = bits(load(t.s + r * kTileColumns + v * W) >= least);
        if (__builtin_expect(reached, 0)) add(t, r, v * W, reached);
      }
  }

  void add(const PairTile& t, int r, int lane0, uint32_t reached) {
    for (; reached; reached &= reached - 1) {
      const int lane = lane0 + __builtin_ctz(reached);
      if (lane < t.from[r] || lane >= t.to) continue;
      if (found->add({(int32_t)(t.row + r), (int32_t)(t.col + lane), t.s[r * kTileColumns + lane]})) continue;
      __atomic_store_n(failed, true, __ATOMIC_RELAXED);
      stopped = true;
      return;
    }
  }

  void rows_done() {
    __atomic_fetch_add(total, found->n - reported, __ATOMIC_RELAXED);
    reported = found->n;
  }
  void end(const PairUnit&) {}
};

// The units' pairs to where they belong; their memory is given back as it is read.
static bool gather_pairs(const Pairs& pairs, FoundPairs* units, int64_t total, scfast::CosineThresholdArgs* args) {
  const int64_t n = args->where.cu_x[args->where.n_cells];
  int64_t* next = args->indptr;  // first counts, then starts, at the end ends: of the row before
  memset(next, 0, sizeof(int64_t) * (n + 1));
  args->indices = (int64_t*)malloc(sizeof(int64_t) * (total + 1));
  args->values = (float*)malloc(sizeof(float) * (total + 1));
  if (!args->indices || !args->values) return false;
  for (int64_t i = 0; i < pairs.units(); i++)
    for (int64_t j = 0, x0 = pairs.unit(i).x0; j < units[i].n; j++) next[x0 + units[i].pairs[j].row + 1]++;
  for (int64_t row = n, left = total; row > 0; row--) left -= next[row], next[row] = left;
  for (int cell = 0; cell < args->where.n_cells; cell++) {
    const int64_t x0 = args->where.cu_x[cell], y0 = args->where.cu_y[cell], chunks = pairs.chunks(cell);
    for (int64_t group = pairs.groups(cell); group-- > 0;)  // units begin with the last group
      for (int64_t chunk = 0; chunk < chunks; chunk++) {
        FoundPairs* unit = units + pairs.first_unit[cell] + group * chunks + chunk;
        for (int64_t j = 0; j < unit->n; j++) {
          const FoundPair& pair = unit->pairs[j];
          const int64_t at = next[x0 + pair.row + 1]++;
          args->indices[at] = y0 + pair.column;
          args->values[at] = pair.s;
        }
        free(unit->pairs);
        unit->pairs = nullptr;
      }
  }
  return true;
}

static bool cosine_threshold(scfast::CosineThresholdArgs* args) {
  const Pairs pairs(args->where);
  if (!pairs.ready()) return false;
  FoundPairs* units = (FoundPairs*)calloc(pairs.units() + 1, sizeof(FoundPairs));
  if (!units) return false;
  bool failed = false;
  args->found = 0;
  bool done = walk_pairs(pairs, ThresholdJob{*args, units, &args->found, &failed}) && !failed;
  if (done && args->found <= args->most) done = gather_pairs(pairs, units, args->found, args);
  for (int64_t i = 0; i < pairs.units(); i++) free(units[i].pairs);
  free(units);
  return done;
}

}  // namespace
