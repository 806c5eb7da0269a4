// What is done with a strip once the final norms of its rows are known: its column sums,
// sums[set][key] += sum_lane weight[set][lane] * probability[key][lane], or its share of a map fused over heads.
// By then a long strip has left the second-level cache. So a strip owes them: they are settled block by block when the
// next strip comes to overwrite it.
#pragma once
#include "args.hpp"
#include "gemm_tile.hpp"

namespace {

constexpr int kVectors = 3;  // a full strip: 48 rows for AVX-512, 24 for AVX2, 12 otherwise
constexpr int kLanes = kVectors * W;
constexpr int kKeys = 64;  // keys of a block: its scores stay in the first-level cache

// A map [key][lane] that the heads of an element are fused into, one after another.
struct Fusion {
  float* map = nullptr;  // null: none
  int how = 0;           // scfast::Heads
  float head_weight = 1.f;
  bool first = true;     // the first head: nothing is there yet
};

struct Columns {
  int sets = 0, lanes = 0, keys = 0;           // keys 0: nothing is owed
  const float *p = nullptr, *norm = nullptr;   // of the strip
  float *weight = nullptr, *sums = nullptr;    // [sets][kLanes], 0 on lanes without a row; [sets][stride]
  int stride = 0;
  Fusion fusion = {};
};

// map[key][lane] <- fusion of what is there with head_weight * probability; max and min keep a NaN.
template <int NV>
static __attribute__((noinline)) void fuse_block(const Columns& owed, int first, int keys) {
  const float *p = owed.p + (size_t)first * NV * W, *norm = owed.norm + (first / kKeys) * NV * W;
  float* map = owed.fusion.map + (size_t)first * NV * W;
  vf factor[NV];
  for (int v = 0; v < NV; v++) factor[v] = load(norm + v * W) * splat(owed.fusion.head_weight);
#define SCFAST_FUSE(TERM)                    \
  for (int key = 0; key < keys; key++)       \
    for (int v = 0; v < NV; v++) {           \
      const int at = (key * NV + v) * W;     \
      const vf x = load(p + at) * factor[v]; \
      store(map + at, TERM);                 \
    }
  if (owed.fusion.first) {
    SCFAST_FUSE(x)
  } else if (owed.fusion.how == scfast::kMax) {
    SCFAST_FUSE(select(x != x, x, max(x, load(map + at))))
  } else if (owed.fusion.how == scfast::kMin) {
    SCFAST_FUSE(select(x != x, x, -max(-x, -load(map + at))))
  } else {
    SCFAST_FUSE(load(map + at) + x)
  }
#undef SCFAST_FUSE
}

template <int NV>
static void settle_block(const Columns& owed, int first) {
  const int keys = owed.keys - first < kKeys ? owed.keys - first : kKeys;
  if (owed.fusion.map) fuse_block<NV>(owed, first, keys);
  const float* norm = owed.norm + (first / kKeys) * NV * W;
  for (int set = 0; set < owed.sets; set++) {
    float* sums = owed.sums + (size_t)set * owed.stride + first;
    vf factor[NV];
    for (int v = 0; v < NV; v++) factor[v] = load(owed.weight + set * kLanes + v * W) * load(norm + v * W);
    int key = 0;
    for (; key + W <= keys; key += W) {
      const float* p = owed.p + (size_t)(first + key) * NV * W;
      vf each[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) {
        each[i] = factor[0] * load(p + i * NV * W);
#pragma GCC unroll 4
        for (int v = 1; v < NV; v++) each[i] += factor[v] * load(p + (i * NV + v) * W);
      }
      storeu(sums + key, loadu(sums + key) + sum_each(each));
    }
    if (key < keys) {
      const float* p = owed.p + (size_t)(first + key) * NV * W;
      vf each[W];
      for (int i = 0; i < W; i++) {
        each[i] = vf{};
        if (key + i < keys)
          for (int v = 0; v < NV; v++) each[i] += factor[v] * load(p + (i * NV + v) * W);
      }
      const vf total = sum_each(each);
      for (int i = 0; key + i < keys; i++) sums[key + i] += total[i];
    }
  }
}

static void settle_lanes(const Columns& owed, int first) {
  if (owed.lanes == W)
    settle_block<1>(owed, first);
  else if (owed.lanes == 2 * W)
    settle_block<2>(owed, first);
  else
    settle_block<3>(owed, first);
}

static void settle(Columns* owed) {
  for (int first = 0; first < owed->keys; first += kKeys) settle_lanes(*owed, first);
  owed->keys = 0;
}

}  // namespace
