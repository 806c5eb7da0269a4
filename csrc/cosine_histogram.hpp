// cosine_histogram: how the similarities of all pairs are distributed: exact counts of even bins over [-1, 1], int64;
// smallest and largest, float32; sum and sum of squares, float64. Pairs that are NaN are counted apart.
// Bin b holds edges[b] <= s < edges[b + 1], the last one also s = 1: numpy.histogram of the same float32 numbers.
#pragma once
#include "cosine.hpp"

namespace {

constexpr int kTables = 4;  // neighbours in a vector count apart: an increment need not wait for the one before
constexpr int64_t kMostCounted = int64_t(1) << 31;  // pairs before 32-bit counts are added up

// Bins wait in a queue and are counted one a step while the next products run: counting by itself would add a fifth
// to the time of the products.
struct CountStep {
  const int32_t* place;
  uint32_t* counts;
  inline __attribute__((always_inline)) void operator()(int step) const { counts[place[step]]++; }
};

struct HistogramJob {
  static constexpr int kDiagonal = 0;
  const scfast::CosineHistogramArgs& a;
  double* partial;  // [units][4]: sum, squares, smallest, largest
  int32_t bins = 0, stride = 0;
  uint32_t* tables = nullptr;  // [kTables][bins + 2]: NaN, and what is no pair, come last
  int32_t *queue = nullptr, *nothing = nullptr;  // places in the tables; `nothing` is as deep as a product
  int head = 0, tail = 0, room = 0;
  double sums[W] = {}, squares[W] = {};
  vf low = {}, high = {};
  vi lanes = {}, table_of = {};
  int cell = 0;
  int64_t counted = 0;
  float half = 0, sure = 0;

  void take(Scratch& scratch, int rows, int) {
    bins = a.bins, stride = bins + 2;
    for (int lane = 0; lane < W; lane++) lanes[lane] = lane, table_of[lane] = lane % kTables * stride;
    tables = scratch.take<uint32_t>((size_t)kTables * stride);
    room = rows * kTileColumns;
    queue = scratch.take<int32_t>(room);
    nothing = scratch.take<int32_t>(kDepthBlock);
    half = 0.5f * bins;
    sure = 0.5f - bins * 0x1p-22f;  // bins between which rounding cannot decide
    if (scratch.measuring) return;
    memset(tables, 0, sizeof(uint32_t) * kTables * stride);
    for (int i = 0; i < kDepthBlock; i++) nothing[i] = bins + 1;
  }

  void begin(const PairUnit& u) {
    for (int lane = 0; lane < W; lane++) sums[lane] = squares[lane] = 0;
    low = splat(INFINITY), high = splat(-INFINITY);
    cell = u.cell;
  }

  void rows(int64_t, int64_t) {}

  CountStep steps(int depth) {
    if (tail - head < depth) {
      drain();
      return {nothing, tables};
    }
    head += depth;
    return {queue + head - depth, tables};
  }

  void drain() {
    for (; head < tail; head++) tables[queue[head]]++;
    head = tail = 0;
  }

  void tile(const PairTile& t) {
    if (tail + KT * kTileColumns > room) drain();
    vf sum = {}, square = {};
    for (int r = 0; r < t.rows; r++) {
      const float* s = t.s + r * kTileColumns;
      if (t.from[r] == 0 && t.to == kTileColumns) {
#pragma GCC unroll 4
        for (int v = 0; v < kTileVectors; v++) add<false>(load(s + v * W), vi{}, &sum, &square);
      } else {
        for (int v = 0; v < kTileVectors; v++) {
          const vi lane = lanes + v * W;
          const vi pair = (lane >= t.from[r]) & (lane < t.to);
          if (bits(pair)) add<true>(load(s + v * W), pair, &sum, &square);
        }
      }
    }
    for (int lane = 0; lane < W; lane++) sums[lane] += (double)sum[lane], squares[lane] += (double)square[lane];
    counted += KT * kTileColumns;
  }

  template <bool masked>
  inline __attribute__((always_inline)) void add(vf x, vi pair, vf* sum, vf* square) {
    const vf z = x * half + half;
    vi bin = __builtin_convertvector(z, vi);
    bin = bin < bins ? bin : splat(bins - 1);
    const vf off = (z - __builtin_convertvector(bin, vf)) - 0.5f;
    vi doubtful = ~((vf)((vi)off & 0x7fffffff) <= splat(sure));
    if (masked) {
      bin = pair ? bin : splat(bins + 1);
      doubtful &= pair;
      low = min(select(pair, x, low), low);
      high = max(select(pair, x, high), high);
      x = select(pair, x, vf{});
    } else {
      low = min(x, low);
      high = max(x, high);
    }
    int32_t* place = queue + tail;
    tail += W;
    *(vi*)place = bin + table_of;
    const uint32_t left = bits(doubtful);
    if (__builtin_expect(left, 0)) x = look_up(x, left, place);
    *sum = *sum + x;
    *square = x * x + *square;
  }

  // Lanes too close to a border for arithmetic, and NaN, which becomes 0 for the sums.
  __attribute__((noinline)) vf look_up(vf x, uint32_t left, int32_t* place) const {
    for (; left; left &= left - 1) {
      const int lane = __builtin_ctz(left), table = lane % kTables * stride;
      place[lane] = table + exactly(x[lane], place[lane] - table);
    }
    return select(x == x, x, vf{});
  }

  int exactly(float x, int bin) const {
    if (x != x) return bins;
    while (bin > 0 && x < a.edges[bin]) bin--;
    while (bin < bins - 1 && x >= a.edges[bin + 1]) bin++;
    return bin;
  }

  void rows_done() {
    if (counted > kMostCounted) flush();
  }

  void end(const PairUnit& u) {
    flush();
    double* to = partial + 4 * u.index;
    to[0] = to[1] = 0;
    float least = INFINITY, most = -INFINITY;
    for (int lane = 0; lane < W; lane++) {
      to[0] += sums[lane], to[1] += squares[lane];
      if (low[lane] < least) least = low[lane];
      if (high[lane] > most) most = high[lane];
    }
    to[2] = least, to[3] = most;
  }

  void flush() {
    drain();
    for (int bin = 0; bin <= bins; bin++) {
      int64_t n = 0;
      for (int table = 0; table < kTables; table++) n += tables[table * stride + bin];
      if (n) __atomic_fetch_add(a.counts + (size_t)cell * (bins + 1) + bin, n, __ATOMIC_RELAXED);
    }
    memset(tables, 0, sizeof(uint32_t) * kTables * stride);
    counted = 0;
  }
};

static bool cosine_histogram(const scfast::CosineHistogramArgs* args) {
  const Pairs pairs(args->where);
  if (!pairs.ready()) return false;
  double* partial = (double*)malloc(sizeof(double) * 4 * (pairs.units() + 1));
  if (!partial) return false;
  const bool done = walk_pairs(pairs, HistogramJob{*args, partial});
  if (done)
    for (int cell = 0; cell < args->where.n_cells; cell++) {
      double total[4] = {0, 0, INFINITY, -INFINITY};
      for (int64_t unit = pairs.first_unit[cell]; unit < pairs.first_unit[cell + 1]; unit++) {
        const double* part = partial + 4 * unit;
        total[0] += part[0], total[1] += part[1];
        if (part[2] < total[2]) total[2] = part[2];
        if (part[3] > total[3]) total[3] = part[3];
      }
      args->sum[cell] = total[0], args->squares[cell] = total[1];
      args->low[cell] = (float)total[2], args->high[cell] = (float)total[3];
    }
  free(partial);
  return done;
}

}  // namespace
