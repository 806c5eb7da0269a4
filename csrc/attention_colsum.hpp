// attention_colsum: sums[r][hout][j] = sum_i row_weights[r][i] * A[i][j], A the fused map; float32 [R, Hout, Tk].
// residual = a >= 0: the rollout step a * (r'^T A) + (1 - a) * r', r' = r / (a * rho + 1 - a), rho the row sums of A.
// Queries whose weights are all zero are skipped. row_sums [Tq, Hout] on request.
#pragma once
#include "maps.hpp"
#include "partials.hpp"

namespace {

struct ColsumJob {
  const scfast::ColsumArgs& a;
  const Partials& partials;
  float* fused_row_sums;  // [Tq, Hout], written when strips are those of the fused map itself, else null

  int outs() const { return a.fusion == scfast::kNone ? a.where.heads : 1; }
  float* fused_row_sum(const Cell& cell, int row, int head) const {
    return fused_row_sums + (cell.first_query + row) * outs() + head;
  }

  // Row sum of the map of an output head, known without a visit: softmax rows sum to 1.
  float row_sum(const Cell& cell, int row, int head) const {
    const Geometry& g = a.where;
    if (fused_row_sums) return *fused_row_sum(cell, row, head);
    if (cell.keys == 0 || (g.causal && row + cell.causal_offset < 0)) return 0.f;
    if (a.fusion == scfast::kNone) return a.head_weights ? a.head_weights[head] : 1.f;
    float total = 0.f;
    for (int h = 0; h < g.heads; h++) total += a.head_weights ? a.head_weights[h] : 1.f;
    return total;
  }

  float weight(const Cell& cell, int set, int row, float rho) const {
    const float w = a.row_weights[set * a.where.total_q + cell.first_query + row];
    return a.residual < 0 || w == 0.f ? w : w / (a.residual * rho + (1.f - a.residual));
  }

  int choose_rows(const Unit& unit, int32_t* rows) const {
    memset(partials.of(unit.cell, unit.head, unit.chunk), 0, sizeof(float) * (size_t)unit.cell.keys * a.n_weights);
    int n = 0;
    for (int i = unit.first_row; i < unit.first_row + unit.rows; i++) {
      bool used = fused_row_sums && a.row_sums;  // then every row is asked for
      for (int set = 0; set < a.n_weights && !used; set++)
        used = a.row_weights[set * a.where.total_q + unit.cell.first_query + i] != 0.f;
      if (used)
        rows[n++] = i;
      else if (fused_row_sums)
        *fused_row_sum(unit.cell, i, unit.head) = 0.f;
    }
    return n;
  }

  void strip(const Unit& unit, const Strip& s, const float*, int, Columns* owed) const {
    float rho[kLanes] __attribute__((aligned(64)));
    if (fused_row_sums) {
      for (int lane = 0; lane < s.lanes; lane += W) {
        vf total = {};
        for (int first = 0; first < s.keys; first += kKeys) {  // block by block: the error stays that of short sums
          vf block = {};
          for (int key = first; key < s.keys && key < first + kKeys; key++)
            block += load(s.p + (size_t)key * s.lanes + lane);
          total += block;
        }
        store(rho + lane, total);
      }
      for (int i = 0; i < s.rows; i++) *fused_row_sum(unit.cell, s.row[i], unit.head) = rho[i];
    } else {
      for (int i = 0; i < s.rows; i++) rho[i] = row_sum(unit.cell, s.row[i], unit.head);
    }
    owe(s, a.n_weights, partials.of(unit.cell, unit.head, unit.chunk), unit.cell.keys, owed);
    for (int set = 0; set < a.n_weights; set++)
      for (int i = 0; i < kLanes; i++)
        owed->weight[set * kLanes + i] = i < s.rows ? weight(unit.cell, set, s.row[i], rho[i]) : 0.f;
  }

  // Partials to the output of one cell: heads and chunks in index order.
  void finish(const Cell& cell, int slots) const {
    const Geometry& g = a.where;
    const int outs = this->outs();
    const float scale = a.residual < 0 ? 1.f : a.residual;
    for (int set = 0; set < a.n_weights; set++)
      for (int out = 0; out < outs; out++) {
        float* to = a.sums + ((int64_t)set * outs + out) * g.total_k + cell.first_key;
        const int begin = outs == 1 ? 0 : out, end = outs == 1 ? slots : out + 1;
        for (int h = begin; h < end; h++)
          partials.collect(cell, h, set, scale * (a.head_weights && !fused_row_sums ? a.head_weights[h] : 1.f),
                           h == begin, to);
        if (a.residual >= 0)
          for (int i = 0; i < cell.queries; i++)
            to[i] += (1.f - a.residual) * weight(cell, set, i, row_sum(cell, i, out));
      }
    if (a.row_sums)
      for (int i = 0; i < cell.queries; i++)
        for (int out = 0; out < outs; out++) a.row_sums[(cell.first_query + i) * outs + out] = row_sum(cell, i, out);
  }
};

static bool attention_colsum(const scfast::ColsumArgs* args) {
  const Geometry& g = args->where;
  const bool given = args->map.kind != scfast::kProb;
  const bool fused = given || args->fusion == scfast::kMax || args->fusion == scfast::kMin;
  const int slots = fused && args->fusion != scfast::kNone ? 1 : g.heads;
  const Schedule schedule(g, slots, given ? kMapUnit : kRowsPerUnit);
  if (!schedule.ready()) return false;
  const Partials partials(schedule, args->n_weights);
  float* row_sums =
      fused ? (float*)malloc(sizeof(float) * (g.total_q * (args->fusion == scfast::kNone ? g.heads : 1) + 1)) : nullptr;
  bool done = partials.ready() && (!fused || row_sums);
  const ColsumJob job{*args, partials, row_sums};
  const Wants wants = {true, false, false, args->n_weights};
  if (done)
    done = given   ? walk_map(schedule, args->map, args->fusion, args->head_weights, args->n_weights, job)
           : fused ? walk_fused(schedule, args->fusion, args->head_weights, args->n_weights, job)
                   : walk_heads(schedule, Values(), wants, job);
  if (done) {
#pragma omp parallel for num_threads(g.threads) schedule(dynamic)
    for (int cell_index = 0; cell_index < g.n_cells; cell_index++) job.finish(cell_at(g, cell_index), slots);
  }
  free(row_sums);
  return done;
}

}  // namespace
