// How threads walk over all units of a call: head by head, or with all heads of an element at once.
#pragma once
#include "pack.hpp"

namespace {

struct Values {
  const void* v = nullptr;
  int64_t token = 0, head = 0;
  int dim = 0;
};

// Calls job.choose_rows(unit, rows) for the rows of a unit to visit, and job.strip(unit, strip, out) on each finished strip.
template <class Dot, class Job>
static bool walk_heads(const Geometry& g, const Schedule& schedule, const Values& values, Wants wants, Job& job) {
  const int64_t units = schedule.units();
  const int group = g.heads / (g.kv_heads ? g.kv_heads : 1), longest = longest_key_list(g);
  int64_t next = 0;
  bool failed = false;
  const int threads = units < g.threads ? (units > 0 ? (int)units : 1) : g.threads;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch;
    StripBuffers<Dot> b;
    b.take(scratch, g, longest, values.dim, wants);
    int32_t* rows = scratch.take<int32_t>(kRowsPerUnit);
    if (!scratch.allocate()) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    } else {
      b.take(scratch, g, longest, values.dim, wants);
      rows = scratch.take<int32_t>(kRowsPerUnit);
      int packed_cell = -1, packed_head = -1;
      int64_t begin, end;
      while (claim(&next, units, threads, &begin, &end)) {
        for (int64_t index = begin; index < end; index++) {
          const Unit unit = schedule.unit(index);
          const int kv_head = unit.head / group;
          const int n_rows = job.choose_rows(unit, rows);
          if (n_rows == 0) continue;
          if (unit.cell.index != packed_cell || kv_head != packed_head) {
            pack_keys(g, unit.cell, kv_head, b.k);
            if (wants.values)
              pack_values(values.v, values.token, values.head, values.dim, g.dtype, unit.cell, kv_head, b.v_columns,
                          b.v);
            packed_cell = unit.cell.index, packed_head = kv_head;
          }
          const Score score = score_of(g, unit.cell, unit.head, Dot::kPack > 1);
          for (int first = 0; first < n_rows; first += kLanes) {
            const int n = n_rows - first < kLanes ? n_rows - first : kLanes;
            pack_queries(g, unit.cell, unit.head, rows + first, n, score.query_factor, b.unpacked, b.q);
            Strip strip;
            visit_rows(b, score, rows + first, n, unit.cell.keys, wants, &strip);
            job.strip(unit, strip, b.out, b.v_columns);
          }
        }
      }
    }
  }
  return !failed;
}

// fused <- fusion over heads of head_weight * probability, all heads' strips over the same rows.
SCFAST_INLINE void fuse(const Strip& s, int fusion, float head_weight, bool first, float* fused) {
  const vf factor = splat(head_weight);
  for (int key = 0; key < s.keys; key++)
    for (int lane = 0; lane < s.lanes; lane += W) {
      const vf p = load(s.p + key * s.lanes + lane) * load(s.norm + (key / kKeys) * s.lanes + lane) * factor;
      float* to = fused + key * s.lanes + lane;
      if (first) store(to, p);
      else if (fusion == scfast::kSum) store(to, load(to) + p);
      else if (fusion == scfast::kMax) store(to, select(p != p, p, max(p, load(to))));
      else store(to, select(p != p, p, -max(-p, -load(to))));
    }
}

// As walk_heads, but the strip that the job sees is the fused map itself (norm is 1; no lse, entropy or values).
template <class Dot, class Job>
static bool walk_fused(const Geometry& g, const Schedule& schedule, int fusion, const float* head_weights, Job& job) {
  const int64_t units = schedule.units();
  const int group = g.heads / (g.kv_heads ? g.kv_heads : 1), longest = longest_key_list(g);
  const int blocks = (longest + kKeys - 1) / kKeys + 1;
  const Wants wants = {true, false, false};
  int64_t next = 0;
  bool failed = false;
  const int threads = units < g.threads ? (units > 0 ? (int)units : 1) : g.threads;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch;
    StripBuffers<Dot> b;
    typename Dot::T* keys = nullptr;
    float *fused = nullptr, *ones = nullptr;
    int32_t* rows = nullptr;
    bool ready = true;
    for (int pass = 0; pass < 2 && ready; pass++) {  // measure, then hand out
      if (pass == 1) ready = scratch.allocate();
      if (!ready) break;
      b.take(scratch, g, longest, 0, wants);
      keys = scratch.take<typename Dot::T>((size_t)g.kv_heads * (longest + KT) * b.depth);
      fused = scratch.take<float>((size_t)blocks * kKeys * kLanes);
      ones = scratch.take<float>((size_t)blocks * kLanes);
      rows = scratch.take<int32_t>(kRowsPerUnit);
    }
    if (!ready) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    } else {
      for (int i = 0; i < blocks * kLanes; i++) ones[i] = 1.f;
      int packed_cell = -1;
      int64_t begin, end;
      while (claim(&next, units, threads, &begin, &end)) {
        for (int64_t index = begin; index < end; index++) {
          const Unit unit = schedule.unit(index);
          const int n_rows = job.choose_rows(unit, rows);
          if (n_rows == 0) continue;
          const size_t head_size = (size_t)(longest + KT) * b.depth;
          if (unit.cell.index != packed_cell)
            for (int h = 0; h < g.kv_heads; h++) pack_keys(g, unit.cell, h, keys + h * head_size);
          packed_cell = unit.cell.index;
          for (int first = 0; first < n_rows; first += kLanes) {
            const int n = n_rows - first < kLanes ? n_rows - first : kLanes;
            Strip strip;
            for (int h = 0; h < g.heads; h++) {
              const Score score = score_of(g, unit.cell, h, Dot::kPack > 1);
              b.k = keys + (h / group) * head_size;
              pack_queries(g, unit.cell, h, rows + first, n, score.query_factor, b.unpacked, b.q);
              visit_rows(b, score, rows + first, n, unit.cell.keys, wants, &strip);
              fuse(strip, fusion, head_weights ? head_weights[h] : 1.f, h == 0, fused);
            }
            strip.p = fused;
            strip.norm = ones;
            job.strip(unit, strip, nullptr, 0);
          }
        }
      }
    }
  }
  return !failed;
}

// Runs walk(Float32) or, where the machine has the instruction and the inputs are bfloat16, walk(Bfloat16Pair).
#if defined(SCFAST_BF16)
#define SCFAST_WALK(g, walk, ...) \
  ((g).dtype == kBfloat16 ? walk<Bfloat16Pair>(g, __VA_ARGS__) : walk<Float32>(g, __VA_ARGS__))
#else
#define SCFAST_WALK(g, walk, ...) walk<Float32>(g, __VA_ARGS__)
#endif

}  // namespace
