// attention_rowstats: entropy (nats, of the row divided by its sum), largest entry, entry at the query's own key
// (j = i + causal_offset) and sum of every row of the fused map; float32 [Tq, Hout]. Rows without keys give 0.
#pragma once
#include "maps.hpp"

namespace {

struct RowstatsJob {
  const scfast::RowstatsArgs& a;
  bool fused;  // strips are those of the fused map itself

  int choose_rows(const Unit& unit, int32_t* rows) const {
    for (int i = 0; i < unit.rows; i++) rows[i] = unit.first_row + i;
    return unit.rows;
  }

  void strip(const Unit& unit, const Strip& s, const float*, int, Columns*) const {
    float entropy[kLanes] __attribute__((aligned(64))), largest[kLanes] __attribute__((aligned(64))),
        sum[kLanes] __attribute__((aligned(64)));
    const float factor = !fused && a.head_weights ? a.head_weights[unit.head] : 1.f;
    if (fused) {
      row_statistics(s, s.keys < unit.cell.keys, entropy, largest, sum);
    } else {
      for (int i = 0; i < s.rows; i++) {
        sum[i] = s.inv[i] == s.inv[i] ? (s.inv[i] > 0.f ? factor : 0.f) : s.inv[i];
        entropy[i] = factor == 0.f ? 0.f : s.entropy[i];
        largest[i] = factor >= 0.f ? factor * s.inv[i] : negative_largest(s, i, factor);
      }
    }
    const int outs = a.fusion == scfast::kNone ? a.where.heads : 1;
    for (int i = 0; i < s.rows; i++) {
      const int64_t at = (unit.cell.first_query + s.row[i]) * outs + unit.head;
      const int own = s.row[i] + unit.cell.causal_offset;
      const bool inside = own >= 0 && own < s.keys;
      a.entropy[at] = entropy[i];
      a.max[at] = largest[i];
      a.row_sum[at] = sum[i];
      a.self_weight[at] = inside ? factor * s.p[(size_t)own * s.lanes + i] * s.norm[(own / kKeys) * s.lanes + i] : 0.f;
    }
  }

  // A negative head weight turns the smallest probability into the largest entry; keys out of sight give 0.
  float negative_largest(const Strip& s, int lane, float factor) const {
    float smallest = 1.f;
    for (int key = 0; key < s.keys; key++) {
      const float p = s.p[(size_t)key * s.lanes + lane] * s.norm[(key / kKeys) * s.lanes + lane];
      if (p < smallest) smallest = p;
    }
    return s.keys ? factor * smallest : 0.f;
  }

  // `hidden`: there are keys beyond the strip, whose entries are 0.
  static void row_statistics(const Strip& s, bool hidden, float* entropy, float* largest, float* sum) {
    for (int lane = 0; lane < s.lanes; lane += W) {
      vf total = {}, weighted = {}, top = splat(hidden ? 0.f : -FLT_MAX);
      for (int first = 0; first < s.keys; first += kKeys) {  // block by block: the error stays that of short sums
        vf block = {}, block_weighted = {};
        for (int key = first; key < s.keys && key < first + kKeys; key++) {
          const vf p = load(s.p + (size_t)key * s.lanes + lane);
          block += p;
          top = max(top, p);
          const vi tiny = p < splat(FLT_MIN);
          block_weighted += p * select(tiny, vf{}, log2_positive(select(tiny, splat(1.f), p)));
        }
        total += block;
        weighted += block_weighted;
      }
      const vi none = total <= vf{};  // or below zero, where rows have no entropy
      const vf safe = select(none, splat(1.f), total);
      store(sum + lane, total);
      store(largest + lane, s.keys ? select(total == total, top, total) : vf{});
      store(entropy + lane, select(none, vf{}, (log2_positive(safe) - weighted / safe) * kLn2));
    }
  }
};

static bool attention_rowstats(const scfast::RowstatsArgs* args) {
  const Geometry& g = args->where;
  const bool given = args->map.kind != scfast::kProb, fused = args->fusion != scfast::kNone;
  const Schedule schedule(g, fused ? 1 : g.heads, given ? kMapUnit : kRowsPerUnit);
  if (!schedule.ready()) return false;
  const RowstatsJob job{*args, given || fused};
  if (given) return walk_map(schedule, args->map, args->fusion, args->head_weights, 0, job);
  const Wants wants = {true, true, false, 0};
  return fused ? walk_fused(schedule, args->fusion, args->head_weights, 0, job)
               : walk_heads(schedule, Values(), wants, job);
}

}  // namespace
