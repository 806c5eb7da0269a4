// attention_forward: out and lse of packed cells; received [H, Tk], entropy and max [Tq, H] in the same visit.
// float32, bfloat16 or float16 in, float32 accumulation; lse in natural logarithms, entropy in nats.
#pragma once
#include "partials.hpp"

namespace {

struct ForwardJob {
  const scfast::ForwardArgs& a;
  const Partials& partials;

  int choose_rows(const Unit& unit, int32_t* rows) const {
    for (int i = 0; i < unit.rows; i++) rows[i] = unit.first_row + i;
    if (a.received) memset(partials.of(unit.cell, unit.head, unit.chunk), 0, sizeof(float) * unit.cell.keys);
    return unit.rows;
  }

  void strip(const Unit& unit, const Strip& s, const float* out, int columns, Columns* owed) const {
    const Geometry& g = a.where;
    const int64_t row_bytes = a.v_dim * (int64_t)size_of(g.dtype);
    for (int i = 0; i < s.rows; i++) {
      const int64_t at = (unit.cell.first_query + s.row[i]) * g.heads + unit.head;
      prefetch_row((char*)a.out + (at + kRowsAhead * g.heads) * row_bytes, row_bytes);
      from_float(out + (size_t)i * columns, s.inv[i], a.v_dim, g.dtype, (char*)a.out + at * row_bytes);
      a.lse[at] = s.lse[i];
      if (a.entropy) a.entropy[at] = s.entropy[i];
      if (a.max) a.max[at] = s.inv[i];  // the largest score's exponential is 1
    }
    if (a.received) {
      owe(s, 1, partials.of(unit.cell, unit.head, unit.chunk), unit.cell.keys, owed);
      for (int i = 0; i < kLanes; i++) owed->weight[i] = i < s.rows ? 1.f : 0.f;
    }
  }
};

static bool attention_forward(const scfast::ForwardArgs* args) {
  const Geometry& g = args->where;
  const Schedule schedule(g, g.heads);
  if (!schedule.ready()) return false;
  const Partials partials(schedule, args->received ? 1 : 0);
  if (!partials.ready()) return false;
  const ForwardJob job{*args, partials};
  const Values values = {args->v, args->v_token, args->v_head, args->v_dim};
  const Wants wants = {args->received != nullptr, args->entropy != nullptr, true, 1};
  if (!walk_heads(schedule, values, wants, job)) return false;
  if (args->received) {
#pragma omp parallel for num_threads(g.threads) schedule(dynamic)
    for (int cell_index = 0; cell_index < g.n_cells; cell_index++) {
      const Cell cell = cell_at(g, cell_index);
      for (int h = 0; h < g.heads; h++)
        partials.collect(cell, h, 0, 1.f, true, args->received + (int64_t)h * g.total_k + cell.first_key);
    }
  }
  return true;
}

}  // namespace
