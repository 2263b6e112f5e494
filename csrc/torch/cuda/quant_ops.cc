// SPDX-License-Identifier: Apache-2.0
// One launch or two a matrix. `check` brings a count back to the host before anything is written;
// without it nothing waits.
#include "quant/group_codec_cuda.h"
#include "quant/group_map_cuda.h"
#include "quant/requant_cuda.h"
#include "torch/cuda/device.h"
#include "torch/quant_args.h"

namespace lowtide::torch_ops {
namespace {

void refuse_nonfinite(const Tensors& xs, const char* name, void* cuda_stream) {
  const Counters counters(xs[0], xs.size());
  for (size_t i = 0; i < xs.size(); ++i)
    check(quant::cuda::count_nonfinite(const_data(xs[i]), float_type(xs[i], name), xs[i].numel(),
                                       counters.at(i), cuda_stream),
          "count_nonfinite");
  const int64_t bad = *static_cast<const int64_t*>(host(counters.sum()).const_data_ptr());
  STD_TORCH_CHECK(bad == 0, "lowtide: ", name, " has ", bad, " non-finite elements");
}

Tensor quantize_group_list(const Tensors& xs, const Tensors& codes, const Tensors& scales,
                           const Tensors& zeros, int64_t bits, int64_t group, bool stochastic,
                           int64_t range, int64_t seed, int64_t step, int64_t slot,
                           const std::vector<int64_t>& params, int64_t role, int64_t offset,
                           bool nonfinite, bool bf16_scale) {
  const OnDevice device(xs);
  const auto outs = quantized_list(xs, codes, scales, zeros, bits, group, params);
  if (nonfinite) refuse_nonfinite(xs, "x", device.stream());
  const Counters bad(xs[0], xs.size());
  for (size_t i = 0; i < xs.size(); ++i)
    check(quant::cuda::quantize_groups(
              const_data(xs[i]), float_type(xs[i], "x"), outs[i],
              {rounding(stochastic), static_cast<quant::Range>(range),
               stream(seed, step, slot, params[i], role), offset, bf16_scale},
              bad.at(i), device.stream()),
          "quantize_group_list_");
  return bad.sum();
}

void dequantize_group_list(const Tensors& codes, const Tensors& scales, const Tensors& zeros,
                           const Tensors& outs, int64_t bits, int64_t group) {
  const OnDevice device(outs);
  const auto ins = packed_list(codes, scales, zeros, outs, bits, group);
  for (size_t i = 0; i < outs.size(); ++i)
    check(quant::cuda::dequantize_groups(ins[i], data(outs[i]), float_type(outs[i], "out"),
                                         device.stream()),
          "dequantize_group_list_");
}

Tensor quantize_map_list(const Tensors& xs, const Tensors& codes, const Tensors& scales,
                         int64_t map, int64_t group, bool stochastic, int64_t seed, int64_t step,
                         int64_t slot, const std::vector<int64_t>& params, int64_t role,
                         int64_t offset, bool nonfinite, bool bf16_scale) {
  const OnDevice device(xs);
  const auto outs = quantized_list(xs, codes, scales, {}, map_bits(map), group, params);
  if (nonfinite) refuse_nonfinite(xs, "x", device.stream());
  const Counters bad(xs[0], xs.size());
  for (size_t i = 0; i < xs.size(); ++i)
    check(quant::cuda::quantize_map(
              const_data(xs[i]), float_type(xs[i], "x"), static_cast<quant::LevelMap>(map), outs[i],
              {rounding(stochastic), stream(seed, step, slot, params[i], role), offset, bf16_scale},
              bad.at(i), device.stream()),
          "quantize_map_list_");
  return bad.sum();
}

void dequantize_map_list(const Tensors& codes, const Tensors& scales, const Tensors& outs,
                         int64_t map, int64_t group) {
  const OnDevice device(outs);
  const auto ins = packed_list(codes, scales, {}, outs, map_bits(map), group);
  for (size_t i = 0; i < outs.size(); ++i)
    check(quant::cuda::dequantize_map(ins[i], static_cast<quant::LevelMap>(map), data(outs[i]),
                                      float_type(outs[i], "out"), device.stream()),
          "dequantize_map_list_");
}

Tensor requant_add_sr_list(const Tensors& codes, const Tensors& scales, const Tensors& zeros,
                           const Tensors& deltas, double alpha, double decay, int64_t bits,
                           int64_t group, int64_t seed, int64_t step, int64_t slot,
                           const std::vector<int64_t>& params, int64_t role, int64_t offset,
                           bool nonfinite) {
  const OnDevice device(deltas);
  const auto weights = requantized_list(codes, scales, zeros, deltas, bits, group, params);
  if (nonfinite) refuse_nonfinite(deltas, "delta", device.stream());
  const Counters skipped(deltas[0], deltas.size());
  for (size_t i = 0; i < deltas.size(); ++i)
    check(quant::cuda::requant_add_sr(
              weights[i], const_f32(deltas[i], "delta"),
              {alpha, decay, stream(seed, step, slot, params[i], role), offset}, skipped.at(i),
              device.stream()),
          "requant_add_sr_list_");
  return skipped.sum();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("quantize_group_list_", LT_BOX(&quantize_group_list));
  m.impl("quantize_map_list_", LT_BOX(&quantize_map_list));
  m.impl("dequantize_map_list_", LT_BOX(&dequantize_map_list));
  m.impl("dequantize_group_list_", LT_BOX(&dequantize_group_list));
  m.impl("requant_add_sr_list_", LT_BOX(&requant_add_sr_list));
}

}  // namespace lowtide::torch_ops
