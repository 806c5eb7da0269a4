// cosine_matrix: the similarities themselves, float32, a tile at a time into the caller's memory: of each cell [rows of
// x, rows of y]. With x against itself a tile above the diagonal is written twice, the second time turned.
#pragma once
#include "cosine.hpp"

namespace {

struct MatrixJob {
  static constexpr int kDiagonal = 1;
  const scfast::CosineMatrixArgs& a;
  const Pairs& pairs;
  float* out = nullptr;
  int64_t row_stride = 0;
  bool itself = false;

  void take(Scratch&, int, int) {}
  void begin(const PairUnit& u) {
    out = a.out + a.first[u.cell];
    row_stride = a.out_row ? a.out_row : pairs.columns(u.cell);
    itself = u.itself;
  }
  void rows(int64_t, int64_t) {}

  NoStep steps(int) const { return {}; }

  void tile(const PairTile& t) {
    for (int r = 0; r < t.rows; r++)
      memcpy(out + (t.row + r) * row_stride + t.col + t.from[r], t.s + r * kTileColumns + t.from[r],
             sizeof(float) * (t.to > t.from[r] ? t.to - t.from[r] : 0));
    if (!itself) return;
    for (int c = 0; c < t.to; c++)
      for (int r = 0; r < t.rows && c >= t.from[r]; r++)
        out[(t.col + c) * row_stride + t.row + r] = t.s[r * kTileColumns + c];
  }

  void rows_done() {}
  void end(const PairUnit&) {}
};

static bool cosine_matrix(const scfast::CosineMatrixArgs* args) {
  const Pairs pairs(args->where);
  return pairs.ready() && walk_pairs(pairs, MatrixJob{*args, pairs});
}

} // namespace
