// Bringing a strip's queries, and a head's keys and values, into the layout of the tiles.
#pragma once
#include "strip.hpp"

namespace {

SCFAST_INLINE const void* element(const void* base, int64_t index, int dtype) {
  return (const char*)base + index * (int64_t)size_of(dtype);
}

// to[column][0:4] = factor * from[0:4][column]
SCFAST_INLINE void transpose(const float* const* from, int columns, float factor, int ld, float* to) {
  int c = 0;
#if defined(__SSE2__)
  const __m128 f = _mm_set1_ps(factor);
  for (; c + 4 <= columns; c += 4) {
    __m128 x0 = _mm_loadu_ps(from[0] + c), x1 = _mm_loadu_ps(from[1] + c), x2 = _mm_loadu_ps(from[2] + c),
           x3 = _mm_loadu_ps(from[3] + c);
    _MM_TRANSPOSE4_PS(x0, x1, x2, x3);
    _mm_store_ps(to + (c + 0) * ld, _mm_mul_ps(x0, f));
    _mm_store_ps(to + (c + 1) * ld, _mm_mul_ps(x1, f));
    _mm_store_ps(to + (c + 2) * ld, _mm_mul_ps(x2, f));
    _mm_store_ps(to + (c + 3) * ld, _mm_mul_ps(x3, f));
  }
#endif
  for (; c < columns; c++)
    for (int i = 0; i < 4; i++) to[c * ld + i] = from[i][c] * factor;
}

// q panel [dim][lanes] of the given rows, times the score's factor; lanes without a row are 0.
static void pack_queries(const Geometry& g, const Cell& cell, int head, const int* row, int rows, float factor,
                         float* unpacked, float* panel) {
  const int lanes = (rows + W - 1) / W * W, dim = g.dim;
  const auto query = [&](int lane) {
    return element(g.q, (cell.first_query + row[lane]) * g.q_token + head * g.q_head, g.dtype);
  };
  for (int lane = 0; lane < rows; lane++) prefetch_row(query(lane), dim * size_of(g.dtype));
  for (int lane = 0; lane < lanes; lane += 4) {
    const float* x[4];
    for (int i = 0; i < 4; i++) {
      float* copy = unpacked + i * dim;
      if (lane + i < rows) {
        const void* source = query(lane + i);
        x[i] = (const float*)source;
        if (g.dtype != kFloat32) to_float(source, g.dtype, dim, copy), x[i] = copy;
      } else {
        memset(copy, 0, sizeof(float) * dim);
        x[i] = copy;
      }
    }
    transpose(x, dim, factor, lanes, panel + lane);
  }
}

static void pack_keys(const Geometry& g, const Cell& cell, int kv_head, float* keys) {
  const void* first = element(g.k, cell.first_key * g.k_token + kv_head * g.k_head, g.dtype);
  for (int j = 0; j < cell.keys; j++) {
    prefetch_row(element(first, (j + kRowsAhead) * g.k_token, g.dtype), g.dim * size_of(g.dtype));
    to_float(element(first, j * g.k_token, g.dtype), g.dtype, g.dim, keys + (size_t)j * g.dim);
  }
  memset(keys + (size_t)cell.keys * g.dim, 0, sizeof(float) * KT * g.dim);  // the last tile reads on
}

// Values [keys][columns], zeros beyond v_dim.
static void pack_values(const void* v, int64_t token, int64_t head_stride, int v_dim, int dtype, const Cell& cell,
                        int kv_head, int columns, float* values) {
  const void* first = element(v, cell.first_key * token + kv_head * head_stride, dtype);
  for (int j = 0; j < cell.keys; j++) {
    float* to = values + (size_t)j * columns;
    prefetch_row(element(first, (j + kRowsAhead) * token, dtype), v_dim * size_of(dtype));
    to_float(element(first, j * token, dtype), dtype, v_dim, to);
    for (int c = v_dim; c < columns; c++) to[c] = 0.f;
  }
}

// panel[column][lane] = factor * rows[lane][column]; `rows` has room for whole vectors of lanes, `zero` is such a row.
static void to_panel(const float* rows, int ld, int n_rows, int columns, float factor, const float* zero,
                     float* panel) {
  const int lanes = (n_rows + W - 1) / W * W;
  for (int lane = 0; lane < lanes; lane += 4) {
    const float* x[4];
    for (int i = 0; i < 4; i++) x[i] = lane + i < n_rows ? rows + (size_t)(lane + i) * ld : zero;
    transpose(x, columns, factor, lanes, panel + lane);
  }
}

#if defined(SCFAST_BF16)
static void pack_queries(const Geometry& g, const Cell& cell, int head, const int* row, int rows, float, float*,
                         uint32_t* panel) {
  const int lanes = (rows + W - 1) / W * W, depth = (g.dim + 1) / 2;
  memset(panel, 0, sizeof(uint32_t) * (size_t)depth * lanes);
  for (int lane = 0; lane < rows; lane++) {
    const uint16_t* x = (const uint16_t*)g.q + (cell.first_query + row[lane]) * g.q_token + head * g.q_head;
    for (int d = 0; d < g.dim; d++) panel[(d / 2) * lanes + lane] |= (uint32_t)x[d] << (16 * (d % 2));
  }
}

static void pack_keys(const Geometry& g, const Cell& cell, int kv_head, uint32_t* keys) {
  const int depth = (g.dim + 1) / 2;
  for (int j = 0; j < cell.keys; j++) {
    const uint16_t* x = (const uint16_t*)g.k + (cell.first_key + j) * g.k_token + kv_head * g.k_head;
    uint32_t* to = keys + (size_t)j * depth;
    to[depth - 1] = 0;
    memcpy(to, x, sizeof(uint16_t) * g.dim);
  }
  memset(keys + (size_t)cell.keys * depth, 0, sizeof(uint32_t) * KT * depth);
}

// Values of two keys in one word, [pairs of keys][columns].
static void pack_values(const void* v, int64_t token, int64_t head_stride, int v_dim, int, const Cell& cell,
                        int kv_head, int columns, uint32_t* values) {
  const uint16_t* base = (const uint16_t*)v + cell.first_key * token + kv_head * head_stride;
  for (int j = 0; j < cell.keys; j += 2) {
    const uint16_t *even = base + j * token, *odd = base + (j + 1) * token;
    uint32_t* to = values + (size_t)(j / 2) * columns;
    const bool both = j + 1 < cell.keys;
    for (int c = 0; c < v_dim; c++) to[c] = even[c] | (both ? (uint32_t)odd[c] << 16 : 0);
    for (int c = v_dim; c < columns; c++) to[c] = 0;
  }
}
#endif

}  // namespace
