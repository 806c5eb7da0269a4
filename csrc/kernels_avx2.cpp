#define SCFAST_ISA avx2
#include "table.hpp"
