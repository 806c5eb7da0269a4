#include "isa.hpp"
extern "C" const scfast::Kernels scfast::scfast_generic = {"generic", nullptr, nullptr, nullptr};
