// Which instruction set this machine runs: one table of function pointers for each.
#pragma once
#include "args.hpp"

namespace scfast {

struct Kernels {
  const char* name;
  bool (*attention_forward)(const ForwardArgs*);   // false: out of memory for the working buffers
  bool (*attention_colsum)(const ColsumArgs*);
  bool (*attention_rowstats)(const RowstatsArgs*);
  bool (*attention_backward)(const BackwardArgs*);
  bool (*attention_matmul)(const MatmulArgs*);
  bool (*attention_compare)(const CompareArgs*);
  bool (*attention_topk)(const TopkArgs*);
  bool (*attention_scatter)(const ScatterArgs*);
  bool (*cosine_histogram)(const CosineHistogramArgs*);
  bool (*cosine_matrix)(const CosineMatrixArgs*);
  bool (*cosine_threshold)(CosineThresholdArgs*);
  bool (*cosine_topk)(const CosineTopkArgs*);
};

extern "C" {
extern const Kernels scfast_generic;
#ifdef SCFAST_X86
extern const Kernels scfast_avx2, scfast_avx512, scfast_avx512_bf16;
#ifdef SCFAST_EMULATE_BF16
extern const Kernels scfast_avx512_bf16_emulated;
#endif
#endif
}

}  // namespace scfast
