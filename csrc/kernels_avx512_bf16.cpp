#define SCFAST_ISA avx512_bf16
#define SCFAST_BF16
#include "table.hpp"
