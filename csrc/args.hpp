// What kernels are told: plain structs of pointers and sizes, shared by module.cpp and every instruction set.
#pragma once
#include <cstdint>

namespace scfast {

enum Dtype : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };
enum Heads : int { kNone = 0, kSum = 1, kMax = 2, kMin = 3 };
enum MapKind : int { kProb = 0, kNorm = 1, kRelevance = 2, kSignedRelevance = 3 };

// Inputs of every attention kernel. Strides count elements; the last dimension has stride 1.
struct Geometry {
  int dtype;
  const void *q, *k;                            // [Tq, H, D], [Tk, Hkv, D]
  int64_t q_token, q_head, k_token, k_head;     // strides
  int64_t total_q, total_k;
  int heads, kv_heads, dim;
  const int32_t *cu_seqlens_q, *cu_seqlens_k;   // [B + 1]
  const int32_t* work;                          // [n_work, 2]: cell, first row within the cell
  int n_cells, n_work;
  const int32_t* causal_offset;                 // [B]
  const float* key_bias;                        // [Tk, bias_heads] or null
  int bias_heads;                               // 0, 1 or H
  float scale, softcap;                         // softcap 0: none
  bool causal;
  int threads;
};

struct ForwardArgs {
  Geometry where;
  const void* v;                                // [Tk, Hkv, Dv]
  int64_t v_token, v_head;
  int v_dim;
  void* out;                                    // [Tq, H, Dv], dtype of q
  float* lse;                                   // [Tq, H], natural logarithm
  float* received;                              // [H, Tk] or null
  float* entropy;                               // [Tq, H] or null, nats
  float* max;                                   // [Tq, H] or null
};

struct BackwardArgs {
  Geometry where;
  const void* v;                                // [Tk, Hkv, Dv]
  int64_t v_token, v_head;
  int v_dim;
  const void *out, *d_out;                      // [Tq, H, Dv], contiguous, dtype of q
  const float* lse;                             // [Tq, H]
  void *dq, *dk, *dv;                           // [Tq, H, D], [Tk, Hkv, D], [Tk, Hkv, Dv], contiguous, dtype of q
};

// The map whose elements are reduced, where it is not the probabilities themselves.
struct MapArgs {
  int kind;                                     // MapKind
  const float* lse;                             // [Tq, H] or null: computed
  const float* gram;                            // norm: [Tk, H, H]
  const float *diagonal_linear, *diagonal_constant, *row_scale;  // [Tq, H], [Tq], [Tq], each or null
  const void *v, *d_out;                        // relevance: [Tk, Hkv, Dv], [Tq, H, Dv]
  int64_t v_token, v_head, d_token, d_head;     // strides
  int v_dim;
};

struct ColsumArgs {
  Geometry where;
  const float* row_weights;                     // [R, Tq]
  int n_weights;                                // R
  int fusion;                                   // Heads
  const float* head_weights;                    // [H] or null
  float residual;                               // a of the rollout step, below 0: plain product
  float* sums;                                  // [R, Hout, Tk]
  float* row_sums;                              // [Tq, Hout] or null
  MapArgs map;
};

struct MatmulArgs {
  Geometry where;
  const float* x;                               // [Tk, width]
  int width;
  int fusion;                                   // kSum or kNone
  const float* head_weights;                    // [H] or null
  float* out;                                   // [Tq, Hout, width]
};

struct TopkArgs {
  Geometry where;
  int n;                                        // entries of a row
  int fusion;
  const float* head_weights;
  float* values;                                // [Tq, Hout, n]
  int64_t* keys;                                // [Tq, Hout, n], place within the cell
};

struct ScatterArgs {
  Geometry where;
  const int32_t *targets, *sources;             // [Tq], [Tk], -1: not counted
  const int32_t* query_order;                   // [Tq]: within each cell, by target
  const float* head_weights;                    // [H] or null; heads are summed
  void* out;                                    // [n_sources, n_targets], float64 or float32
  bool wide;                                    // float64
  int64_t out_row;                              // stride
  int64_t first_source, n_sources;              // the sources that out holds
};

struct RowstatsArgs {
  Geometry where;
  int fusion;
  const float* head_weights;
  MapArgs map;
  float *entropy, *max, *self_weight, *row_sum; // [Tq, Hout] each
};

struct CompareArgs {
  Geometry where[2];                            // one of each model, over the same queries, keys and heads
  double* sums;                                 // [3, B, H]: P1 * P2, P1^2, P2^2
};

// Rows whose pairs are compared, cell by cell. Strides count elements; the last dimension has stride 1.
struct CosineArgs {
  int dtype;
  const void *x, *y;                            // [N, D], [M, D]; y null: x with itself, pairs i < j
  int64_t x_row, y_row;                         // strides
  int dim;
  const int64_t *cu_x, *cu_y;                   // [B + 1]
  int n_cells;
  int64_t* zeros;                               // [B, 2] rows of x and of y that are all 0; added to
  int threads;
};

struct CosineHistogramArgs {
  CosineArgs where;
  int bins;
  const float* edges;                           // [bins + 1], evenly from -1 to 1
  int64_t* counts;                              // [B, bins + 1], the last: pairs that are NaN; added to
  float *low, *high;                            // [B] each; inf and -inf without pairs
  double *sum, *squares;                        // [B] each
};

struct CosineMatrixArgs {
  CosineArgs where;
  float* out;                                   // [rows of a cell, columns] of every cell, one after another
  const int64_t* first;                         // [B] where each begins
  int64_t out_row;                              // stride; 0: the columns of each cell
};

struct CosineTopkArgs {
  CosineArgs where;
  int k;
  float* values;                                // [N, k]
  int64_t* indices;                             // [N, k], row of y within the cell
};

struct CosineThresholdArgs {
  CosineArgs where;
  float threshold;
  int64_t most;                                 // pairs; where more are found nothing is returned
  int64_t* indptr;                              // [N + 1]
  int64_t found;                                // from here on what the kernel says
  int64_t* indices;                             // [found], packed rows of y; the caller frees both
  float* values;                                // [found]
};

}  // namespace scfast
