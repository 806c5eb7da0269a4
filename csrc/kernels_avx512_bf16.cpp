#include "isa.hpp"
extern "C" const scfast::Kernels scfast::scfast_avx512_bf16 = {"avx512_bf16", nullptr, nullptr, nullptr};
