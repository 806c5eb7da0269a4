// attention_matmul: out[i] = sum_j A[i][j] x[j], A the map with its heads fused, or one product per head.
// x float32 [Tk, width]; out float32 [Tq, Hout, width]. Heads are fused first, so that x is multiplied once for all.
#pragma once
#include "walk.hpp"

namespace {

// Queries of a unit: rows share nothing but the keys, so that units may be small and threads finish together.
constexpr int kProductUnit = 2 * kLanes;

template <class Dot>
struct MatmulWorker {
  const scfast::MatmulArgs& a;
  FusedStrips<Dot> strips;
  int columns;    // of x and out, whole vectors
  bool in_place;  // x lies as the tiles read it
  float *packed = nullptr, *out = nullptr;
  int packed_cell = -1;
  int32_t rows[kProductUnit] = {};

  void take(Scratch& scratch, int longest) {
    strips.take(scratch, longest);
    packed = scratch.take<float>(in_place ? 0 : (size_t)longest * columns);
    out = scratch.take<float>((size_t)kLanes * columns);
  }

  const float* x_of(const Cell& cell) {
    const float* from = a.x + cell.first_key * a.width;
    if (in_place) return from;
    if (packed_cell != cell.index) pack_values(a.x, a.width, 0, a.width, kFloat32, cell, 0, columns, packed);
    packed_cell = cell.index;
    return packed;
  }

  void visit(const Unit& unit) {
    const Cell& cell = unit.cell;
    const int heads = a.fusion == scfast::kNone ? 1 : a.where.heads, outs = a.where.heads / heads;
    const float* x = x_of(cell);
    strips.load(cell, unit.head, unit.head + heads);
    for (int i = 0; i < unit.rows; i++) rows[i] = unit.first_row + i;
    for (int first_row = 0; first_row < unit.rows; first_row += kLanes) {
      const int n = unit.rows - first_row < kLanes ? unit.rows - first_row : kLanes;
      const Strip strip = strips.visit(rows + first_row, n);
      if (strip.keys == 0) memset(out, 0, sizeof(float) * (size_t)n * columns);
      for (int first = 0; first < strip.keys; first += kKeys) {
        const int keys = strip.keys - first < kKeys ? strip.keys - first : kKeys;
        value_block<Float32>(strips.block(first), strip.lanes, n, x + (size_t)first * columns, columns, keys, nullptr,
                             first == 0, out);
      }
      for (int i = 0; i < n; i++) {
        const int64_t at = (cell.first_query + strip.row[i]) * outs + unit.head;
        memcpy(a.out + at * a.width, out + (size_t)i * columns, sizeof(float) * a.width);
      }
    }
  }
};

template <class Dot>
static bool multiply_maps(const scfast::MatmulArgs* args) {
  const Geometry& g = args->where;
  const Schedule schedule(g, args->fusion == scfast::kNone ? g.heads : 1, kProductUnit);
  if (!schedule.ready()) return false;
  const bool in_place = args->width % W == 0 && (uintptr_t)args->x % sizeof(vf) == 0;
  return walk(schedule, MatmulWorker<Dot>{
                            *args, {g, scfast::kSum, args->head_weights, 0}, (args->width + W - 1) / W * W, in_place});
}

static bool attention_matmul(const scfast::MatmulArgs* args) {
#if defined(SCFAST_BF16)
  if (args->where.dtype == kBfloat16) return multiply_maps<Bfloat16Pair>(args);
#endif
  return multiply_maps<Float32>(args);
}

}  // namespace
