// Elements of the map of norms: row_scale * sqrt(p^T G p), p the probabilities of all heads for one pair of query and
// key, G the key's inner products [H][H]; on the diagonal a linear and a constant term more under the root. With heads
// apart: row_scale * p_h * sqrt(G_hh).
// H (H + 3) / 2 multiply-adds a pair would do; tiles of four heads take (H + 4) (H + 2) / 2 for H a multiple of four.
#pragma once
#include "pack.hpp"

namespace {

// A block of keys of a strip.
struct MapBlock {
  const Cell& cell;
  const int32_t* row;     // [rows] query within the cell
  int rows, first, keys;  // of the strip; first key of the block and their number
  int begin, end;         // heads
  float* map;             // [keys][lanes]
};

// Probabilities are held times this, and a key's G divided by its largest square: squares of small probabilities stay
// normal numbers down to 1e-31, and no sum of squares overflows.
constexpr float kLift = 1099511627776.f;  // 2^40
constexpr int kHeadTile = 4;              // heads whose rows of G p stand in registers: 4 x 3 vectors

// total += sum over rows r of the tile and all columns of p_r G_rc p_c; `heads` columns from the tile's first head on.
template <int NV, int HT>
SCFAST_INLINE void gram_tile(const float* p, int stride, const float* gram, int heads, vf* total) {
  vf acc[HT][NV];
  for (int r = 0; r < HT; r++)
    for (int v = 0; v < NV; v++) acc[r][v] = vf{};
  for (int c = 0; c < heads; c++) {
    vf column[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) column[v] = load(p + c * stride + v * W);
#pragma GCC unroll 4
    for (int r = 0; r < HT; r++) {
      const vf factor = splat(gram[c * HT + r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) acc[r][v] = factor * column[v] + acc[r][v];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < HT; r++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) total[v] = acc[r][v] * load(p + r * stride + v * W) + total[v];
}

struct NormElement {
  // Heads lie a block apart, and three vectors more: their lines for one key fall into different sets of the cache.
  static constexpr int kStride = kKeys * kLanes + kLanes;

  const Geometry& g;
  const scfast::MapArgs& m;
  const float* head_weights;
  bool together;
  float *p = nullptr, *gram = nullptr, *length = nullptr;  // [heads][kStride], [keys][gram_size], [heads or 1][keys]
  float* scale = nullptr;                                  // [lanes]
  int longest = 0, gram_size = 0;

  void take(Scratch& scratch, int longest_list) {
    longest = longest_list;
    gram_size = 0;
    for (int h = 0; h < g.heads; h += kHeadTile) gram_size += tile_rows(h) * (g.heads - h);
    p = scratch.take<float>((size_t)(together ? g.heads : 1) * kStride);
    gram = scratch.take<float>(together ? (size_t)longest * gram_size : 0);
    length = scratch.take<float>((size_t)longest * (together ? 1 : g.heads));
    scale = scratch.take<float>(kLanes);
  }

  int tile_rows(int head) const { return g.heads - head < kHeadTile ? g.heads - head : kHeadTile; }
  const float* gram_of(const Cell& cell, int key) const {
    return m.gram + (cell.first_key + key) * (int64_t)g.heads * g.heads;
  }
  float weight(int head) const { return head_weights ? head_weights[head] : 1.f; }
  float factor(int head) const { return together ? weight(head) * kLift : fabsf(weight(head)); }
  float* room(int head) const { return p + (together ? (size_t)head * kStride : 0); }

  static float root(float square) { return square < 0.f ? 0.f : sqrtf(square); }

  void pack(const Cell& cell) {
    for (int key = 0; key < cell.keys; key++) {
      const float* from = gram_of(cell, key);
      if (together)
        pack_gram(from, gram + (size_t)key * gram_size, length + key);
      else
        for (int h = 0; h < g.heads; h++) length[(size_t)h * longest + key] = root(from[h * (g.heads + 1)]);
    }
  }

  // The upper triangle with both halves in it, tile by tile as gram_tile reads it, over the largest square.
  void pack_gram(const float* from, float* to, float* root_of_largest) const {
    const int H = g.heads;
    float largest = 0.f;
    for (int h = 0; h < H; h++)
      if (from[h * (H + 1)] > largest) largest = from[h * (H + 1)];
    if (!(largest >= FLT_MIN)) largest = 1.f;
    const float inverse = 1.f / largest;
    for (int h = 0; h < H; h += kHeadTile)
      for (int c = h; c < H; c++)
        for (int r = h; r < h + tile_rows(h); r++)
          *to++ = inverse * (c < r ? 0.f : c == r ? from[r * H + c] : from[r * H + c] + from[c * H + r]);
    *root_of_largest = sqrtf(largest) / kLift;
  }

  void load_rows(const Cell& cell, int, int, const int32_t* row, int rows, int lanes) {
    for (int i = 0; i < lanes; i++)
      scale[i] = i >= rows ? 0.f : m.row_scale ? m.row_scale[cell.first_query + row[i]] : 1.f;
  }

  template <int NV>
  void head(const MapBlock& block, int head) const {
    if (together) return;
    const float* factor = length + (size_t)head * longest + block.first;
    for (int key = 0; key < block.keys; key++)
      for (int lane = 0; lane < NV * W; lane += W)
        store(block.map + key * NV * W + lane, load(p + key * NV * W + lane) * splat(factor[key]) * load(scale + lane));
  }

  template <int NV>
  void end(const MapBlock& block) const {
    if (!together) return;
    for (int key = 0; key < block.keys; key++) {
      const float *at = p + key * NV * W, *factors = gram + (size_t)(block.first + key) * gram_size;
      vf total[NV];
      for (int v = 0; v < NV; v++) total[v] = vf{};
      int h = 0;
      for (; h + kHeadTile <= g.heads; factors += kHeadTile * (g.heads - h), at += kHeadTile * kStride, h += kHeadTile)
        gram_tile<NV, kHeadTile>(at, kStride, factors, g.heads - h, total);
      if (g.heads - h == 3) gram_tile<NV, 3>(at, kStride, factors, 3, total);
      if (g.heads - h == 2) gram_tile<NV, 2>(at, kStride, factors, 2, total);
      if (g.heads - h == 1) gram_tile<NV, 1>(at, kStride, factors, 1, total);
      const vf factor = splat(length[block.first + key]);
      for (int v = 0; v < NV; v++)  // max keeps a NaN of its second argument
        store(block.map + (key * NV + v) * W, square_root(max(vf{}, total[v])) * factor * load(scale + v * W));
    }
    if (m.diagonal_linear || m.diagonal_constant)
      for (int i = 0; i < block.rows; i++) {
        const int key = block.row[i] + block.cell.causal_offset - block.first;
        if (key >= 0 && key < block.keys) block.map[key * NV * W + i] = own_element(block, key, i, NV * W);
      }
  }

  float own_element(const MapBlock& block, int key, int lane, int lanes) const {
    const int64_t query = block.cell.first_query + block.row[lane];
    const float* products = gram_of(block.cell, block.first + key);
    double square = m.diagonal_constant ? m.diagonal_constant[query] : 0.;
    for (int h = 0; h < g.heads; h++) {
      double row = m.diagonal_linear ? m.diagonal_linear[query * g.heads + h] : 0.;
      for (int c = 0; c < g.heads; c++)
        row += products[h * g.heads + c] * (double)(p[c * kStride + key * lanes + lane] / kLift);
      square += row * (double)(p[h * kStride + key * lanes + lane] / kLift);
    }
    return root((float)square) * scale[lane];
  }
};

}  // namespace
