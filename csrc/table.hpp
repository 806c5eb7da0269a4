// The table of one instruction set: include after defining SCFAST_ISA.
#pragma once
#include "attention_backward.hpp"
#include "attention_colsum.hpp"
#include "attention_compare.hpp"
#include "attention_forward.hpp"
#include "attention_matmul.hpp"
#include "attention_rowstats.hpp"
#include "attention_scatter.hpp"
#include "attention_topk.hpp"
#include "cosine_histogram.hpp"
#include "cosine_matrix.hpp"
#include "cosine_threshold.hpp"
#include "cosine_topk.hpp"
#include "isa.hpp"

#define SCFAST_NAME_(a, b) a##b
#define SCFAST_NAME(a, b) SCFAST_NAME_(a, b)
#define SCFAST_TEXT_(a) #a
#define SCFAST_TEXT(a) SCFAST_TEXT_(a)

extern "C" const scfast::Kernels scfast::SCFAST_NAME(scfast_, SCFAST_ISA) = {
    SCFAST_TEXT(SCFAST_ISA), attention_forward, attention_colsum, attention_rowstats, attention_backward,
    attention_matmul,        attention_compare, attention_topk,   attention_scatter,  cosine_histogram,
    cosine_matrix,           cosine_threshold,  cosine_topk,
};
