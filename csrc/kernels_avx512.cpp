#define SCFAST_ISA avx512
#include "table.hpp"
