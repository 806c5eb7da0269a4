// Counts of cells as a CSR matrix, in the types that they come in.
#pragma once
#include <cstdint>

namespace scfast {

enum CountType : int { kCountFloat32 = 0, kCountFloat64 = 1, kCountInt32 = 2, kCountInt64 = 3 };

// f(Index{}, Count{}): int32_t or int64_t, and the CountType.
template <class F>
auto with_csr_types(int wide_indices, int count_type, const F& f) {
  const auto with_index = [&](auto index) {
    switch (count_type) {
      case kCountFloat32:
        return f(index, float{});
      case kCountFloat64:
        return f(index, double{});
      case kCountInt32:
        return f(index, int32_t{});
      default:
        return f(index, int64_t{});
    }
  };
  return wide_indices ? with_index(int64_t{}) : with_index(int32_t{});
}

}  // namespace scfast
