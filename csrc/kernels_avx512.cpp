#include "isa.hpp"
extern "C" const scfast::Kernels scfast::scfast_avx512 = {"avx512", nullptr, nullptr, nullptr};
