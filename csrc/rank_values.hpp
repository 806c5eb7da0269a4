// rank_values: the genes of every cell in falling order of count / n_counts * target / factor, straight from CSR.
//
// Arithmetic (bit for bit that of Geneformer's tokeniser on float32 counts, whose sparse division is a product with
// a reciprocal): x = float32(float32(count * float32(1 / n_counts)) * target), value = float64(x) * (1 / factor).
// Order: value falling, equal values by column rising; genes without a count or without a token have no place.
// One pass over the matrix: the steps that AVX-512 has instructions for (compress, gather) exist twice, with the
// same answers; the rest is loads, stores and integer sorting.
#pragma once
#include "csr.hpp"

namespace scfast {

// Slots number the genes that several columns add up to.
struct RankInput {
  const int64_t* indptr;        // [B + 1]
  const void* indices;          // [nnz] int32 or int64
  const void* data;             // [nnz] CountType
  int wide_indices, count_type;
  int64_t n_cells, n_columns;
  const float* n_counts;        // [B]
  const int32_t* token_ids;     // [n_columns], -1: not in the vocabulary
  const double* factors;        // [n_columns]
  const int32_t* slots;         // [n_columns], -1: the column is a gene by itself
  const int32_t* slot_columns;  // [n_slots], the column that stands for the gene
  int n_slots;
  float target;
  int threads;
};

// Checks every cell and ranks it. n_expressed, n_in_vocabulary, both [B]: genes with a count, and those of them with a
// token; a cell that must be refused gets n_expressed = -1 and no genes. token_ids, columns: the first
// min(n_in_vocabulary, limit) genes of every cell, one cell after another, with room for min(entries, limit) a cell.
// The caller knows whether the machine has AVX-512 (F, BW, DQ, VL). False: out of memory.
bool rank_values(const RankInput& in, int64_t limit, bool avx512, int64_t* n_expressed, int64_t* n_in_vocabulary,
                 int32_t* token_ids, int32_t* columns);

}  // namespace scfast
