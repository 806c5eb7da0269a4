// Elements of gradient-weighted attention: the positive part of p * dp, dp = d_out v^T, or the signed product; times
// the head's weight, fused over heads.
#pragma once
#include "norm_map.hpp"

namespace {

struct RelevanceElement {
  const Geometry& g;
  Geometry gradient;  // d_out in the place of the queries, the values in that of the keys
  bool is_signed;
  int fusion;
  const float* head_weights;
  float *p = nullptr, *dp = nullptr, *values = nullptr, *panel = nullptr, *unpacked = nullptr;
  size_t head_values = 0;

  RelevanceElement(const Geometry& geometry, const scfast::MapArgs& m, int heads, const float* weights)
      : g(geometry),
        gradient(geometry),
        is_signed(m.kind == scfast::kSignedRelevance),
        fusion(heads),
        head_weights(weights) {
    gradient.q = m.d_out, gradient.q_token = m.d_token, gradient.q_head = m.d_head;
    gradient.k = m.v, gradient.k_token = m.v_token, gradient.k_head = m.v_head;
    gradient.dim = m.v_dim;
  }

  void take(Scratch& scratch, int longest) {
    head_values = (size_t)(longest + KT) * gradient.dim;
    values = scratch.take<float>(g.kv_heads * head_values);
    panel = scratch.take<float>((size_t)g.heads * gradient.dim * kLanes);
    unpacked = scratch.take<float>(4 * (size_t)gradient.dim + 4 * W);
    p = scratch.take<float>(kKeys * kLanes);
    dp = scratch.take<float>(kKeys * kLanes);
  }

  float factor(int) const { return 1.f; }
  float* room(int) const { return p; }

  void pack(const Cell& cell) {
    for (int h = 0; h < g.kv_heads; h++) pack_keys(gradient, cell, h, values + h * head_values);
  }

  void load_rows(const Cell& cell, int begin, int end, const int32_t* row, int rows, int) {
    for (int h = begin; h < end; h++)
      pack_queries(gradient, cell, h, row, rows, 1.f, unpacked, panel + (size_t)h * gradient.dim * kLanes);
  }

  template <int NV>
  void head(const MapBlock& block, int head) const {
    constexpr int lanes = NV * W;
    const int dim = gradient.dim;
    const float* v = values + head / (g.heads / g.kv_heads) * head_values + (size_t)block.first * dim;
    vf unused[NV];
    for (int i = 0; i < NV; i++) unused[i] = vf{};
    for (int key = 0; key < block.keys; key += KT)
      score_tile<Float32, NV>(panel + (size_t)head * dim * kLanes, v + (size_t)key * dim, dim, dim, 1.f,
                              block.keys - key, dp + key * lanes, unused, (const char*)(block.map + key * lanes));
    const vf weight = splat(head_weights ? head_weights[head] : 1.f), floor = splat(is_signed ? -INFINITY : 0.f);
#define SCFAST_FUSE(TERM)                                           \
  for (int at = 0; at < block.keys * lanes; at += W) {              \
    const vf x = max(floor, load(p + at) * load(dp + at)) * weight; \
    store(block.map + at, TERM);                                    \
  }
    if (head == block.begin) {
      SCFAST_FUSE(x)
    } else if (fusion == scfast::kMax) {
      SCFAST_FUSE(select(x != x, x, max(x, load(block.map + at))))
    } else if (fusion == scfast::kMin) {
      SCFAST_FUSE(select(x != x, x, -max(-x, -load(block.map + at))))
    } else {
      SCFAST_FUSE(x + load(block.map + at))
    }
#undef SCFAST_FUSE
  }

  template <int NV>
  void end(const MapBlock&) const {}
};

}  // namespace
