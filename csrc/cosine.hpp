// THE loop over pairs of rows on a CPU: cosine similarities, a tile at a time, float32 in [-1, 1].
// Rows of x are broadcast, rows of y lie in the lanes; both come in panels, scaled to length 1. A job takes each tile
// while it is in the first-level cache. Non-finite rows have NaN with every other, rows of zeros have 0.
#pragma once
#include "cosine_panels.hpp"

namespace {

constexpr int kRowBlock = 192;  // rows of x whose panels stay in the second-level cache: 384 KB at 512 columns
constexpr int kMostColumns = 2016, kFewestColumns = 240;  // rows of y in panels at a time
constexpr int64_t kPanelWords = 1 << 20;                  // of them, at most: 4 MB a thread
constexpr int kFewestRows = 4 * kRowBlock;                // rows of x of a unit

// Part of a cell's pairs: a group of columns (rows of y) and a run of rows. Units follow from the sizes alone, never
// from threads. With x against itself, pairs are row < column.
struct PairUnit {
  int cell;
  int64_t index;                   // of all units
  int64_t x0, y0;                  // packed rows where the cell starts
  int64_t row0, row1, col0, col1;  // within the cell
  bool first_of_rows, first_of_columns;  // for what is counted once a row or a column
  bool itself;
};

struct PairTile {
  const float* s;      // [KT][kTileColumns]
  int64_t row, col;    // within the cell
  int rows;
  int from[KT], to;    // lanes that are pairs: from[row] <= lane < to
};

struct Pairs {
  const CosineArgs& a;
  int64_t* first_unit = nullptr;  // [n_cells + 1]

  explicit Pairs(const CosineArgs& args) : a(args) {
    first_unit = (int64_t*)malloc(sizeof(int64_t) * (a.n_cells + 1));
    if (!first_unit) return;
    first_unit[0] = 0;
    for (int cell = 0; cell < a.n_cells; cell++) first_unit[cell + 1] = first_unit[cell] + groups(cell) * chunks(cell);
  }
  ~Pairs() { free(first_unit); }
  Pairs(const Pairs&) = delete;
  bool ready() const { return first_unit; }
  int64_t units() const { return first_unit[a.n_cells]; }

  int64_t rows(int cell) const { return a.cu_x[cell + 1] - a.cu_x[cell]; }
  int64_t columns(int cell) const { return a.cu_y[cell + 1] - a.cu_y[cell]; }

  int64_t group_size(int64_t n) const {
    int64_t fits = kPanelWords / a.dim / kTileColumns * kTileColumns;
    if (fits > kMostColumns) fits = kMostColumns;
    int64_t size = (n / 16 + kTileColumns - 1) / kTileColumns * kTileColumns;
    if (size < kFewestColumns) size = kFewestColumns;
    if (size > fits) size = fits;
    return size < kTileColumns ? kTileColumns : size;
  }
  static int64_t chunk_size(int64_t n) {
    const int64_t size = (n / 8 + kRowBlock - 1) / kRowBlock * kRowBlock;
    return size < kFewestRows ? kFewestRows : size;
  }
  // At least one of each, so that rows without a partner are seen as well.
  int64_t groups(int cell) const {
    const int64_t n = columns(cell), size = group_size(n);
    return n ? (n + size - 1) / size : 1;
  }
  int64_t chunks(int cell) const {
    const int64_t n = rows(cell), size = chunk_size(n);
    return n ? (n + size - 1) / size : 1;
  }

  // The last group of columns first: with x against itself it is the longest.
  PairUnit unit(int64_t index) const {
    int low = 0, high = a.n_cells - 1;  // the last cell whose first unit is not beyond index
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first_unit[middle] <= index)
        low = middle;
      else
        high = middle - 1;
    }
    const int64_t within = index - first_unit[low], chunk = within % chunks(low);
    const int64_t group = groups(low) - 1 - within / chunks(low);
    const int64_t n = rows(low), m = columns(low), width = group_size(m), height = chunk_size(n);
    PairUnit u = {low,
                  index,
                  a.cu_x[low],
                  a.cu_y[low],
                  chunk * height,
                  (chunk + 1) * height,
                  group * width,
                  (group + 1) * width,
                  group == 0,
                  chunk == 0,
                  a.y == nullptr};
    if (u.row1 > n) u.row1 = n;
    if (u.col1 > m) u.col1 = m;
    return u;
  }
};

// One thread's state. A job has take(scratch, rows, columns), the most of each that it sees at a time, begin(unit),
// rows(first, last), steps(depth), what it still has to do while a product of that depth runs, tile(tile), rows_done(),
// end(unit), and kDiagonal: 1 if a row is also paired with itself.
template <class Dot, class Job>
struct PairWorker {
  const Pairs& pairs;
  Job job;
  Panels<Dot> p;
  float *c = nullptr, *a_factor = nullptr, *b_factor = nullptr;
  typename Dot::T *a = nullptr, *b = nullptr;
  int packed_cell = -1;
  int64_t packed_column = -1;
  int64_t zero_columns = 0;

  void take(Scratch& scratch) {
    const CosineArgs& args = pairs.a;
    int64_t widest = 0, tallest = 0;
    for (int cell = 0; cell < args.n_cells; cell++) {
      const int64_t m = pairs.columns(cell), n = pairs.rows(cell), size = pairs.group_size(m);
      if ((m < size ? m : size) > widest) widest = m < size ? m : size;
      if (n > tallest) tallest = n;
    }
    widest = (widest + kTileColumns - 1) / kTileColumns * kTileColumns;
    if (tallest > kRowBlock) tallest = kRowBlock;
    tallest = (tallest + KT - 1) / KT * KT;
    p.take(scratch, args);
    a = scratch.take<typename Dot::T>(tallest * p.depth);
    b = scratch.take<typename Dot::T>(widest * p.depth);
    c = scratch.take<float>(tallest * kTileColumns);
    a_factor = scratch.take<float>(tallest);
    b_factor = scratch.take<float>(widest);
    job.take(scratch, (int)tallest, (int)widest);
  }

  void visit(const PairUnit& u) {
    const CosineArgs& args = pairs.a;
    const void* y = u.itself ? args.x : args.y;
    const int64_t y_row = u.itself ? args.x_row : args.y_row;
    if (packed_cell != u.cell || packed_column != u.col0) {
      zero_columns = 0;
      for (int64_t j = u.col0; j < u.col1; j += kTileColumns)
        zero_columns += p.template pack<kTileColumns>(y, y_row, u.y0 + j, u.col1 - j, b + (j - u.col0) * p.depth,
                                                      b_factor + (j - u.col0));
      packed_cell = u.cell, packed_column = u.col0;
    }
    if (u.first_of_columns && zero_columns)
      __atomic_fetch_add(args.zeros + 2 * u.cell + (u.itself ? 0 : 1), zero_columns, __ATOMIC_RELAXED);
    const int64_t reach = u.col1 - 1 + Job::kDiagonal, end = u.itself && reach < u.row1 ? reach : u.row1;
    job.begin(u);
    for (int64_t i = u.row0; i < end; i += kRowBlock) {
      const int64_t last = i + kRowBlock < end ? i + kRowBlock : end;
      int64_t zero_rows = 0;
      for (int64_t r = i; r < last; r += KT)
        zero_rows +=
            p.template pack<KT>(args.x, args.x_row, u.x0 + r, last - r, a + (r - i) * p.depth, a_factor + (r - i));
      if (zero_rows && u.first_of_rows && !u.itself)
        __atomic_fetch_add(args.zeros + 2 * u.cell, zero_rows, __ATOMIC_RELAXED);
      job.rows(i, last);
      for (int64_t j = u.col0; j < u.col1; j += kTileColumns) block(u, i, last, j);
      job.rows_done();
    }
    job.end(u);
  }

  // Rows [i, last) x the columns of the panel at j.
  void block(const PairUnit& u, int64_t i, int64_t last, int64_t j) {
    const int columns = u.col1 - j < kTileColumns ? (int)(u.col1 - j) : kTileColumns;
    const int64_t reach = j + columns - 1 + Job::kDiagonal;  // from here on all columns are smaller
    if (u.itself && reach < last) last = reach;
    const typename Dot::T* panel = b + (j - u.col0) * p.depth;
    const float* factors = b_factor + (j - u.col0);
    for (int d = 0; d < p.depth; d += kDepthBlock) {
      const int depth = p.depth - d < kDepthBlock ? p.depth - d : kDepthBlock;
      const bool done = d + depth == p.depth;
      for (int64_t r = i; r < last; r += KT) {
        float* tile = c + (r - i) * kTileColumns;
        product<Dot>(a + (r - i) * p.depth + d * KT, panel + (int64_t)d * kTileColumns, depth, p.depth * KT,
                     a_factor + (r - i), factors, d == 0, done, tile, job.steps(depth));
        if (done) finish(u, r, last, j, columns, tile);
      }
    }
  }

  void finish(const PairUnit& u, int64_t r, int64_t last, int64_t j, int columns, const float* s) {
    PairTile t;
    t.s = s, t.row = r, t.col = j, t.to = columns;
    t.rows = last - r < KT ? (int)(last - r) : KT;
    for (int row = 0; row < KT; row++) {
      const int64_t from = r + row + 1 - Job::kDiagonal - j;
      t.from[row] = u.itself && from > 0 ? (int)from : 0;
    }
    job.tile(t);
  }
};

// Every unit, by copies of `prototype`. False: out of memory.
template <class Dot, class Job>
static bool walk_pairs_as(const Pairs& pairs, const Job& prototype) {
  const int64_t units = pairs.units();
  const int threads = units < pairs.a.threads ? (units > 0 ? (int)units : 1) : pairs.a.threads;
  int64_t next = 0;
  bool failed = false;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch;
    PairWorker<Dot, Job> worker = {pairs, prototype, {}};
    worker.take(scratch);
    if (scratch.allocate()) {
      worker.take(scratch);
      int64_t begin, end;
      while (claim(&next, units, 2 * threads, &begin, &end))
        for (int64_t index = begin; index < end; index++) worker.visit(pairs.unit(index));
    } else {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    }
  }
  return !failed;
}

template <class Job>
static bool walk_pairs(const Pairs& pairs, const Job& prototype) {
#if defined(SCFAST_BF16)
  if (pairs.a.dtype == kBfloat16) return walk_pairs_as<Bfloat16Pair>(pairs, prototype);
#endif
  return walk_pairs_as<Float32>(pairs, prototype);
}

}  // namespace
