// attention_scatter: out[source][target] += sum over pairs (key j, query i) of a cell with these ids of A[i][j], A the
// map with its heads fused. Sums in the type of out, float64 or float32; ids of -1 and sources outside the rows that
// out holds are left out.
//
// Strips of queries, in the order of their targets, are computed side by side, a wave at a time. Threads add the wave
// before to out meanwhile, each to rows of its own, strip by strip and keys in the order of their sources: an element
// gets its summands in one order, whatever the number of threads, and a row is walked through from left to right.
// Adding waits for memory, computing does not, so every tile of scores asks for lines of out that are added to soon.
#pragma once
#include "walk.hpp"

namespace {

constexpr int kStripsPerWave = 2;  // for each thread; few, because nothing is computed while the last wave is added
constexpr int kShares = 4;         // of the rows of out, for each thread
constexpr int kAsked = 64;         // steps of a tile that ask for a line

struct ScatterStrip {
  Cell cell;
  int rows, keys, lanes;
  const int32_t* row;  // [rows] query within the cell
  float* map;          // [keys][lanes], in the buffer of its wave
};

// The queries that have a target, strip by strip, in the order of the cells.
struct ScatterPlan {
  const scfast::ScatterArgs& a;
  int64_t n_strips = 0, per_wave, n_waves = 0;
  int n_shares;
  size_t size;  // of a map, floats
  ScatterStrip* strips = nullptr;
  int* next_share = nullptr;  // [waves]
  float* maps = nullptr;      // of two waves

  explicit ScatterPlan(const scfast::ScatterArgs& args)
      : a(args), per_wave(kStripsPerWave * args.where.threads), n_shares(kShares * args.where.threads) {
    const Geometry& g = a.where;
    for (int i = 0; i < g.n_cells; i++) n_strips += (counted(i) + kLanes - 1) / kLanes;
    n_waves = (n_strips + per_wave - 1) / per_wave;
    size = ((size_t)longest_key_list(g) + kKeys) / kKeys * kKeys * kLanes;
    strips = (ScatterStrip*)malloc(sizeof(ScatterStrip) * (n_strips + 1));
    next_share = (int*)calloc(n_waves + 1, sizeof(int));
    maps = (float*)aligned_alloc(64, sizeof(float) * size * 2 * per_wave);
    if (!ready()) return;
    int64_t n = 0;
    for (int i = 0; i < g.n_cells; i++) {
      const Cell cell = cell_at(g, i);
      const int32_t* row = a.query_order + cell.first_query + cell.queries - counted(i);  // those without come first
      for (int left = counted(i); left > 0; left -= kLanes, row += kLanes, n++)
        strips[n] = {cell, left < kLanes ? left : kLanes, 0, 0, row, maps + n % (2 * per_wave) * size};
    }
  }
  ~ScatterPlan() {
    free(strips);
    free(next_share);
    free(maps);
  }
  ScatterPlan(const ScatterPlan&) = delete;
  bool ready() const { return strips && next_share && maps; }
  int64_t wave(int64_t w) const { return w * per_wave < n_strips ? w * per_wave : n_strips; }  // its first strip

  // Place of the first of `n` tokens in their order whose id is not below `id`.
  static int place_of(const int32_t* order, const int32_t* ids, int n, int64_t id) {
    int low = 0, high = n;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (ids[order[middle]] < id)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  int counted(int index) const {
    const Cell cell = cell_at(a.where, index);
    return cell.queries - place_of(a.query_order + cell.first_query, a.targets + cell.first_query, cell.queries, 0);
  }
};

// Lines of out that are added to soon, asked for one by one: those of one key, or half of them of each of two.
struct AskForRows {
  const char* row[2];
  const int64_t* line;  // [kAsked] offsets
  inline __attribute__((always_inline)) void operator()(int step) const {
    step %= kAsked;
    __builtin_prefetch(row[step / (kAsked / 2)] + line[step], 0, 2);
  }
};

// One thread's part in adding a wave: shares of the rows of out, one after another, strip by strip.
struct Adder {
  const ScatterPlan& plan;
  int64_t wave = 0;
  const ScatterStrip *strip = nullptr, *end_strip = nullptr;  // of the share at hand; null: nothing is left
  int64_t first = 0, end = 0;                                 // its sources
  int place = 0, asked = 0, last = 0;                         // in the order of the strip's keys
  int32_t target[kLanes] = {};
  int64_t line[kAsked] = {};

  explicit Adder(const ScatterPlan& p) : plan(p) {}

  void begin(int64_t w) {
    wave = w;
    strip = end_strip = nullptr;
    if (wave >= 0) advance();
  }

  // To the next strip of the share that holds keys of it, or to the next share.
  void advance() {
    const scfast::ScatterArgs& a = plan.a;
    do {
      if (strip == nullptr || ++strip == end_strip) {
        const int share = __atomic_fetch_add(&plan.next_share[wave], 1, __ATOMIC_RELAXED);
        first = a.first_source + a.n_sources * share / plan.n_shares;
        end = a.first_source + a.n_sources * (share + 1) / plan.n_shares;
        strip = share < plan.n_shares ? plan.strips + plan.wave(wave) : nullptr;
        end_strip = plan.strips + plan.wave(wave + 1);
        if (strip == nullptr) return;
      }
      const Cell& cell = strip->cell;
      const int32_t *order = a.key_order + cell.first_key, *source = a.sources + cell.first_key;
      place = asked = plan.place_of(order, source, cell.keys, first);
      last = plan.place_of(order, source, cell.keys, end);
    } while (place == last);
    int lines = 0;
    const int bytes = a.wide ? 8 : 4;
    const int most = keys_per_tile() == 1 ? kAsked : kAsked / 2;
    for (int i = 0; i < strip->rows; i++) {
      target[i] = a.targets[strip->cell.first_query + strip->row[i]];
      const int64_t at = (int64_t)target[i] * bytes / kCacheLine * kCacheLine;
      if (lines < most && (lines == 0 || at != line[lines - 1])) line[lines++] = at;
    }
    for (int i = lines; i < kAsked; i++) line[i] = line[i >= most && i - most < lines ? i - most : 0];
  }

  int keys_per_tile() const { return plan.a.where.heads < KT ? 2 : 1; }
  int key(int at) const { return plan.a.key_order[strip->cell.first_key + at]; }
  char* row(int at) const {
    const scfast::ScatterArgs& a = plan.a;
    const int64_t source = a.sources[strip->cell.first_key + key(at)];
    return (char*)a.out + (source - a.first_source) * a.out_row * (a.wide ? 8 : 4);
  }

  AskForRows ask() {
    if (strip == nullptr) return {{(const char*)line, (const char*)line}, nothing()};
    AskForRows ahead = {{}, line};
    const int before = asked;
    for (int i = 0; i < 2; i++) {
      ahead.row[i] = row(asked < last ? asked : last - 1);
      if (asked < last && asked - before < keys_per_tile()) asked++;
    }
    if (keys_per_tile() == 1) ahead.row[1] = ahead.row[0];
    return ahead;
  }
  static const int64_t* nothing() {
    static const int64_t none[kAsked] = {};
    return none;
  }

  template <class T>
  void add(T* to, const float* p) const {
    for (int i = 0; i < strip->rows; i++) to[target[i]] += (T)p[i];
  }

  void add_key() {
    if (key(place) < strip->keys) {  // else out of sight of every query
      const float* p = strip->map + (size_t)key(place) * strip->lanes;
      if (plan.a.wide)
        add((double*)row(place), p);
      else
        add((float*)row(place), p);
    }
    place++;
  }

  // What has been asked for.
  void run() {
    if (strip == nullptr) return;
    while (place < asked) add_key();
    if (place == last) advance();
  }

  // What is left of the wave.
  void finish() {
    for (; strip != nullptr; advance())
      while (place < last) {
        const char* ahead = row(place + 1 < last ? place + 1 : place);
        for (int i = 0; i < kAsked / 2; i++) __builtin_prefetch(ahead + line[i], 1);
        add_key();
      }
  }
};

template <class Dot>
static bool scatter_maps(const scfast::ScatterArgs* args) {
  const Geometry& g = args->where;
  const ScatterPlan plan(*args);
  const int longest = longest_key_list(g);
  bool failed = !plan.ready();
  if (failed) return false;
#pragma omp parallel num_threads(g.threads)
  {
    Scratch scratch;
    FusedStrips<Dot> fused = {g, scfast::kSum, args->head_weights, 0};
    Adder adder(plan);
    fused.take(scratch, longest);  // measures; after the allocation the same call hands out
    if (scratch.allocate())
      fused.take(scratch, longest);
    else
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
#pragma omp barrier
    for (int64_t w = 0; w < (failed ? 0 : plan.n_waves + 1); w++) {
      adder.begin(w - 1);
#pragma omp for schedule(dynamic) nowait
      for (int64_t i = plan.wave(w); i < plan.wave(w + 1); i++) {
        ScatterStrip& s = plan.strips[i];
        fused.load(s.cell, 0, g.heads);
        fused.map = s.map;
        const Strip strip = fused.visit(s.row, s.rows, adder);
        settle(&fused.owed);
        s.keys = strip.keys, s.lanes = strip.lanes;
      }
      adder.finish();
#pragma omp barrier
    }
  }
  return !failed;
}

static bool attention_scatter(const scfast::ScatterArgs* args) {
#if defined(SCFAST_BF16)
  if (args->where.dtype == kBfloat16) return scatter_maps<Bfloat16Pair>(args);
#endif
  return scatter_maps<Float32>(args);
}

}  // namespace
