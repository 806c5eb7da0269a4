// THE loop over attention on a CPU. A strip is a few dozen query rows x all keys of one head, held in cache:
// scores, softmax with a running maximum and the values' product block by block of keys, then what the job does
// with the finished strip. Nothing of size queries x keys exists beyond one strip per thread.
#pragma once
#include "columns.hpp"
#include "problem.hpp"

namespace {

// Scores of keys out of sight, and the least maximum of a row: 2^(kHidden - kLeast) is 0 and nothing is infinite.
constexpr float kHidden = -FLT_MAX, kLeast = -1e30f;

// What a job sees. p is un-normalised; p[key][lane] * norm[key / kKeys][lane] is the probability.
struct Strip {
  const float *p, *norm;
  int keys, lanes, rows;  // lanes beyond `rows` hold numbers without meaning
  const int* row;         // [rows] query within the cell
  const float *inv, *lse, *entropy;  // [lanes]: largest probability, natural lse, nats
};

// Leaves `sets` weightings of a strip's columns to be settled; their weights follow in owed->weight.
SCFAST_INLINE void owe(const Strip& s, int sets, float* sums, int stride, Columns* owed) {
  *owed = {sets, s.lanes, s.keys, s.p, s.norm, owed->weight, sums, stride, {}};
}

// Leaves a strip's share of a fused map to be settled.
SCFAST_INLINE void owe(const Strip& s, const Fusion& fusion, Columns* owed) {
  *owed = {0, s.lanes, s.keys, s.p, s.norm, owed->weight, nullptr, 0, fusion};
}

struct Score {
  float query_factor, dot_factor;  // before and after the dot product, so that scores are in units of log2
  float cap;                       // softcap in units of log2, 0: none
  const float* bias;               // of the cell's first key and this head, or null
  int bias_stride;
  bool causal;
  int offset;
};

SCFAST_INLINE Score score_of(const Geometry& g, const Cell& cell, int head, bool pairs) {
  Score s;
  const float factor = g.softcap > 0 ? g.scale / g.softcap : g.scale * kLog2e;
  s.query_factor = pairs ? 1.f : factor;
  s.dot_factor = factor;
  s.cap = g.softcap * kLog2e;
  s.bias = g.key_bias ? g.key_bias + cell.first_key * g.bias_heads + (g.bias_heads > 1 ? head : 0) : nullptr;
  s.bias_stride = g.bias_heads;
  s.causal = g.causal;
  s.offset = cell.causal_offset;
  return s;
}

struct Wants {
  bool strip, entropy, values;  // keep p of all keys; row entropy; product with the values
  int columns;                  // weightings of the rows whose column sums a job takes
};

// Buffers of one thread for strips of up to kLanes rows.
template <class Dot>
struct StripBuffers {
  typename Dot::T *q, *k, *v, *pairs;
  float *p, *norm, *shift, *out, *row_state, *unpacked, *weight;
  int depth, v_columns;  // words per key; padded columns of the values

  void take(Scratch& scratch, const Geometry& g, int longest, int v_dim, Wants wants) {
    depth = (g.dim + Dot::kPack - 1) / Dot::kPack;
    v_columns = (v_dim + W - 1) / W * W;
    const int blocks = (longest + kKeys - 1) / kKeys + 1;
    q = scratch.take<typename Dot::T>((size_t)depth * kLanes);
    k = scratch.take<typename Dot::T>((size_t)(longest + KT) * depth);
    v = scratch.take<typename Dot::T>(wants.values ? (size_t)(longest / Dot::kPack + 1) * v_columns : 0);
    pairs = scratch.take<typename Dot::T>(Dot::kPack > 1 ? (size_t)kKeys * kLanes : 0);
    p = scratch.take<float>((size_t)(wants.strip ? blocks : 1) * kKeys * kLanes);
    norm = scratch.take<float>((size_t)blocks * kLanes);
    shift = scratch.take<float>((size_t)blocks * kLanes);
    out = scratch.take<float>((size_t)kLanes * v_columns);
    row_state = scratch.take<float>(4 * (size_t)kLanes);
    weight = scratch.take<float>(wants.columns * (size_t)kLanes);
    unpacked = scratch.take<float>(4 * (size_t)(g.dim > v_dim ? g.dim : v_dim) + 4 * W);
  }

  size_t value_bytes(int keys) const { return (size_t)(keys / Dot::kPack) * v_columns * sizeof(*v); }

  Columns nothing_owed() const {
    Columns owed;
    owed.weight = weight;
    return owed;
  }
};

// How far the rows of a strip see.
template <int NV>
struct Sight {
  vf limit[NV];        // last key of each row
  int last, unmasked;  // keys that some row sees, and that every row sees
};

template <int NV>
SCFAST_INLINE Sight<NV> sight_of(const Score& score, const int* row, int rows, int n_keys) {
  Sight<NV> sight;
  sight.last = sight.unmasked = n_keys;
  if (!score.causal) return sight;
  float see[NV * W];
  int furthest = INT32_MIN, nearest = INT32_MAX;
  for (int i = 0; i < NV * W; i++) {
    const int sees = row[i < rows ? i : rows - 1] + score.offset;
    see[i] = (float)sees;
    if (sees > furthest) furthest = sees;
    if (sees < nearest) nearest = sees;
  }
  for (int v = 0; v < NV; v++) sight.limit[v] = loadu(see + v * W);
  if (furthest + 1 < n_keys) sight.last = furthest + 1 > 0 ? furthest + 1 : 0;
  sight.unmasked = nearest + 1;
  return sight;
}

// Softcap, bias and causal mask on a block of scores; returns the new maxima.
template <int NV>
static void adjust(float* p, int first_key, int keys, const Score& score, const vf* limit, vf* largest) {
  for (int v = 0; v < NV; v++) largest[v] = splat(-FLT_MAX);
  for (int key = 0; key < keys; key++) {
    const vf bias = splat(score.bias ? score.bias[(size_t)(first_key + key) * score.bias_stride] * kLog2e : 0.f);
    const vf position = splat((float)(first_key + key));
    for (int v = 0; v < NV; v++) {
      vf s = load(p + (key * NV + v) * W);
      if (score.cap > 0) s = splat(score.cap) * tanh(s);
      s = s + bias;
      s = max(splat(kHidden), s);  // a bias of -inf
      if (score.causal) s = select(position > limit[v], splat(kHidden), s);
      store(p + (key * NV + v) * W, s);
      largest[v] = max(largest[v], s);
    }
  }
}

// p <- 2^(p - shift); adds to the row sums and, for the entropy, to sum_j p * (score - shift).
template <int NV, bool kEntropy>
SCFAST_INLINE void exponentiate(float* p, int keys, const vf* shift, vf* sum, vf* weighted) {
  for (int key = 0; key < keys; key++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) {
      const vf x = load(p + (key * NV + v) * W) - shift[v];
      const vf e = exp2_negative(x);
      store(p + (key * NV + v) * W, e);
      sum[v] += e;
      if (kEntropy) weighted[v] += e * x;  // both finite: see kHidden
    }
}

// out = decay * out + p^T v for one block of keys.
template <int NV>
SCFAST_INLINE void weigh_values(const StripBuffers<Float32>& b, const float* p, int first, int keys, int rows,
                                const float* decay) {
  value_block<Float32>(p, NV * W, rows, b.v + (size_t)first * b.v_columns, b.v_columns, keys, decay, first == 0, b.out);
}

#if defined(SCFAST_BF16)
// Two keys' weights in one word: the left operand of the values' product.
template <int NV>
static void pair_up(const float* p, int keys, uint32_t* pairs) {
  for (int key = 0; key < keys; key += 2)
    for (int lane = 0; lane < NV * W; lane += W) {
      const vf even = load(p + key * NV * W + lane), odd = key + 1 < keys ? load(p + (key + 1) * NV * W + lane) : vf{};
      const vi low = (vi)even, high = (vi)odd;  // probabilities: finite unless NaN, which stays NaN
      const vi low_rounded = (low + 0x7fff + ((low >> 16) & 1)) >> 16;
      const vi high_rounded = high + 0x7fff + ((high >> 16) & 1);
      const vi word = (low_rounded & 0xffff) | (high_rounded & (int32_t)0xffff0000);
      const vi poison = (even != even) | (odd != odd);
      *reinterpret_cast<vi*>(pairs + (key / 2) * NV * W + lane) = word | (poison & 0x7fc07fc0);
    }
}

template <int NV>
SCFAST_INLINE void weigh_values(const StripBuffers<Bfloat16Pair>& b, const float* p, int first, int keys, int rows,
                                const float* decay) {
  pair_up<NV>(p, keys, b.pairs);
  value_block<Bfloat16Pair>(b.pairs, NV * W, rows, b.v + (size_t)(first / 2) * b.v_columns, b.v_columns, (keys + 1) / 2,
                            decay, first == 0, b.out);
}
#endif

// One strip of `rows` <= NV * W queries whose panel is in b.q and whose keys (and values) are in b.k (b.v).
// It takes the place of the strip before it and settles the columns which that one owes, if any.
template <class Dot, int NV, bool kEntropy>
static void visit_strip(const StripBuffers<Dot>& b, const Score& score, const int* row, int rows, int n_keys,
                        Wants wants, Columns* owed, Strip* strip) {
  constexpr int lanes = NV * W;
  const Sight<NV> sight = sight_of<NV>(score, row, rows, n_keys);
  const int last = sight.last;
  vf shift[NV], sum[NV], weighted[NV];
  for (int v = 0; v < NV; v++) {
    shift[v] = splat(kLeast);
    sum[v] = weighted[v] = vf{};
  }
  if (owed->lanes != lanes || owed->keys > last) settle(owed);
  float decay[lanes] __attribute__((aligned(64)));
  for (int first = 0; first < last; first += kKeys) {
    const int keys = last - first < kKeys ? last - first : kKeys;
    float* p = b.p + (wants.strip ? (size_t)first * lanes : 0);
    if (first < owed->keys) settle_block<NV>(*owed, first);
    vf largest[NV];
    for (int v = 0; v < NV; v++) largest[v] = splat(-FLT_MAX);
    // While scores are computed, the block's values come nearer, then the next block of the strip and of the map that
    // it is fused into: one line per step of a tile's depth, in the second-level cache before they are needed.
    const size_t lines = (size_t)b.depth * kCacheLine, value_bytes = wants.values ? b.value_bytes(keys) : 0;
    const char* values = (const char*)b.v + b.value_bytes(first);
    constexpr size_t block_bytes = sizeof(float) * kKeys * lanes;
    const size_t strip_bytes = owed->fusion.map ? block_bytes : SIZE_MAX;
    for (int key = 0; key < keys; key += KT) {
      const size_t asked = key / KT * lines, beyond = asked - value_bytes;
      const char* soon = asked < value_bytes ? values + asked
                         : !wants.strip      ? values
                         : beyond < strip_bytes
                             ? (const char*)(p + kKeys * lanes) + beyond
                             : (const char*)(owed->fusion.map + (first + kKeys) * lanes) + (beyond - strip_bytes);
      score_tile<Dot, NV>(b.q, b.k + (size_t)(first + key) * b.depth, b.depth, b.depth, score.dot_factor, keys - key,
                          p + key * lanes, largest, soon);
    }
    if (score.cap > 0 || score.bias || first + keys > sight.unmasked)
      adjust<NV>(p, first, keys, score, sight.limit, largest);

    vf block_sum[NV], block_weighted[NV];
    for (int v = 0; v < NV; v++) {
      const vf next = max(shift[v], largest[v]);
      const vf step = shift[v] - next;
      const vf keep = exp2_negative(step);
      if (kEntropy) weighted[v] = keep * (weighted[v] + step * sum[v]);
      sum[v] = sum[v] * keep;
      shift[v] = next;
      store(decay + v * W, keep);
      store(b.shift + (first / kKeys) * lanes + v * W, next);
      block_sum[v] = block_weighted[v] = vf{};
    }
    exponentiate<NV, kEntropy>(p, keys, shift, block_sum, block_weighted);
    for (int v = 0; v < NV; v++) {
      sum[v] += block_sum[v];
      if (kEntropy) weighted[v] += block_weighted[v];
    }
    if (wants.values) { weigh_values<NV>(b, p, first, keys, rows, decay); }
  }
  owed->keys = 0;
  float *inv = b.row_state, *lse = inv + kLanes, *entropy = lse + kLanes;
  for (int v = 0; v < NV; v++) {
    const vi none = sum[v] == vf{};
    const vf safe = select(none, splat(1.f), sum[v]);
    const vf logarithm = select(sum[v] == sum[v], log2_positive(safe), sum[v]);
    const vf inverse = select(none, vf{}, 1.f / safe);
    store(inv + v * W, inverse);
    store(lse + v * W, select(none, splat(-INFINITY), (shift[v] + logarithm) * kLn2));
    if (kEntropy) store(entropy + v * W, select(none, vf{}, (logarithm - weighted[v] * inverse) * kLn2));
    if (wants.strip)
      for (int block = 0; block * kKeys < last; block++)
        store(b.norm + block * lanes + v * W,
              exp2_negative(load(b.shift + block * lanes + v * W) - shift[v]) * inverse);
  }
  if (wants.values && last == 0) memset(b.out, 0, sizeof(float) * (size_t)kLanes * b.v_columns);
  *strip = {b.p, b.norm, last, lanes, rows, row, inv, lse, entropy};
}

// Strips of as many vectors as the rows that are left need.
template <class Dot>
static void visit_rows(const StripBuffers<Dot>& b, const Score& score, const int* row, int rows, int n_keys,
                       Wants wants, Columns* owed, Strip* strip) {
  const int vectors = (rows + W - 1) / W;
#define SCFAST_VISIT(NV)                                                                       \
  (wants.entropy ? visit_strip<Dot, NV, true>(b, score, row, rows, n_keys, wants, owed, strip) \
                 : visit_strip<Dot, NV, false>(b, score, row, rows, n_keys, wants, owed, strip))
  if (vectors == 1)
    SCFAST_VISIT(1);
  else if (vectors == 2)
    SCFAST_VISIT(2);
  else
    SCFAST_VISIT(3);
#undef SCFAST_VISIT
}

}  // namespace
