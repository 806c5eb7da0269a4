// Column sums of strips, and partial sums that are added in index order, so that threads never change a result.
#pragma once
#include "walk.hpp"

namespace {

// sums[key] += sum_lane weight[lane] * probability[key][lane]; weight is 0 on lanes without a row.
template <int NV>
static void add_column_sums(const Strip& s, const float* weight, float* sums) {
  for (int first = 0; first < s.keys; first += kKeys) {
    const int keys = s.keys - first < kKeys ? s.keys - first : kKeys;
    const float* norm = s.norm + (first / kKeys) * NV * W;
    vf factor[NV];
    for (int v = 0; v < NV; v++) factor[v] = load(weight + v * W) * load(norm + v * W);
    int key = 0;
    for (; key + W <= keys; key += W) {
      const float* p = s.p + (size_t)(first + key) * NV * W;
      vf each[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) {
        each[i] = factor[0] * load(p + i * NV * W);
#pragma GCC unroll 4
        for (int v = 1; v < NV; v++) each[i] += factor[v] * load(p + (i * NV + v) * W);
      }
      storeu(sums + first + key, loadu(sums + first + key) + sum_each(each));
    }
    if (key < keys) {
      const float* p = s.p + (size_t)(first + key) * NV * W;
      vf each[W];
      for (int i = 0; i < W; i++) {
        each[i] = vf{};
        if (key + i < keys)
          for (int v = 0; v < NV; v++) each[i] += factor[v] * load(p + (i * NV + v) * W);
      }
      const vf total = sum_each(each);
      for (int i = 0; key + i < keys; i++) sums[first + key + i] += total[i];
    }
  }
}

SCFAST_INLINE void add_columns(const Strip& s, const float* weight, float* sums) {
  if (s.lanes == W)
    add_column_sums<1>(s, weight, sums);
  else if (s.lanes == 2 * W)
    add_column_sums<2>(s, weight, sums);
  else
    add_column_sums<3>(s, weight, sums);
}

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
      first[i + 1] = first[i] + (int64_t)s.heads * units_of(cell) * cell.keys;
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
    return sums + (first[slot[cell.index]] + (int64_t)(head * units_of(cell) + chunk) * cell.keys) * sets;
  }

  // to[key] = sum over chunks of one head and set, times a factor; added to what is there unless `fresh`.
  void collect(const Cell& cell, int head, int set, float factor, bool fresh, float* to) const {
    if (fresh && cell.keys) memset(to, 0, sizeof(float) * cell.keys);
    if (slot[cell.index] < 0) return;
    for (int chunk = 0; chunk < units_of(cell); chunk++) {
      const float* from = of(cell, head, chunk) + (size_t)set * cell.keys;
      for (int j = 0; j < cell.keys; j++) to[j] += factor * from[j];
    }
  }
};

}  // namespace
