// Strips of maps whose elements need more than the probability of one head: every head at once (norms), or a second
// product (relevance). Blocks of keys go by with the heads inside: of the map one strip exists, of the probabilities a
// block a head. That takes what normalises a row first: its log-sum-exp, given, or a pass over the scores alone.
#pragma once
#include "norm_map.hpp"
#include "relevance_map.hpp"
#include "walk.hpp"

namespace {

constexpr int kMapUnit = kRowsPerUnit / 2;  // elements are dear: short cells too give every thread its share

// One thread's state. An Element says where the probabilities of a head go, element.room(head), and makes elements of
// them: element.head<NV>(block, head) head by head, element.end<NV>(block) when all heads of the block are there.
template <class Element, class Job>
struct MapWorker {
  const Geometry& g;
  const float* given_lse;  // [Tq, H] or null
  bool together;           // the heads of an element meet in one map, else each is a map of its own
  int columns;
  const Job& job;
  Element element;
  StripBuffers<Float32> b = {};
  float *keys = nullptr, *q = nullptr, *shift = nullptr,
        *norm = nullptr;  // all heads: [keys][dim], [dim][lanes], [lanes]
  float *map = nullptr, *ones = nullptr;
  int32_t* rows = nullptr;
  size_t head_keys = 0;
  int packed_cell = -1;

  void take(Scratch& scratch, int longest) {
    const int blocks = (longest + kKeys - 1) / kKeys + 1;
    b.take(scratch, g, longest, 0, {false, false, false, columns});
    head_keys = (size_t)(longest + KT) * g.dim;
    keys = scratch.take<float>(g.kv_heads * head_keys);
    q = scratch.take<float>((size_t)g.heads * g.dim * kLanes);
    shift = scratch.take<float>((size_t)g.heads * kLanes);
    norm = scratch.take<float>((size_t)g.heads * kLanes);
    map = scratch.take<float>((size_t)blocks * kKeys * kLanes);
    ones = scratch.take<float>((size_t)blocks * kLanes);
    rows = scratch.take<int32_t>(kRowsPerUnit);
    element.take(scratch, longest);
    if (!scratch.measuring)
      for (int i = 0; i < blocks * kLanes; i++) ones[i] = 1.f;
  }

  const float* keys_of(int head) const { return keys + head / (g.heads / g.kv_heads) * head_keys; }

  void visit(const Unit& unit) {
    const int n_rows = job.choose_rows(unit, rows);
    if (n_rows == 0) return;
    if (unit.cell.index != packed_cell) {
      for (int h = 0; h < g.kv_heads; h++) pack_keys(g, unit.cell, h, keys + h * head_keys);
      element.pack(unit.cell);
    }
    packed_cell = unit.cell.index;
    for (int first = 0; first < n_rows; first += kLanes) {
      const int n = n_rows - first < kLanes ? n_rows - first : kLanes, vectors = (n + W - 1) / W;
      if (vectors == 1)
        visit_strip<1>(unit, rows + first, n);
      else if (vectors == 2)
        visit_strip<2>(unit, rows + first, n);
      else
        visit_strip<3>(unit, rows + first, n);
    }
  }

  template <int NV>
  void visit_strip(const Unit& unit, const int32_t* row, int n) {
    constexpr int lanes = NV * W;
    const int begin = together ? 0 : unit.head, end = together ? g.heads : unit.head + 1;
    const Sight<NV> sight = sight_of<NV>(score_of(g, unit.cell, begin, false), row, n, unit.cell.keys);
    for (int h = begin; h < end; h++) load_head(unit.cell, h, row, n, lanes);
    element.load_rows(unit.cell, begin, end, row, n, lanes);
    for (int first = 0; first < sight.last; first += kKeys) {
      const int size = sight.last - first < kKeys ? sight.last - first : kKeys;
      const MapBlock block = {unit.cell, row, n, first, size, begin, end, map + (size_t)first * lanes};
      for (int h = begin; h < end; h++) {
        const float* next =
            h + 1 < end ? keys_of(h + 1) + (size_t)first * g.dim : keys_of(begin) + (size_t)(first + kKeys) * g.dim;
        probabilities<NV>(block, h, sight, next);
        element.template head<NV>(block, h);
      }
      element.template end<NV>(block);
    }
    const Strip strip = {map, ones, sight.last, lanes, n, row, nullptr, nullptr, nullptr};
    Columns owed = b.nothing_owed();
    job.strip(unit, strip, nullptr, 0, &owed);
    settle(&owed);
  }

  // The queries of a head, and what turns their scores into probabilities: 2^(score - shift) * norm.
  void load_head(const Cell& cell, int head, const int32_t* row, int n, int lanes) {
    const Score score = score_of(g, cell, head, false);
    float *const panel = q + (size_t)head * g.dim * kLanes, *const to = shift + head * kLanes;
    float* const factor = norm + head * kLanes;
    pack_queries(g, cell, head, row, n, score.query_factor, b.unpacked, panel);
    if (given_lse) {
      for (int i = 0; i < lanes; i++) {
        const float lse = i < n ? given_lse[(cell.first_query + row[i]) * g.heads + head] : -INFINITY;
        to[i] = lse == -INFINITY ? 0.f : lse * kLog2e;  // no key in sight: every score is hidden
        factor[i] = element.factor(head);
      }
      return;
    }
    StripBuffers<Float32> buffers = b;
    buffers.q = panel;
    buffers.k = const_cast<float*>(keys_of(head));
    Columns nothing = b.nothing_owed();
    Strip strip;
    visit_rows(buffers, score, row, n, cell.keys, {false, false, false, 0}, &nothing, &strip);
    const int last_block = strip.keys > 0 ? (strip.keys - 1) / kKeys : 0;
    for (int i = 0; i < lanes; i++) {
      to[i] = strip.keys > 0 ? b.shift[(size_t)last_block * lanes + i] : 0.f;  // the largest score of the row
      factor[i] = strip.inv[i] * element.factor(head);
    }
  }

  template <int NV>
  void probabilities(const MapBlock& block, int head, const Sight<NV>& sight, const float* next) {
    constexpr int lanes = NV * W;
    const Score score = score_of(g, block.cell, head, false);
    const float *panel = q + (size_t)head * g.dim * kLanes, *k = keys_of(head) + (size_t)block.first * g.dim;
    float* const p = element.room(head);
    vf unused[NV], from[NV], factor[NV];
    for (int v = 0; v < NV; v++) {
      unused[v] = vf{};
      from[v] = load(shift + head * kLanes + v * W);
      factor[v] = load(norm + head * kLanes + v * W);
    }
    for (int key = 0; key < block.keys; key += KT)
      score_tile<Float32, NV>(panel, k + (size_t)key * g.dim, g.dim, g.dim, 1.f, block.keys - key, p + key * lanes,
                              unused, (const char*)(next + (size_t)key * g.dim));
    if (score.cap > 0 || score.bias || block.first + block.keys > sight.unmasked)
      adjust<NV>(p, block.first, block.keys, score, sight.limit, unused);
    for (int key = 0; key < block.keys; key++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) {
        float* const at = p + (key * NV + v) * W;
        store(at, exp2_negative(load(at) - from[v]) * factor[v]);
      }
  }
};

// Every strip of the map `m`, by copies of the job.
template <class Job>
static bool walk_map(const Schedule& schedule, const scfast::MapArgs& m, int fusion, const float* head_weights,
                     int columns, const Job& job) {
  const Geometry& g = schedule.g;
  const bool together = fusion != scfast::kNone;
  if (m.kind == scfast::kNorm)
    return walk(schedule,
                MapWorker<NormElement, Job>{g, m.lse, together, columns, job, {g, m, head_weights, together}});
  return walk(schedule, MapWorker<RelevanceElement, Job>{g, m.lse, together, columns, job,
                                                         RelevanceElement(g, m, fusion, head_weights)});
}

}  // namespace
