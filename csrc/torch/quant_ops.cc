// SPDX-License-Identifier: Apache-2.0
// List forms only, so that a step over a model is one call.
#include "quant/requant.h"
#include "torch/quant_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor counter(const Tensor& like, int64_t value) {
  Tensor out = torch::stable::new_empty(like, {}, ScalarType::Long);
  *static_cast<int64_t*>(out.mutable_data_ptr()) = value;
  return out;
}

void refuse_nonfinite(const Tensors& xs) {
  int64_t bad = 0;
  for (const auto& x : xs)
    bad += quant::count_nonfinite(x.const_data_ptr(), float_type(x, "x"), x.numel());
  STD_TORCH_CHECK(bad == 0, "lowtide: x has ", bad, " non-finite elements");
}

Tensor quantize_group_list(const Tensors& xs, const Tensors& codes, const Tensors& scales,
                           const Tensors& zeros, int64_t bits, int64_t group, bool stochastic,
                           int64_t range, int64_t seed, int64_t step, int64_t slot,
                           const std::vector<int64_t>& params, int64_t role, int64_t offset,
                           bool check, bool bf16_scale) {
  const auto outs = quantized_list(xs, codes, scales, zeros, bits, group, params);
  if (check) refuse_nonfinite(xs);
  int64_t bad = 0;
  for (size_t i = 0; i < xs.size(); ++i)
    bad += quant::quantize_groups(const_data(xs[i]), float_type(xs[i], "x"), outs[i],
                                  {rounding(stochastic), static_cast<quant::Range>(range),
                                   stream(seed, step, slot, params[i], role), offset, bf16_scale});
  return counter(xs[0], bad);
}

void dequantize_group_list(const Tensors& codes, const Tensors& scales, const Tensors& zeros,
                           const Tensors& outs, int64_t bits, int64_t group) {
  const auto ins = packed_list(codes, scales, zeros, outs, bits, group);
  for (size_t i = 0; i < outs.size(); ++i)
    quant::dequantize_groups(ins[i], data(outs[i]), float_type(outs[i], "out"));
}

Tensor quantize_map_list(const Tensors& xs, const Tensors& codes, const Tensors& scales,
                         int64_t map, int64_t group, bool stochastic, int64_t seed, int64_t step,
                         int64_t slot, const std::vector<int64_t>& params, int64_t role,
                         int64_t offset, bool check, bool bf16_scale) {
  const auto outs = quantized_list(xs, codes, scales, {}, map_bits(map), group, params);
  if (check) refuse_nonfinite(xs);
  int64_t bad = 0;
  for (size_t i = 0; i < xs.size(); ++i)
    bad += quant::quantize_map(
        const_data(xs[i]), float_type(xs[i], "x"), static_cast<quant::LevelMap>(map), outs[i],
        {rounding(stochastic), stream(seed, step, slot, params[i], role), offset, bf16_scale});
  return counter(xs[0], bad);
}

void dequantize_map_list(const Tensors& codes, const Tensors& scales, const Tensors& outs,
                         int64_t map, int64_t group) {
  const auto ins = packed_list(codes, scales, {}, outs, map_bits(map), group);
  for (size_t i = 0; i < outs.size(); ++i)
    quant::dequantize_map(ins[i], static_cast<quant::LevelMap>(map), data(outs[i]),
                          float_type(outs[i], "out"));
}

Tensor requant_add_sr_list(const Tensors& codes, const Tensors& scales, const Tensors& zeros,
                           const Tensors& deltas, double alpha, double decay, int64_t bits,
                           int64_t group, int64_t seed, int64_t step, int64_t slot,
                           const std::vector<int64_t>& params, int64_t role, int64_t offset,
                           bool check) {
  const auto weights = requantized_list(codes, scales, zeros, deltas, bits, group, params);
  if (check) {
    int64_t bad = 0;
    for (const auto& d : deltas)
      bad += quant::count_nonfinite(d.const_data_ptr(), quant::FloatType::f32, d.numel());
    STD_TORCH_CHECK(bad == 0, "lowtide: delta has ", bad, " non-finite elements");
  }
  int64_t skipped = 0;
  for (size_t i = 0; i < deltas.size(); ++i)
    skipped +=
        quant::requant_add_sr(weights[i], const_f32(deltas[i], "delta"),
                              {alpha, decay, stream(seed, step, slot, params[i], role), offset});
  return counter(deltas[0], skipped);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def(
      "quantize_group_list_(Tensor[] xs, Tensor(a!)[] codes, Tensor(b!)[] scales, Tensor(c!)[] "
      "zeros, int bits, int group, bool stochastic, int range, int seed, int step, int slot, "
      "int[] params, int role, int offset, bool check, bool bf16_scale=False) -> Tensor");
  m.def(
      "quantize_map_list_(Tensor[] xs, Tensor(a!)[] codes, Tensor(b!)[] scales, int map, int "
      "group, "
      "bool stochastic, int seed, int step, int slot, int[] params, int role, int offset, bool "
      "check, bool bf16_scale) -> Tensor");
  m.def(
      "dequantize_map_list_(Tensor[] codes, Tensor[] scales, Tensor(a!)[] outs, int map, int "
      "group) "
      "-> ()");
  m.def(
      "dequantize_group_list_(Tensor[] codes, Tensor[] scales, Tensor[] zeros, Tensor(a!)[] outs, "
      "int bits, int group) -> ()");
  m.def(
      "requant_add_sr_list_(Tensor(a!)[] codes, Tensor(b!)[] scales, Tensor(c!)[] zeros, Tensor[] "
      "deltas, float alpha, float decay, int bits, int group, int seed, int step, int slot, int[] "
      "params, int role, int offset, bool check) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("quantize_group_list_", LT_BOX(&quantize_group_list));
  m.impl("quantize_map_list_", LT_BOX(&quantize_map_list));
  m.impl("dequantize_map_list_", LT_BOX(&dequantize_map_list));
  m.impl("dequantize_group_list_", LT_BOX(&dequantize_group_list));
  m.impl("requant_add_sr_list_", LT_BOX(&requant_add_sr_list));
}

}  // namespace lowtide::torch_ops
