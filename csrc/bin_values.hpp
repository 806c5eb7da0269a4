// bin_values: the counts of every cell to bins 1 .. n_bins - 1, straight from CSR; zeros are bin 0.
//
// segment   equal-count bins of the cell's n counts above 0: 1 + (those smaller) * (n_bins - 1) / n, rounded down.
// value     x = count * scale: 1 up to 1, round(x) to even up to the cut-off c, above it
//           round(c) + (levels below x), where levels = c * 2^(k / b): the formula's ceil(b * log2(x / c)), capped.
// quantile  scGPT's: edges are quantiles of the counts above 0 at `levels`, between neighbours by NumPy's formula in
//           NumPy's precision; left = edges <= x, right = edges < x; ceil(u * (right - left) + left).
//
// u is the number `column` of a SplitMix64 stream (Steele, Lea & Flood 2014) that starts at number `row id` of the
// stream of the seed: the same for a cell whatever the batch, the threads and the order of its entries.
#pragma once
#include "csr.hpp"

namespace scfast {

enum BinMode : int { kBinSegment = 0, kBinValue = 1, kBinQuantile = 2 };

// What became of a cell. Columns that do not rise may repeat, which the caller finds out.
enum BinState : int8_t { kBinned = 0, kBadCount = 1, kColumnsFall = 2 };

struct BinInput {
  const int64_t* indptr;     // [B + 1]
  const void* indices;       // [nnz] int32 or int64
  const void* data;          // [nnz] CountType
  int wide_indices, count_type;
  int64_t n_cells;
  int mode, n_bins;
  const double* scales;      // [B], value: what counts are multiplied by; null: by nothing
  double cutoff;             // value
  const double* levels;      // [n_levels], value and quantile; rising
  int n_levels;
  uint64_t seed;
  const int64_t* row_ids;    // [B], quantile
  const double* uniforms;    // [nnz] in [0, 1), quantile: taken instead of random numbers; null: none
  int threads;
};

// bins: [indptr[B] - indptr[0]], of every entry; states: [B] BinState. False: out of memory.
bool bin_values(const BinInput& in, int32_t* bins, int8_t* states);

}  // namespace scfast
