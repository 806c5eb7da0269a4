// Partial column sums, one per unit, that are added in index order, so that threads never change a result.
#pragma once
#include "walk.hpp"

namespace {

// One row of keys for every unit and every set of weights.
struct Partials {
  const Schedule& schedule;
  int sets;
  float* sums = nullptr;
  int64_t* first = nullptr;  // [cells of the schedule + 1] in units of keys
  int32_t* slot = nullptr;   // cell -> position in the schedule, -1 without queries

  Partials(const Schedule& s, int n_sets) : schedule(s), sets(n_sets) {
    const Geometry& g = s.g;
    first = (int64_t*)malloc(sizeof(int64_t) * (s.n_cells + 1));
    slot = (int32_t*)malloc(sizeof(int32_t) * (g.n_cells + 1));
    if (!first || !slot) return;
    for (int i = 0; i < g.n_cells; i++) slot[i] = -1;
    first[0] = 0;
    for (int i = 0; i < s.n_cells; i++) {
      const Cell cell = cell_at(g, s.cells[i]);
      slot[cell.index] = i;
      first[i + 1] = first[i] + (int64_t)s.heads * s.chunks_of(cell) * cell.keys;
    }
    sums = (float*)malloc(sizeof(float) * (size_t)first[s.n_cells] * sets + 64);
  }
  ~Partials() {
    free(first);
    free(slot);
    free(sums);
  }
  Partials(const Partials&) = delete;
  bool ready() const { return sums && first && slot; }

  float* of(const Cell& cell, int head, int chunk) const {
    return sums + (first[slot[cell.index]] + (int64_t)(head * schedule.chunks_of(cell) + chunk) * cell.keys) * sets;
  }

  // to[key] = sum over chunks of one head and set, times a factor; added to what is there unless `fresh`.
  void collect(const Cell& cell, int head, int set, float factor, bool fresh, float* to) const {
    if (fresh && cell.keys) memset(to, 0, sizeof(float) * cell.keys);
    if (slot[cell.index] < 0) return;
    for (int chunk = 0; chunk < schedule.chunks_of(cell); chunk++) {
      const float* from = of(cell, head, chunk) + (size_t)set * cell.keys;
      for (int j = 0; j < cell.keys; j++) to[j] += factor * from[j];
    }
  }
};

}  // namespace
