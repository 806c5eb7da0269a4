#include "isa.hpp"
extern "C" const scfast::Kernels scfast::scfast_avx2 = {"avx2", nullptr, nullptr, nullptr};
