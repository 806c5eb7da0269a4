#define SCFAST_ISA generic
#include "table.hpp"
