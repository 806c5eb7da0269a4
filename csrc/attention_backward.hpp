// attention_backward: the gradients of q, k and v from q, k, v, out, lse and the gradient of out.
// Scores are computed again: p = exp(s - lse), dp = d_out v^T, ds = p (dp - <d_out, out>) times the softcap's slope;
// then d_v = p^T d_out, d_k = scale ds^T q, d_q = scale ds k. Nothing of size queries x keys is kept.
#pragma once
#include "partials.hpp"

namespace {

// Queries whose part of d_k and d_v is summed in one go. Longer cells are split, and their parts added in order.
constexpr int kBackwardUnit = 5 * kRowsPerUnit;
// Queries at hand while the keys stream past, five strips: their panels, rows and d_q stay in the second-level cache.
constexpr int kChunk = 5 * kLanes;

// A strip of the chunk at hand.
struct BackwardStrip {
  int first, rows, vectors;  // row within the chunk
  int last, unmasked;        // keys that some row sees, and that every row sees
};

// p <- exp(score - lse), ds <- p (ds - delta) slope; ds comes in as d_out v^T.
template <int NV, bool kPlain>
static void differentiate(float* p, float* ds, int first_key, int keys, const Score& score, const float* limits,
                          const float* lses, const float* deltas) {
  vf limit[NV], lse[NV], delta[NV];
  for (int v = 0; v < NV; v++) {
    limit[v] = load(limits + v * W);
    lse[v] = load(lses + v * W);
    delta[v] = load(deltas + v * W);
  }
  for (int key = 0; key < keys; key++) {
    const vf bias = splat(score.bias ? score.bias[(size_t)(first_key + key) * score.bias_stride] * kLog2e : 0.f);
    const vf position = splat((float)(first_key + key));
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) {
      float *const at = p + (key * NV + v) * W, *const d_at = ds + (key * NV + v) * W;
      vf s = load(at), slope = splat(1.f);
      if (!kPlain) {
        if (score.cap > 0) {
          const vf t = tanh(s);
          slope = 1.f - t * t;
          s = splat(score.cap) * t;
        }
        s = max(splat(kHidden), s + bias);
        if (score.causal) s = select(position > limit[v], splat(kHidden), s);
      }
      const vf e = exp2_negative(s - lse[v]);
      vf d = e * (load(d_at) - delta[v]);
      if (!kPlain) d = d * slope;
      store(at, e);
      store(d_at, d);
    }
  }
}

struct BackwardWorker {
  const scfast::BackwardArgs& a;
  const Partials& partials;
  int k_columns, v_columns;  // padded to whole vectors
  float *k, *v, *dk, *dv;    // [keys][columns]
  float *q_panel, *do_panel, *q_rows, *do_rows, *dq;  // of a chunk: [strips][dim][lanes] and [rows][columns]
  float *lse, *delta, *limit, *zero, *p, *ds;

  BackwardWorker(const scfast::BackwardArgs& args, const Partials& sums)
      : a(args), partials(sums), k_columns((args.where.dim + W - 1) / W * W), v_columns((args.v_dim + W - 1) / W * W) {}

  void take(Scratch& scratch, int longest) {
    const size_t keys = (size_t)(longest + kKeys - 1) / kKeys * kKeys + KT;
    k = scratch.take<float>(keys * k_columns);
    v = scratch.take<float>(keys * v_columns);
    dk = scratch.take<float>(keys * k_columns);
    dv = scratch.take<float>(keys * v_columns);
    q_panel = scratch.take<float>((size_t)kChunk * a.where.dim);
    do_panel = scratch.take<float>((size_t)kChunk * a.v_dim);
    q_rows = scratch.take<float>((size_t)kChunk * k_columns);
    do_rows = scratch.take<float>((size_t)kChunk * v_columns);
    dq = scratch.take<float>((size_t)kChunk * k_columns);
    lse = scratch.take<float>(kChunk);
    delta = scratch.take<float>(kChunk);
    limit = scratch.take<float>(kChunk);
    zero = scratch.take<float>(k_columns > v_columns ? k_columns : v_columns);
    p = scratch.take<float>((size_t)kKeys * kLanes);
    ds = scratch.take<float>((size_t)kKeys * kLanes);
  }

  void visit(const Unit& unit) {
    const Geometry& g = a.where;
    const Cell& cell = unit.cell;
    pack_values(g.k, g.k_token, g.k_head, g.dim, g.dtype, cell, unit.head, k_columns, k);
    pack_values(a.v, a.v_token, a.v_head, a.v_dim, g.dtype, cell, unit.head, v_columns, v);
    memset(k + (size_t)cell.keys * k_columns, 0, sizeof(float) * KT * k_columns);  // the last tile reads on
    memset(v + (size_t)cell.keys * v_columns, 0, sizeof(float) * KT * v_columns);
    memset(zero, 0, sizeof(float) * (k_columns > v_columns ? k_columns : v_columns));
    memset(dk, 0, sizeof(float) * (size_t)cell.keys * k_columns);
    memset(dv, 0, sizeof(float) * (size_t)cell.keys * v_columns);
    const int group = g.heads / g.kv_heads;
    for (int head = unit.head * group; head < (unit.head + 1) * group; head++)
      for (int row = 0; row < unit.rows; row += kChunk)
        visit_chunk(cell, head, unit.first_row + row, unit.rows - row < kChunk ? unit.rows - row : kChunk);
    float* to = partials.of(cell, unit.head, unit.chunk);
    for (int j = 0; j < cell.keys; j++, to += g.dim + a.v_dim) {
      memcpy(to, dk + (size_t)j * k_columns, sizeof(float) * g.dim);
      memcpy(to + g.dim, dv + (size_t)j * v_columns, sizeof(float) * a.v_dim);
    }
  }

  void visit_chunk(const Cell& cell, int head, int first_row, int rows) {
    const Geometry& g = a.where;
    const Score score = score_of(g, cell, head, false);
    load_rows(cell, head, first_row, rows);
    BackwardStrip strips[kChunk / kLanes];
    int n = 0, last = 0;
    for (int row = 0; row < rows; row += kLanes, n++) {
      strips[n] = load_strip(cell, score, first_row + row, row, rows - row < kLanes ? rows - row : kLanes);
      if (strips[n].last > last) last = strips[n].last;
    }
    memset(dq, 0, sizeof(float) * (size_t)rows * k_columns);
    for (int first = 0; first < last; first += kKeys)
      for (int i = 0; i < n; i++) {
        const int keys = strips[i].last - first < kKeys ? strips[i].last - first : kKeys;
        if (keys <= 0) continue;
        if (strips[i].vectors == 1)
          visit_block<1>(score, strips[i], first, keys);
        else if (strips[i].vectors == 2)
          visit_block<2>(score, strips[i], first, keys);
        else
          visit_block<3>(score, strips[i], first, keys);
      }
    for (int row = 0; row < rows; row++) {
      const int64_t at = (cell.first_query + first_row + row) * g.heads + head;
      from_float(dq + (size_t)row * k_columns, g.scale, g.dim, g.dtype,
                 (char*)a.dq + at * g.dim * (int64_t)size_of(g.dtype));
    }
  }

  // Rows of q and d_out; lse in units of log2; delta = <d_out, out>.
  void load_rows(const Cell& cell, int head, int first_row, int rows) {
    const Geometry& g = a.where;
    for (int row = 0; row < rows; row++) {
      const int64_t token = cell.first_query + first_row + row, at = token * g.heads + head;
      prefetch_row(element(g.q, (token + kRowsAhead) * g.q_token + head * g.q_head, g.dtype), g.dim * size_of(g.dtype));
      float *q = q_rows + (size_t)row * k_columns, *d = do_rows + (size_t)row * v_columns;
      to_float(element(g.q, token * g.q_token + head * g.q_head, g.dtype), g.dtype, g.dim, q);
      for (int c = g.dim; c < k_columns; c++) q[c] = 0.f;
      to_float(element(a.d_out, at * a.v_dim, g.dtype), g.dtype, a.v_dim, d);
      float* out = p;  // a block's scores are not at work yet
      to_float(element(a.out, at * a.v_dim, g.dtype), g.dtype, a.v_dim, out);
      for (int c = a.v_dim; c < v_columns; c++) d[c] = out[c] = 0.f;
      vf product = {};
      for (int c = 0; c < v_columns; c += W) product += load(d + c) * load(out + c);
      float total = 0.f;
      for (int i = 0; i < W; i++) total += product[i];
      delta[row] = total;
      lse[row] = a.lse[at] == -INFINITY ? 0.f : a.lse[at] * kLog2e;  // no key in sight: every score is hidden
    }
    const int lanes = (rows + W - 1) / W * W;
    for (int row = rows; row < lanes; row++) delta[row] = lse[row] = 0.f;
  }

  BackwardStrip load_strip(const Cell& cell, const Score& score, int query, int first, int rows) {
    const Geometry& g = a.where;
    const int vectors = (rows + W - 1) / W;
    BackwardStrip strip = {first, rows, vectors, cell.keys, cell.keys};
    to_panel(q_rows + (size_t)first * k_columns, k_columns, rows, g.dim, score.query_factor, zero,
             q_panel + (size_t)first * g.dim);
    to_panel(do_rows + (size_t)first * v_columns, v_columns, rows, a.v_dim, 1.f, zero,
             do_panel + (size_t)first * a.v_dim);
    if (score.causal) {
      const int nearest = query + score.offset, furthest = nearest + rows - 1;
      strip.unmasked = nearest + 1;
      if (furthest + 1 < strip.last) strip.last = furthest + 1 > 0 ? furthest + 1 : 0;
    }
    for (int lane = 0; lane < vectors * W; lane++) limit[first + lane] = (float)(query + lane + score.offset);
    return strip;
  }

  template <int NV>
  void visit_block(const Score& score, const BackwardStrip& strip, int first, int keys) {
    const Geometry& g = a.where;
    constexpr int lanes = NV * W;
    vf unused[NV];
    for (int v = 0; v < NV; v++) unused[v] = vf{};
    const float *q = q_panel + (size_t)strip.first * g.dim, *d_out = do_panel + (size_t)strip.first * a.v_dim;
    const float* k_block = k + (size_t)first * k_columns;
    const float* v_block = v + (size_t)first * v_columns;
    for (int key = 0; key < keys; key += KT)
      score_tile<Float32, NV>(q, k_block + (size_t)key * k_columns, k_columns, g.dim, 1.f, keys - key, p + key * lanes,
                              unused, (const char*)(v_block + (size_t)key * v_columns));
    for (int key = 0; key < keys; key += KT)
      score_tile<Float32, NV>(d_out, v_block + (size_t)key * v_columns, v_columns, a.v_dim, 1.f, keys - key,
                              ds + key * lanes, unused, (const char*)(dv + (size_t)(first + key) * v_columns));
    const bool plain = score.cap == 0 && !score.bias && first + keys <= strip.unmasked;
    const float *limits = limit + strip.first, *lses = lse + strip.first, *deltas = delta + strip.first;
    if (plain)
      differentiate<NV, true>(p, ds, first, keys, score, limits, lses, deltas);
    else
      differentiate<NV, false>(p, ds, first, keys, score, limits, lses, deltas);
    product_by_row<Float32>(p, lanes, keys, do_rows + (size_t)strip.first * v_columns, v_columns, strip.rows,
                            dv + (size_t)first * v_columns);
    product_by_row<Float32>(ds, lanes, keys, q_rows + (size_t)strip.first * k_columns, k_columns, strip.rows,
                            dk + (size_t)first * k_columns);
    value_block<Float32>(ds, lanes, strip.rows, k_block, k_columns, keys, nullptr, false,
                         dq + (size_t)strip.first * k_columns);
  }
};

// d_k and d_v of one cell: parts in index order.
static void finish_backward(const scfast::BackwardArgs& a, const Partials& partials, const Cell& cell) {
  const Geometry& g = a.where;
  const int width = g.dim + a.v_dim;
  const bool visited = partials.slot[cell.index] >= 0;
  const int chunks = visited ? partials.schedule.chunks_of(cell) : 0;
  float sum[2 * 256];
  for (int head = 0; head < g.kv_heads; head++)
    for (int j = 0; j < cell.keys; j++) {
      for (int c = 0; c < width; c++) sum[c] = 0.f;
      for (int chunk = 0; chunk < chunks; chunk++) {
        const float* part = partials.of(cell, head, chunk) + (size_t)j * width;
        for (int c = 0; c < width; c++) sum[c] += part[c];
      }
      const int64_t at = (cell.first_key + j) * g.kv_heads + head, bytes = size_of(g.dtype);
      from_float(sum, g.scale, g.dim, g.dtype, (char*)a.dk + at * g.dim * bytes);
      from_float(sum + g.dim, 1.f, a.v_dim, g.dtype, (char*)a.dv + at * a.v_dim * bytes);
    }
}

static bool attention_backward(const scfast::BackwardArgs* args) {
  const Geometry& g = args->where;
  const Schedule schedule(g, g.kv_heads, kBackwardUnit);
  if (!schedule.ready()) return false;
  const Partials partials(schedule, g.dim + args->v_dim);
  if (!partials.ready() || !walk(schedule, BackwardWorker(*args, partials))) return false;
#pragma omp parallel for num_threads(g.threads) schedule(dynamic)
  for (int cell = 0; cell < g.n_cells; cell++) finish_backward(*args, partials, cell_at(g, cell));
  return true;
}

}  // namespace
