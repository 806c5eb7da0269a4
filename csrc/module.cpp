// Python bindings, and nothing else: integers for pointers, sizes, strides, thread count.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#ifdef SCFAST_CUDA_ARCHITECTURES
#include "cuda_info.hpp"
#endif
#include "bin_values.hpp"
#include "isa.hpp"
#include "rank_values.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace scfast;

namespace {

// Instruction sets of this build that this machine can run, best first.
std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
#ifdef SCFAST_X86
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(&scfast_avx512_bf16);
  if (avx512) found.push_back(&scfast_avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&scfast_avx2);
#endif
  found.push_back(&scfast_generic);
#ifdef SCFAST_EMULATE_BF16
  if (avx512) found.push_back(&scfast_avx512_bf16_emulated);
#endif
  return found;
}

const Kernels* chosen = available().front();

// What `scfast doctor` shows of the CUDA half of this build; None where it was built without.
nb::object cuda_build() {
#ifdef SCFAST_CUDA_ARCHITECTURES
  const CudaInfo info = cuda_info();
  nb::list devices;
  for (const CudaDevice& device : info.devices) {
    nb::dict entry;
    entry["name"] = device.name;
    entry["capability"] = nb::make_tuple(device.major, device.minor);
    entry["memory"] = device.memory;
    entry["binary"] = device.binary;
    devices.append(entry);
  }
  nb::dict build;
  build["toolkit"] = info.toolkit;
  build["architectures"] = SCFAST_CUDA_ARCHITECTURES;
  build["driver"] = info.driver;
  build["devices"] = devices;
  build["error"] = info.error;
  return build;
#else
  return nb::none();
#endif
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class Kernel>
void without_gil(const Kernel& kernel) {
  bool done;
  {
    nb::gil_scoped_release release;
    done = kernel();
  }
  if (!done) throw std::bad_alloc();
}

template <class Args>
void run(bool (*kernel)(const Args*), const Args& args) {
  without_gil([&] { return kernel(&args); });
}

// n numbers that a kernel has allocated; the array frees them.
template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> owned(T* numbers, int64_t n) {
  const nb::capsule owner(numbers, [](void* p) noexcept { std::free(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(numbers, {(size_t)n}, owner);
}

}  // namespace

NB_MODULE(_kernels, m) {
  m.attr("version") = SCFAST_VERSION;

  using Strides = std::tuple<int64_t, int64_t>;
  nb::class_<Geometry>(m, "Geometry")
      .def(
          "__init__",
          [](Geometry* g, int dtype, uintptr_t q, uintptr_t k, Strides q_strides, Strides k_strides,
             std::tuple<int64_t, int64_t, int, int, int> sizes, uintptr_t cu_seqlens_q, uintptr_t cu_seqlens_k,
             uintptr_t work, int n_cells, int n_work, uintptr_t causal_offset, uintptr_t key_bias, int bias_heads,
             float scale, float softcap, bool causal, int threads) {
            new (g) Geometry{dtype,
                             at<void>(q),
                             at<void>(k),
                             std::get<0>(q_strides),
                             std::get<1>(q_strides),
                             std::get<0>(k_strides),
                             std::get<1>(k_strides),
                             std::get<0>(sizes),
                             std::get<1>(sizes),
                             std::get<2>(sizes),
                             std::get<3>(sizes),
                             std::get<4>(sizes),
                             at<int32_t>(cu_seqlens_q),
                             at<int32_t>(cu_seqlens_k),
                             at<int32_t>(work),
                             n_cells,
                             n_work,
                             at<int32_t>(causal_offset),
                             at<float>(key_bias),
                             bias_heads,
                             scale,
                             softcap,
                             causal,
                             threads};
          },
          nb::kw_only(), "dtype"_a, "q"_a, "k"_a, "q_strides"_a, "k_strides"_a, "sizes"_a, "cu_seqlens_q"_a,
          "cu_seqlens_k"_a, "work"_a, "n_cells"_a, "n_work"_a, "causal_offset"_a, "key_bias"_a, "bias_heads"_a,
          "scale"_a, "softcap"_a, "causal"_a, "threads"_a);

  nb::class_<MapArgs>(m, "Map").def(
      "__init__",
      [](MapArgs* map, int kind, uintptr_t lse, uintptr_t gram, uintptr_t diagonal_linear, uintptr_t diagonal_constant,
         uintptr_t row_scale, uintptr_t v, uintptr_t d_out, Strides v_strides, Strides d_strides, int v_dim) {
        new (map) MapArgs{kind,
                          at<float>(lse),
                          at<float>(gram),
                          at<float>(diagonal_linear),
                          at<float>(diagonal_constant),
                          at<float>(row_scale),
                          at<void>(v),
                          at<void>(d_out),
                          std::get<0>(v_strides),
                          std::get<1>(v_strides),
                          std::get<0>(d_strides),
                          std::get<1>(d_strides),
                          v_dim};
      },
      nb::kw_only(), "kind"_a = 0, "lse"_a = 0, "gram"_a = 0, "diagonal_linear"_a = 0, "diagonal_constant"_a = 0,
      "row_scale"_a = 0, "v"_a = 0, "d_out"_a = 0, "v_strides"_a = Strides(0, 0), "d_strides"_a = Strides(0, 0),
      "v_dim"_a = 0);

  m.def("attention_forward", [](const Geometry& where, uintptr_t v, Strides v_strides, int v_dim, uintptr_t out,
                                uintptr_t lse, uintptr_t received, uintptr_t entropy, uintptr_t max) {
    run(chosen->attention_forward,
        ForwardArgs{where, at<void>(v), std::get<0>(v_strides), std::get<1>(v_strides), v_dim, at<void>(out),
                    at<float>(lse), at<float>(received), at<float>(entropy), at<float>(max)});
  });
  m.def("attention_backward", [](const Geometry& where, uintptr_t v, Strides v_strides, int v_dim, uintptr_t out,
                                 uintptr_t d_out, uintptr_t lse, uintptr_t dq, uintptr_t dk, uintptr_t dv) {
    run(chosen->attention_backward,
        BackwardArgs{where, at<void>(v), std::get<0>(v_strides), std::get<1>(v_strides), v_dim, at<void>(out),
                     at<void>(d_out), at<float>(lse), at<void>(dq), at<void>(dk), at<void>(dv)});
  });
  m.def("attention_colsum", [](const Geometry& where, uintptr_t row_weights, int n_weights, int fusion,
                               uintptr_t head_weights, float residual, uintptr_t sums, uintptr_t row_sums,
                               const MapArgs& map) {
    run(chosen->attention_colsum, ColsumArgs{where, at<float>(row_weights), n_weights, fusion, at<float>(head_weights),
                                             residual, at<float>(sums), at<float>(row_sums), map});
  });
  m.def("attention_rowstats", [](const Geometry& where, int fusion, uintptr_t head_weights, const MapArgs& map,
                                 uintptr_t entropy, uintptr_t max, uintptr_t self_weight, uintptr_t row_sum) {
    run(chosen->attention_rowstats, RowstatsArgs{where, fusion, at<float>(head_weights), map, at<float>(entropy),
                                                 at<float>(max), at<float>(self_weight), at<float>(row_sum)});
  });
  m.def("attention_compare", [](const Geometry& first, const Geometry& second, uintptr_t sums) {
    run(chosen->attention_compare, CompareArgs{{first, second}, at<double>(sums)});
  });
  m.def("attention_topk",
        [](const Geometry& where, int n, int fusion, uintptr_t head_weights, uintptr_t values, uintptr_t keys) {
          run(chosen->attention_topk,
              TopkArgs{where, n, fusion, at<float>(head_weights), at<float>(values), at<int64_t>(keys)});
        });

  m.def("attention_matmul",
        [](const Geometry& where, uintptr_t x, int width, int fusion, uintptr_t head_weights, uintptr_t out) {
          run(chosen->attention_matmul,
              MatmulArgs{where, at<float>(x), width, fusion, at<float>(head_weights), at<float>(out)});
        });

  m.def("attention_scatter",
        [](const Geometry& where, uintptr_t targets, uintptr_t sources, uintptr_t query_order, uintptr_t head_weights,
           uintptr_t out, bool wide, int64_t out_row, int64_t first_source, int64_t n_sources) {
          run(chosen->attention_scatter,
              ScatterArgs{where, at<int32_t>(targets), at<int32_t>(sources), at<int32_t>(query_order),
                          at<float>(head_weights), at<void>(out), wide, out_row, first_source, n_sources});
        });

  nb::class_<CosineArgs>(m, "CosineRows")
      .def(
          "__init__",
          [](CosineArgs* rows, int dtype, uintptr_t x, uintptr_t y, int64_t x_row, int64_t y_row, int dim,
             uintptr_t cu_x, uintptr_t cu_y, int n_cells, uintptr_t zeros, int threads) {
            new (rows) CosineArgs{dtype,  at<void>(x),       at<void>(y),       x_row,   y_row,
                                  dim,    at<int64_t>(cu_x), at<int64_t>(cu_y), n_cells, at<int64_t>(zeros),
                                  threads};
          },
          nb::kw_only(), "dtype"_a, "x"_a, "y"_a, "x_row"_a, "y_row"_a, "dim"_a, "cu_x"_a, "cu_y"_a, "n_cells"_a,
          "zeros"_a, "threads"_a);
  m.def("cosine_histogram", [](const CosineArgs& where, int bins, uintptr_t edges, uintptr_t counts, uintptr_t low,
                               uintptr_t high, uintptr_t sum, uintptr_t squares) {
    run(chosen->cosine_histogram,
        CosineHistogramArgs{where, bins, at<float>(edges), at<int64_t>(counts), at<float>(low), at<float>(high),
                            at<double>(sum), at<double>(squares)});
  });
  m.def("cosine_matrix", [](const CosineArgs& where, uintptr_t out, uintptr_t first, int64_t out_row) {
    run(chosen->cosine_matrix, CosineMatrixArgs{where, at<float>(out), at<int64_t>(first), out_row});
  });
  m.def("cosine_topk", [](const CosineArgs& where, int k, uintptr_t values, uintptr_t indices) {
    run(chosen->cosine_topk, CosineTopkArgs{where, k, at<float>(values), at<int64_t>(indices)});
  });
  m.def("cosine_threshold", [](const CosineArgs& where, float threshold, int64_t most, uintptr_t indptr) {
    CosineThresholdArgs args{where, threshold, most, at<int64_t>(indptr), 0, nullptr, nullptr};
    without_gil([&] {
      if (chosen->cosine_threshold(&args)) return true;
      std::free(args.indices);
      std::free(args.values);
      return false;
    });
    if (!args.indices) return nb::make_tuple(args.found, nb::none(), nb::none());  // more than `most`
    return nb::make_tuple(args.found, owned(args.indices, args.found), owned(args.values, args.found));
  });

  nb::class_<RankInput>(m, "RankInput")
      .def(
          "__init__",
          [](RankInput* in, uintptr_t indptr, uintptr_t indices, uintptr_t data, bool wide_indices, int count_type,
             int64_t n_cells, int64_t n_columns, uintptr_t n_counts, uintptr_t token_ids, uintptr_t factors,
             uintptr_t slots, uintptr_t slot_columns, int n_slots, float target, int threads) {
            new (in) RankInput{at<int64_t>(indptr),
                               at<void>(indices),
                               at<void>(data),
                               wide_indices,
                               count_type,
                               n_cells,
                               n_columns,
                               at<float>(n_counts),
                               at<int32_t>(token_ids),
                               at<double>(factors),
                               at<int32_t>(slots),
                               at<int32_t>(slot_columns),
                               n_slots,
                               target,
                               threads};
          },
          nb::kw_only(), "indptr"_a, "indices"_a, "data"_a, "wide_indices"_a, "count_type"_a, "n_cells"_a,
          "n_columns"_a, "n_counts"_a, "token_ids"_a, "factors"_a, "slots"_a, "slot_columns"_a, "n_slots"_a, "target"_a,
          "threads"_a);
  m.def("rank_values", [](const RankInput& in, int64_t limit, uintptr_t n_expressed, uintptr_t n_in_vocabulary,
                          uintptr_t token_ids, uintptr_t columns) {
    const bool avx512 = std::string(chosen->name).rfind("avx512", 0) == 0;
    without_gil([&] {
      return rank_values(in, limit, avx512, at<int64_t>(n_expressed), at<int64_t>(n_in_vocabulary),
                         at<int32_t>(token_ids), at<int32_t>(columns));
    });
  });

  nb::class_<BinInput>(m, "BinInput")
      .def(
          "__init__",
          [](BinInput* in, uintptr_t indptr, uintptr_t indices, uintptr_t data, bool wide_indices, int count_type,
             int64_t n_cells, int mode, int n_bins, uintptr_t scales, double cutoff, uintptr_t levels, int n_levels,
             uint64_t seed, uintptr_t row_ids, uintptr_t uniforms, int threads) {
            new (in) BinInput{at<int64_t>(indptr),
                              at<void>(indices),
                              at<void>(data),
                              wide_indices,
                              count_type,
                              n_cells,
                              mode,
                              n_bins,
                              at<double>(scales),
                              cutoff,
                              at<double>(levels),
                              n_levels,
                              seed,
                              at<int64_t>(row_ids),
                              at<double>(uniforms),
                              threads};
          },
          nb::kw_only(), "indptr"_a, "indices"_a, "data"_a, "wide_indices"_a, "count_type"_a, "n_cells"_a, "mode"_a,
          "n_bins"_a, "scales"_a, "cutoff"_a, "levels"_a, "n_levels"_a, "seed"_a, "row_ids"_a, "uniforms"_a,
          "threads"_a);
  m.def("bin_values", [](const BinInput& in, uintptr_t bins, uintptr_t states) {
    without_gil([&] { return bin_values(in, at<int32_t>(bins), at<int8_t>(states)); });
  });

  m.def("cuda_build", &cuda_build);
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const Kernels* kernels : available()) names.push_back(kernels->name);
    return names;
  });
  m.def("instruction_set", [] { return std::string(chosen->name); });
  m.def(
      "use_instruction_set",
      [](const std::string& name) {
        std::string known;
        for (const Kernels* kernels : available()) {
          if (name == kernels->name) {
            chosen = kernels;
            return;
          }
          known += known.empty() ? kernels->name : std::string(", ") + kernels->name;
        }
        throw nb::value_error(("instruction set '" + name + "' is not available here; use one of " + known).c_str());
      },
      "name"_a);
}
