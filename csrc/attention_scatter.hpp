// attention_scatter: out[source][target] += sum over pairs (key j, query i) of a cell with these ids of A[i][j], A the
// map with its heads fused. Sums in the type of out, float64 or float32; ids of -1 and sources outside the rows that
// out holds are left out.
//
// The queries of a cell are taken in the order of their targets, a band of them at a time: its maps are computed, then
// added key by key, to a run of neighbouring lines in the row of each key. Bands that lie side by side share no element
// unless a target repeats, so threads add without regard to each other; where two bands may share one, the later waits
// for the earlier. An element gets its summands in the order of the bands, then of the keys, then of the queries,
// whatever the number of threads.
#pragma once
#include <sched.h>

#include "walk.hpp"

namespace {

constexpr int kBandStrips = 2; // a longer run of lines a key is hardly faster, and its maps leave the cache
constexpr int kBandRows = kBandStrips * kLanes;
constexpr int kRowsAtOnce = 8;

struct Band {
  Cell cell;
  int rows; // <= kBandRows
  const int32_t* row; // [rows] query within the cell, by target
  int32_t lowest, highest; // targets
  bool added;
};

// The queries that have a target, band by band, in the order of the cells.
struct Bands {
  const scfast::ScatterArgs& a;
  Band* band = nullptr;
  int64_t n = 0, next = 0;

  explicit Bands(const scfast::ScatterArgs& args) : a(args) {
    const Geometry& g = a.where;
    for (int i = 0; i < g.n_cells; i++) n += (counted(cell_at(g, i)) + kBandRows - 1) / kBandRows;
    band = (Band*)malloc(sizeof(Band) * (n + 1));
    if (!band) return;
    Band* b = band;
    for (int i = 0; i < g.n_cells; i++) {
      const Cell cell = cell_at(g, i);
      const int32_t* target = a.targets + cell.first_query;
      int left = counted(cell);
      const int32_t* row = a.query_order + cell.first_query + cell.queries - left; // those without come first
      for (; left > 0; left -= kBandRows, row += kBandRows) {
        const int rows = left < kBandRows ? left : kBandRows;
        *b++ = {cell, rows, row, target[row[0]], target[row[rows - 1]], false};
      }
    }
  }
  ~Bands() { free(band); }
  Bands(const Bands&) = delete;

  int counted(const Cell& cell) const {
    const int32_t *order = a.query_order + cell.first_query, *target = a.targets + cell.first_query;
    int low = 0, high = cell.queries; // the first in order whose target is not below 0
    while (low < high) {
      const int middle = (low + high) / 2;
      if (target[order[middle]] < 0)
        low = middle + 1;
      else
        high = middle;
    }
    return cell.queries - low;
  }

  // Waits for the earlier bands that may share an element with band `index`. All before `first` have been added.
  void await_turn(int64_t index, int64_t* first) const {
    const Band& mine = band[index];
    while (*first < index && added(*first)) ++*first;
    for (int64_t i = *first; i < index; i++)
      if (band[i].lowest <= mine.highest && mine.lowest <= band[i].highest)
        while (!added(i)) sched_yield();
  }
  bool added(int64_t index) const { return __atomic_load_n(&band[index].added, __ATOMIC_ACQUIRE); }
};

// The maps of one band, and their way into out.
template <class Dot>
struct BandWorker {
  const scfast::ScatterArgs& a;
  FusedStrips<Dot> strips;
  float* map[kBandStrips] = {}; // [keys][lanes]
  int keys[kBandStrips] = {}, lanes[kBandStrips] = {}, rows[kBandStrips] = {};
  int n_strips = 0;
  int32_t target[kBandRows] = {};
  int64_t line[kBandRows] = {}; // offsets within a row of out
  int n_lines = 0;

  void take(Scratch& scratch, int longest) {
    strips.take(scratch, longest);
    map[0] = strips.map;
    for (int i = 1; i < kBandStrips; i++) map[i] = strips.take_map(scratch, longest);
  }

  void compute(const Band& band) {
    strips.load(band.cell, 0, strips.g.heads);
    n_strips = (band.rows + kLanes - 1) / kLanes;
    for (int s = 0; s < n_strips; s++) {
      const int left = band.rows - s * kLanes;
      strips.map = map[s];
      const Strip strip = strips.visit(band.row + s * kLanes, left < kLanes ? left : kLanes);
      if (s + 1 < n_strips) settle(&strips.owed); // the last is, block by block, as its keys are added
      keys[s] = strip.keys, lanes[s] = strip.lanes, rows[s] = strip.rows;
    }
  }

  // The row of out of a key, or null.
  template <class T>
  T* row_of(const Cell& cell, int key) const {
    if (key >= cell.keys) return nullptr;
    const int64_t row = (int64_t)a.sources[cell.first_key + key] - a.first_source;
    return row >= 0 && row < a.n_sources ? (T*)a.out + row * a.out_row : nullptr;
  }

  template <class T>
  void add(const Band& band) {
    constexpr int per_line = kCacheLine / sizeof(T);
    n_lines = 0;
    for (int i = 0; i < band.rows; i++) {
      target[i] = a.targets[band.cell.first_query + band.row[i]];
      const int64_t at = target[i] / per_line * per_line;
      if (n_lines == 0 || at != line[n_lines - 1]) line[n_lines++] = at;
    }
    T* next = row_of<T>(band.cell, 0);
    for (int key = 0; key < band.cell.keys; key++) {
      if (key % kKeys == 0 && key < keys[n_strips - 1]) strips.block(key);
      T* to = next;
      next = row_of<T>(band.cell, key + 1);
      // The next key's lines are asked for between the additions: all at once, they hold up what is there already.
      int asked = 0;
      for (int s = 0; s < n_strips; s++) {
        const float* p = map[s] + (size_t)key * lanes[s];
        const bool seen = to && key < keys[s]; // by some query
        for (int first = 0; first < rows[s]; first += kRowsAtOnce) {
          if (next)
            for (int i = 0; i < kRowsAtOnce && asked < n_lines; i++) __builtin_prefetch(next + line[asked++], 1);
          const int end = first + kRowsAtOnce < rows[s] ? first + kRowsAtOnce : rows[s];
          if (seen)
            for (int i = first; i < end; i++) to[target[s * kLanes + i]] += (T)p[i];
        }
      }
    }
  }
};

template <class Dot>
static bool scatter_maps(const scfast::ScatterArgs* args) {
  const Geometry& g = args->where;
  Bands bands(*args);
  if (!bands.band) return false;
  const int longest = longest_key_list(g);
  bool failed = false;
#pragma omp parallel num_threads(g.threads)
  {
    Scratch scratch;
    BandWorker<Dot> worker = {*args, {g, scfast::kSum, args->head_weights, 0}};
    worker.take(scratch, longest); // measures; after the allocation the same call hands out
    if (scratch.allocate()) {
      worker.take(scratch, longest);
      int64_t index, first = 0;
      while ((index = __atomic_fetch_add(&bands.next, 1, __ATOMIC_RELAXED)) < bands.n) {
        Band& band = bands.band[index];
        worker.compute(band);
        bands.await_turn(index, &first);
        if (args->wide)
          worker.template add<double>(band);
        else
          worker.template add<float>(band);
        __atomic_store_n(&band.added, true, __ATOMIC_RELEASE);
      }
    } else {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    }
  }
  return !failed;
}

static bool attention_scatter(const scfast::ScatterArgs* args) {
#if defined(SCFAST_BF16)
  if (args->where.dtype == kBfloat16) return scatter_maps<Bfloat16Pair>(args);
#endif
  return scatter_maps<Float32>(args);
}

} // namespace
