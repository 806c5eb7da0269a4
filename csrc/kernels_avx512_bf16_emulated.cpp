#define SCFAST_ISA avx512_bf16_emulated
#define SCFAST_BF16
#include "table.hpp"
