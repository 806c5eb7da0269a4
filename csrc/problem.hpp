// One call's inputs seen cell by cell, the units of work they make, and how threads share them.
#pragma once
#include <float.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "args.hpp"
#include "convert.hpp"
#include "gemm_tile.hpp"

namespace {

using scfast::Geometry;

constexpr int kRowsPerUnit = 480;  // packing.py: ROWS_PER_UNIT; every strip height divides it
constexpr float kLog2e = 1.44269504f;
constexpr float kLn2 = 0.69314718f;

struct Cell {
  int index, queries, keys, causal_offset;
  int64_t first_query, first_key;  // packed rows
};

SCFAST_INLINE Cell cell_at(const Geometry& g, int index) {
  const int32_t *q = g.cu_seqlens_q + index, *k = g.cu_seqlens_k + index;
  return {index, q[1] - q[0], k[1] - k[0], g.causal_offset[index], q[0], k[0]};
}

SCFAST_INLINE int longest_key_list(const Geometry& g) {
  int longest = 0;
  for (int i = 0; i < g.n_cells; i++) {
    const int keys = g.cu_seqlens_k[i + 1] - g.cu_seqlens_k[i];
    if (keys > longest) longest = keys;
  }
  return longest;
}

// A unit of work: some queries of one head (or of all heads at once: head 0) of one cell.
struct Unit {
  Cell cell;
  int head, chunk, first_row, rows;
  int64_t index;  // in the schedule
};

// Units in the order of the packing's work list, the chunks of one head side by side so that its keys are read once.
// Indices of units: [cells with queries][heads][chunks].
struct Schedule {
  const Geometry& g;
  int heads;        // head slots per cell: H, or 1 when the heads of an element are visited together
  int rows;         // queries of a unit at most
  int n_cells = 0;  // cells that have queries
  int32_t* cells = nullptr;
  int64_t* first_unit = nullptr;  // [n_cells + 1]

  Schedule(const Geometry& geometry, int head_slots, int rows_per_unit = kRowsPerUnit)
      : g(geometry), heads(head_slots), rows(rows_per_unit) {
    cells = (int32_t*)malloc(sizeof(int32_t) * (g.n_cells + 1));
    first_unit = (int64_t*)malloc(sizeof(int64_t) * (g.n_cells + 1));
    if (!cells || !first_unit) return;
    first_unit[0] = 0;
    for (int w = 0; w < g.n_work; w++) {
      if (g.work[2 * w + 1] != 0) continue;  // a cell's later chunks
      cells[n_cells] = g.work[2 * w];
      first_unit[n_cells + 1] = first_unit[n_cells] + (int64_t)heads * chunks_of(cell_at(g, cells[n_cells]));
      n_cells++;
    }
  }
  ~Schedule() {
    free(cells);
    free(first_unit);
  }
  Schedule(const Schedule&) = delete;
  bool ready() const { return cells && first_unit; }
  int64_t units() const { return first_unit[n_cells]; }
  int chunks_of(const Cell& cell) const { return (cell.queries + rows - 1) / rows; }

  Unit unit(int64_t index) const {
    int low = 0, high = n_cells - 1;  // the last cell whose first unit is not beyond index
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first_unit[middle] <= index)
        low = middle;
      else
        high = middle - 1;
    }
    Unit u;
    u.cell = cell_at(g, cells[low]);
    const int64_t within = index - first_unit[low];
    const int chunks = chunks_of(u.cell);
    u.head = (int)(within / chunks);
    u.chunk = (int)(within % chunks);
    u.first_row = u.chunk * rows;
    u.index = index;
    u.rows = u.cell.queries - u.first_row < rows ? u.cell.queries - u.first_row : rows;
    return u;
  }
};

// Hands out runs of consecutive units, long ones first: half of what is left divided among the threads.
SCFAST_INLINE bool claim(int64_t* next, int64_t units, int threads, int64_t* begin, int64_t* end) {
  int64_t start = __atomic_load_n(next, __ATOMIC_RELAXED), stop;
  do {
    if (start >= units) return false;
    const int64_t share = (units - start) / (2 * threads);
    stop = start + (share > 1 ? share : 1);
  } while (!__atomic_compare_exchange_n(next, &start, stop, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  *begin = start;
  *end = stop;
  return true;
}

constexpr size_t kHugePage = 2 << 20;

// Working memory of one thread, handed out in cache lines; sizes are summed first, then one allocation.
struct Scratch {
  char* base = nullptr;
  size_t used = 0;
  bool measuring = true;

  template <class T>
  T* take(size_t n) {
    T* p = measuring ? nullptr : (T*)(base + used);
    used += (n * sizeof(T) + 127) / 64 * 64;  // a line between arrays: tiles may read past an end, never write
    return p;
  }
  bool allocate() {
    const size_t page = used >= kHugePage ? kHugePage : 64;
    const size_t size = (used + page - 1) / page * page + (page == 64 ? 64 : 0);
    base = (char*)aligned_alloc(page, size);
#if defined(MADV_HUGEPAGE)
    if (base && page == kHugePage) madvise(base, size, MADV_HUGEPAGE);
#endif
    used = 0;
    measuring = false;
    return base != nullptr;
  }
  ~Scratch() { free(base); }
};

}  // namespace
