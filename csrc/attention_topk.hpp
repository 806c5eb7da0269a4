// attention_topk: the n largest entries of every row of the fused map and their keys, largest first, equal ones in the
// order of their keys; float32 and int64 [Tq, Hout, n]. Keys out of sight do not count; where fewer than n are in
// sight, the rest is value 0 and key -1. A row that holds NaN is NaN throughout.
#pragma once
#include "walk.hpp"

namespace {

// Groups of keys. The n-th largest of their maxima is a bound that n entries of the row reach: a pass over the strip
// then finds few more than the n wanted ones above it.
constexpr int kGroups = 128;
constexpr int kBisections = 16;  // of 2^32 bit patterns: to 2^-8 of a value in the worst case

// The bits of a float as an integer of the same order; those of positive numbers as they are.
SCFAST_INLINE vi ordered(vi x) { return x ^ ((x >> 31) & 0x7fffffff); }

// The n best so far: a heap whose root is the worst of them, written where the result belongs.
struct Best {
  float* value;
  int64_t* key;

  bool worse(int i, int j) const { return value[i] < value[j] || (value[i] == value[j] && key[i] > key[j]); }

  void swap(int i, int j) const {
    const float v = value[i];
    const int64_t k = key[i];
    value[i] = value[j], key[i] = key[j];
    value[j] = v, key[j] = k;
  }

  void sift(int i, int size) const {
    for (int child = 2 * i + 1; child < size; i = child, child = 2 * i + 1) {
      if (child + 1 < size && worse(child + 1, child)) child++;
      if (!worse(child, i)) return;
      swap(child, i);
    }
  }

  void heapify(int size) const {
    for (int i = size / 2 - 1; i >= 0; i--) sift(i, size);
  }

  void sort(int size) const {  // of a heap: the worst goes to the end
    while (--size > 0) {
      swap(0, size);
      sift(0, size);
    }
  }
};

struct TopkJob {
  const scfast::TopkArgs& a;
  bool fused;

  int choose_rows(const Unit& unit, int32_t* rows) const {
    for (int i = 0; i < unit.rows; i++) rows[i] = unit.first_row + i;
    return unit.rows;
  }

  void strip(const Unit& unit, const Strip& s, const float*, int, Columns*) const {
    const float weight = !fused && a.head_weights ? a.head_weights[unit.head] : 1.f;
    const int outs = a.fusion == scfast::kNone ? a.where.heads : 1;
    float above[kLanes] __attribute__((aligned(64)));  // only larger entries are of interest
    float last[kLanes] __attribute__((aligned(64)));   // key in sight
    int found[kLanes];
    Best best[kLanes];
    for (int i = 0; i < s.lanes; i++) {
      const int sees = i >= s.rows ? -1 : a.where.causal ? s.row[i] + unit.cell.causal_offset : s.keys - 1;
      last[i] = (float)(sees < s.keys ? sees : s.keys - 1);
      found[i] = 0;
      const int64_t at = i < s.rows ? ((unit.cell.first_query + s.row[i]) * outs + unit.head) * a.n : 0;
      best[i] = {a.values + at, a.keys + at};
    }
    bound(s, weight, last, above);
    for (int key = 0; key < s.keys; key++)
      for (int lane = 0; lane < s.lanes; lane += W) {
        const vf x = entry(s, key, lane, weight);
        uint32_t chosen = bits((x > load(above + lane)) & (splat((float)key) <= load(last + lane)));
        for (; chosen; chosen &= chosen - 1) {
          const int i = __builtin_ctz(chosen), at = lane + i;
          take(best[at], x[i], key, &found[at], &above[at]);
        }
      }
    for (int i = 0; i < s.rows; i++)
      finish(best[i], found[i], last[i], s.keys ? entry(s, 0, i / W * W, weight)[i % W] : 0.f);
  }

  SCFAST_INLINE vf entry(const Strip& s, int key, int lane, float weight) {
    return load(s.p + (size_t)key * s.lanes + lane) * (load(s.norm + (key / kKeys) * s.lanes + lane) * weight);
  }

  // above[lane] <- less than the n-th largest entry of the row, by little.
  void bound(const Strip& s, float weight, const float* last, float* above) const {
    const int size = (s.keys + kGroups - 1) / kGroups, groups = size ? (s.keys + size - 1) / size : 0;
    const vf least = splat(-INFINITY);
    for (int lane = 0; lane < s.lanes; lane += W) {
      store(above + lane, least);
      if (groups < a.n) continue;
      vi largest[kGroups];
      vi low = splat(INT32_MAX), high = splat(INT32_MIN);
      for (int group = 0; group < groups; group++) {
        vf top = least;
        for (int key = group * size; key < s.keys && key < (group + 1) * size; key++)
          top = max(top, select(splat((float)key) <= load(last + lane), entry(s, key, lane, weight), least));
        const vi x = ordered((vi)top);
        largest[group] = x;
        low = x < low ? x : low;
        high = x > high ? x : high;
      }
      for (int step = 0; step < kBisections; step++) {  // n groups or more reach `low`
        const vi middle = (low | high) - ((low ^ high) >> 1);  // rounded up, without overflow
        vi count = {};
        for (int group = 0; group < groups; group++) count -= largest[group] >= middle;
        const vi enough = count >= a.n;
        low = enough ? middle : low;
        high = enough ? high : middle - 1;
      }
      // One bit pattern below; of 0 and below there is none that is surely smaller, and no bound.
      store(above + lane, select(low > 0, (vf)(low - 1), least));
    }
  }

  void take(const Best& best, float x, int key, int* found, float* above) const {
    if (*found < a.n) {
      best.value[*found] = x, best.key[*found] = key;
      if (++*found < a.n) return;
      best.heapify(a.n);
    } else {  // keys come in order: an equal entry loses
      best.value[0] = x, best.key[0] = key;
      best.sift(0, a.n);
    }
    *above = best.value[0];
  }

  void finish(const Best& best, int found, float last, float first_entry) const {
    if (first_entry != first_entry) {
      found = last + 1 < a.n ? (last < 0 ? 0 : (int)last + 1) : a.n;
      for (int i = 0; i < found; i++) best.value[i] = first_entry, best.key[i] = i;
    } else {
      if (found < a.n) best.heapify(found);
      best.sort(found);
    }
    for (int i = found; i < a.n; i++) best.value[i] = 0.f, best.key[i] = -1;
  }
};

static bool attention_topk(const scfast::TopkArgs* args) {
  const Geometry& g = args->where;
  const bool fused = args->fusion != scfast::kNone;
  const Schedule schedule(g, fused ? 1 : g.heads);
  if (!schedule.ready()) return false;
  const TopkJob job{*args, fused};
  const Wants wants = {true, false, false, 0};
  return fused ? walk_fused(schedule, args->fusion, args->head_weights, 0, job)
               : walk_heads(schedule, Values(), wants, job);
}

}  // namespace
