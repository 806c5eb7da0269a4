// How threads walk over all units of a call: head by head, or with all heads of an element at once.
// A job says which rows of a unit to visit, job.choose_rows(unit, rows), and takes each finished strip,
// job.strip(unit, strip, out, columns, &owed), where it leaves the columns that it wants summed.
#pragma once
#include "fused.hpp"

namespace {

struct Values {
  const void* v = nullptr;
  int64_t token = 0, head = 0;
  int dim = 0;
};

// One thread's state when each head of a unit is a strip of its own.
template <class Dot, class Job>
struct HeadWorker {
  const Geometry& g;
  const Values& values;
  Wants wants;
  const Job& job;
  StripBuffers<Dot> b;
  int32_t* rows = nullptr;
  int packed_cell = -1, packed_head = -1;

  void take(Scratch& scratch, int longest) {
    b.take(scratch, g, longest, values.dim, wants);
    rows = scratch.take<int32_t>(kRowsPerUnit);
  }

  void visit(const Unit& unit) {
    const int n_rows = job.choose_rows(unit, rows);
    if (n_rows == 0) return;
    const int kv_head = unit.head / (g.heads / g.kv_heads);
    if (unit.cell.index != packed_cell || kv_head != packed_head) {
      pack_keys(g, unit.cell, kv_head, b.k);
      if (wants.values)
        pack_values(values.v, values.token, values.head, values.dim, g.dtype, unit.cell, kv_head, b.v_columns, b.v);
      packed_cell = unit.cell.index, packed_head = kv_head;
    }
    const Score score = score_of(g, unit.cell, unit.head, Dot::kPack > 1);
    Columns owed = b.nothing_owed();
    for (int first = 0; first < n_rows; first += kLanes) {
      const int n = n_rows - first < kLanes ? n_rows - first : kLanes;
      pack_queries(g, unit.cell, unit.head, rows + first, n, score.query_factor, b.unpacked, b.q);
      Strip strip;
      visit_rows(b, score, rows + first, n, unit.cell.keys, wants, &owed, &strip);
      job.strip(unit, strip, b.out, b.v_columns, &owed);
    }
    settle(&owed);
  }
};

// The same when the heads of an element meet before the job sees them: its strip is the fused map itself
// (norm is 1; no lse, entropy or values).
template <class Dot, class Job>
struct FusedWorker {
  FusedStrips<Dot> strips;
  const Job& job;
  float* ones = nullptr;
  int32_t* rows = nullptr;

  void take(Scratch& scratch, int longest) {
    const int blocks = (longest + kKeys - 1) / kKeys + 1;
    strips.take(scratch, longest);
    ones = scratch.take<float>((size_t)blocks * kLanes);
    rows = scratch.take<int32_t>(kRowsPerUnit);
    if (!scratch.measuring)
      for (int i = 0; i < blocks * kLanes; i++) ones[i] = 1.f;
  }

  void visit(const Unit& unit) {
    const int n_rows = job.choose_rows(unit, rows);
    if (n_rows == 0) return;
    strips.load(unit.cell, 0, strips.g.heads);
    for (int first = 0; first < n_rows; first += kLanes) {
      const int n = n_rows - first < kLanes ? n_rows - first : kLanes;
      Strip strip = strips.visit(rows + first, n);
      settle(&strips.owed);
      strip.p = strips.map;
      strip.norm = ones;
      Columns owed = strips.b.nothing_owed();
      job.strip(unit, strip, nullptr, 0, &owed);
      settle(&owed);
    }
  }
};

// Every unit of the schedule, by copies of `prototype`. False: out of memory.
template <class Worker>
static bool walk(const Schedule& schedule, const Worker& prototype) {
  const int64_t units = schedule.units();
  const int longest = longest_key_list(schedule.g);
  const int threads = units < schedule.g.threads ? (units > 0 ? (int)units : 1) : schedule.g.threads;
  int64_t next = 0;
  bool failed = false;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch;
    Worker worker = prototype;
    worker.take(scratch, longest);  // measures; after the allocation the same call hands out
    if (scratch.allocate()) {
      worker.take(scratch, longest);
      int64_t begin, end;
      while (claim(&next, units, threads, &begin, &end))
        for (int64_t index = begin; index < end; index++) worker.visit(schedule.unit(index));
    } else {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    }
  }
  return !failed;
}

template <class Job>
static bool walk_heads(const Schedule& schedule, const Values& values, Wants wants, const Job& job) {
  const Geometry& g = schedule.g;
#if defined(SCFAST_BF16)
  if (g.dtype == kBfloat16) return walk(schedule, HeadWorker<Bfloat16Pair, Job>{g, values, wants, job, {}});
#endif
  return walk(schedule, HeadWorker<Float32, Job>{g, values, wants, job, {}});
}

template <class Job>
static bool walk_fused(const Schedule& schedule, int fusion, const float* head_weights, int columns, const Job& job) {
  const Geometry& g = schedule.g;
#if defined(SCFAST_BF16)
  if (g.dtype == kBfloat16)
    return walk(schedule, FusedWorker<Bfloat16Pair, Job>{{g, fusion, head_weights, columns}, job});
#endif
  return walk(schedule, FusedWorker<Float32, Job>{{g, fusion, head_weights, columns}, job});
}

}  // namespace
