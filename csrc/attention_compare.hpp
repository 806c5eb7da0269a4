// attention_compare: sums over the maps P1 and P2 of two models, which share queries, keys and heads, of P1 * P2, P1^2
// and P2^2; float64 [3, B, H]. Neither map is kept beyond a block of keys: both strips go by in step, and their sums
// follow the running maxima of their rows.
#pragma once
#include "walk.hpp"

namespace {

constexpr int kProducts = 3;  // P1 * P2, P1^2, P2^2

// One model's strip on its way over the keys.
template <class Dot, int NV>
struct Side {
  const StripBuffers<Dot>& b;
  const Score& score;
  Sight<NV> sight;
  vf shift[NV], sum[NV];

  Side(const StripBuffers<Dot>& buffers, const Score& s, const int* row, int rows, int n_keys)
      : b(buffers), score(s), sight(sight_of<NV>(s, row, rows, n_keys)) {
    for (int v = 0; v < NV; v++) shift[v] = splat(kLeast), sum[v] = vf{};
  }

  // b.p <- un-normalised probabilities of a block of keys, keep <- the factor of all that came before it. Memory from
  // `after` on, which is wanted next, comes nearer meanwhile.
  SCFAST_INLINE void advance(Side* side, int first, int keys, const typename Dot::T* after, vf* keep) {
    vf largest[NV], block_sum[NV], none[NV];
    const StripBuffers<Dot>& b = side->b;
    for (int v = 0; v < NV; v++) largest[v] = splat(-FLT_MAX);
    for (int key = 0; key < keys; key += KT)
      score_tile<Dot, NV>(b.q, b.k + (size_t)(first + key) * b.depth, b.depth, b.depth, side->score.dot_factor,
                          keys - key, b.p + key * NV * W, largest, (const char*)(after + (size_t)key * b.depth));
    if (side->score.cap > 0 || side->score.bias || first + keys > side->sight.unmasked)
      adjust<NV>(b.p, first, keys, side->score, side->sight.limit, largest);
    for (int v = 0; v < NV; v++) {
      const vf next = max(side->shift[v], largest[v]);
      keep[v] = exp2_negative(side->shift[v] - next);
      side->shift[v] = next;
      block_sum[v] = vf{};
    }
    exponentiate<NV, false>(b.p, keys, side->shift, block_sum, none);
    for (int v = 0; v < NV; v++) side->sum[v] = side->sum[v] * keep[v] + block_sum[v];
  }

  vf inverse(int v) const {
    const vi none = sum[v] == vf{};
    return select(none, vf{}, 1.f / select(none, splat(1.f), sum[v]));
  }
};

// Adds the products of `rows` <= NV * W queries to totals.
template <class Dot, int NV>
static void compare_strip(const StripBuffers<Dot> (&b)[2], const Score (&score)[2], const int* row, int rows,
                          int n_keys, double* totals) {
  Side<Dot, NV> one(b[0], score[0], row, rows, n_keys), two(b[1], score[1], row, rows, n_keys);
  const int last = one.sight.last > two.sight.last ? one.sight.last : two.sight.last;
  vf products[kProducts][NV];
  for (int i = 0; i < kProducts; i++)
    for (int v = 0; v < NV; v++) products[i][v] = vf{};
  for (int first = 0; first < last; first += kKeys) {
    const int keys = last - first < kKeys ? last - first : kKeys;
    vf keep1[NV], keep2[NV], dot[NV], square1[NV], square2[NV];
    Side<Dot, NV>::advance(&one, first, keys, two.b.k + (size_t)first * two.b.depth, keep1);
    Side<Dot, NV>::advance(&two, first, keys, one.b.k + (size_t)(first + keys) * one.b.depth, keep2);
    for (int v = 0; v < NV; v++) dot[v] = square1[v] = square2[v] = vf{};
    for (int key = 0; key < keys; key++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) {
        const vf p1 = load(one.b.p + (key * NV + v) * W), p2 = load(two.b.p + (key * NV + v) * W);
        dot[v] += p1 * p2;
        square1[v] += p1 * p1;
        square2[v] += p2 * p2;
      }
    for (int v = 0; v < NV; v++) {
      products[0][v] = products[0][v] * (keep1[v] * keep2[v]) + dot[v];
      products[1][v] = products[1][v] * (keep1[v] * keep1[v]) + square1[v];
      products[2][v] = products[2][v] * (keep2[v] * keep2[v]) + square2[v];
    }
  }
  for (int v = 0; v < NV; v++) {
    const vf inverse1 = one.inverse(v), inverse2 = two.inverse(v);
    const vf factor[kProducts] = {inverse1 * inverse2, inverse1 * inverse1, inverse2 * inverse2};
    for (int i = 0; i < kProducts; i++) {
      const vf of_rows = products[i][v] * factor[i];
      for (int lane = 0; lane < W && v * W + lane < rows; lane++) totals[i] += of_rows[lane];
    }
  }
}

template <class Dot>
struct CompareWorker {
  const scfast::CompareArgs& a;
  double* partials;  // [units][kProducts]
  StripBuffers<Dot> b[2];
  int packed_cell[2] = {-1, -1}, packed_head[2] = {-1, -1};

  void take(Scratch& scratch, int longest) {
    for (int side = 0; side < 2; side++) b[side].take(scratch, a.where[side], longest, 0, Wants());
  }

  void visit(const Unit& unit) {
    double* totals = partials + unit.index * kProducts;
    for (int i = 0; i < kProducts; i++) totals[i] = 0;
    Score score[2];
    for (int side = 0; side < 2; side++) {
      const Geometry& g = a.where[side];
      const int kv_head = unit.head / (g.heads / g.kv_heads);
      score[side] = score_of(g, unit.cell, unit.head, Dot::kPack > 1);
      if (unit.cell.index == packed_cell[side] && kv_head == packed_head[side]) continue;
      pack_keys(g, unit.cell, kv_head, b[side].k);
      packed_cell[side] = unit.cell.index, packed_head[side] = kv_head;
    }
    for (int first = 0; first < unit.rows; first += kLanes) {
      const int n = unit.rows - first < kLanes ? unit.rows - first : kLanes;
      int row[kLanes];
      for (int i = 0; i < n; i++) row[i] = unit.first_row + first + i;
      for (int side = 0; side < 2; side++)
        pack_queries(a.where[side], unit.cell, unit.head, row, n, score[side].query_factor, b[side].unpacked,
                     b[side].q);
      const int vectors = (n + W - 1) / W;
      if (vectors == 1)
        compare_strip<Dot, 1>(b, score, row, n, unit.cell.keys, totals);
      else if (vectors == 2)
        compare_strip<Dot, 2>(b, score, row, n, unit.cell.keys, totals);
      else
        compare_strip<Dot, 3>(b, score, row, n, unit.cell.keys, totals);
    }
  }
};

static bool attention_compare(const scfast::CompareArgs* args) {
  const Geometry& g = args->where[0];
  const Schedule schedule(g, g.heads);
  if (!schedule.ready()) return false;
  const int64_t units = schedule.units();
  double* partials = (double*)malloc(sizeof(double) * kProducts * (units + 1));
  bool done = partials != nullptr;
#if defined(SCFAST_BF16)
  const bool pairs = g.dtype == kBfloat16 && args->where[1].dtype == kBfloat16;
  if (done && pairs) done = walk(schedule, CompareWorker<Bfloat16Pair>{*args, partials, {}});
#else
  const bool pairs = false;
#endif
  if (done && !pairs) done = walk(schedule, CompareWorker<Float32>{*args, partials, {}});
  if (done) {
    const int64_t maps = (int64_t)g.n_cells * g.heads;
    for (int64_t i = 0; i < kProducts * maps; i++) args->sums[i] = 0;
    for (int64_t index = 0; index < units; index++) {  // in index order, whichever thread computed them
      const Unit unit = schedule.unit(index);
      for (int i = 0; i < kProducts; i++)
        args->sums[i * maps + (int64_t)unit.cell.index * g.heads + unit.head] += partials[index * kProducts + i];
    }
  }
  free(partials);
  return done;
}

}  // namespace
