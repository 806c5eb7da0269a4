// Strips of a map whose heads are fused: the strip of every head over the same rows, one after another, each settled
// into the map while the next head's takes its place.
#pragma once
#include "pack.hpp"

namespace {

template <class Dot>
struct FusedStrips {
  const Geometry& g;
  int fusion;                 // scfast::Heads; a single head is only weighted
  const float* head_weights;  // [H] or null
  int columns;                // weightings of the rows that a job takes of the fused map
  StripBuffers<Dot> b = {};
  typename Dot::T* keys = nullptr;  // of the heads at hand
  float* map = nullptr;             // [key][lane]
  size_t head_size = 0;
  Cell cell = {-1, 0, 0, 0, 0, 0};
  int head = 0, end_head = 0;  // those at hand
  Columns owed = {};

  void take(Scratch& scratch, int longest) {
    b.take(scratch, g, longest, 0, {true, false, false, columns});
    head_size = (size_t)(longest + KT) * b.depth;
    keys = scratch.take<typename Dot::T>(g.kv_heads * head_size);
    map = take_map(scratch, longest);
    owed = b.nothing_owed();
  }

  static float* take_map(Scratch& scratch, int longest) {
    return scratch.take<float>(((size_t)(longest + kKeys - 1) / kKeys + 1) * kKeys * kLanes);
  }

  // Brings the keys of heads [first, end) of a cell, unless they are there.
  void load(const Cell& wanted, int first, int end) {
    if (wanted.index == cell.index && first == head && end == end_head) return;
    cell = wanted, head = first, end_head = end;
    const int group = g.heads / g.kv_heads;
    for (int kv = head / group; kv <= (end_head - 1) / group; kv++)
      pack_keys(g, cell, kv, keys + (kv - head / group) * head_size);
  }

  // The map over `n` rows of the cell. Its last head is still owed: block() settles a block, settle(&owed) all.
  // What a job may read of the strip are its sizes and rows.
  Strip visit(const int* rows, int n) {
    const int group = g.heads / g.kv_heads;
    Strip strip;
    owed.keys = 0;
    for (int h = head; h < end_head; h++) {
      const Score score = score_of(g, cell, h, Dot::kPack > 1);
      b.k = keys + (h / group - head / group) * head_size;
      pack_queries(g, cell, h, rows, n, score.query_factor, b.unpacked, b.q);
      visit_rows(b, score, rows, n, cell.keys, {true, false, false, columns}, &owed, &strip);
      owe(strip, {map, fusion, head_weights ? head_weights[h] : 1.f, h == head}, &owed);
    }
    return strip;
  }

  // [keys of the block][lanes] from key `first` on, a multiple of kKeys: once per strip and block.
  const float* block(int first) {
    settle_lanes(owed, first);
    return map + (size_t)first * owed.lanes;
  }
};

}  // namespace
