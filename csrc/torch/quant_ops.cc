// SPDX-License-Identifier: Apache-2.0
// List forms only: tensor i of each list is one matrix, so that a step over a model is one call. An
// empty list of zero points means the symmetric scheme.
#include <string>

#include "quant/group_codec.h"
#include "quant/group_map.h"
#include "quant/requant.h"
#include "torch/float_type.h"

namespace lowtide::torch_ops {
namespace {

using Tensors = std::vector<Tensor>;

random::Stream stream(int64_t seed, int64_t step, int64_t slot, int64_t param, int64_t role) {
  return {static_cast<uint64_t>(seed), static_cast<uint64_t>(step), static_cast<uint32_t>(slot),
          static_cast<uint32_t>(param), static_cast<uint32_t>(role)};
}

int64_t last_dim(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() >= 1, "lowtide: ", name, " must have at least one dimension");
  return t.size(t.dim() - 1);
}

// The shape of `full` (..., cols) as a matrix; rows are counted by the scale, for cols may be 0.
quant::GroupShape shape_of(const Tensor& full, const Tensor& scale, int64_t bits, int64_t group,
                           const char* name) {
  STD_TORCH_CHECK(scale.dim() == 2, "lowtide: scale must have shape (rows, groups)");
  const quant::GroupShape s{scale.size(0), last_dim(full, name), group, static_cast<int>(bits)};
  quant::check_shape(s);
  STD_TORCH_CHECK(full.numel() == s.rows * s.cols, "lowtide: ", name,
                  " and scale must have the same number of rows");
  return s;
}

void check_packed(const Tensor& codes, const Tensor& scale, const Tensor* zero,
                  const quant::GroupShape& s) {
  const int64_t groups = s.rows * quant::groups_per_row(s);
  STD_TORCH_CHECK(codes.numel() == s.rows * quant::row_bytes(s) && scale.numel() == groups &&
                      (zero == nullptr || zero->numel() == groups),
                  "lowtide: codes, scale and zero do not fit the matrix, bits and group");
}

quant::GroupMatrix matrix(const Tensor& codes, const Tensor& scale, const Tensor* zero,
                          const quant::GroupShape& s) {
  check_packed(codes, scale, zero, s);
  return {u8(codes, "codes"), f32(scale, "scale"), zero != nullptr ? u8(*zero, "zero") : nullptr,
          s};
}

const Tensor* zero_at(const Tensors& zeros, size_t i) {
  return zeros.empty() ? nullptr : &zeros[i];
}

void check_lengths(size_t n, const Tensors& codes, const Tensors& scales, const Tensors& zeros) {
  STD_TORCH_CHECK(codes.size() == n && scales.size() == n && (zeros.empty() || zeros.size() == n),
                  "lowtide: the lists of tensors must have equal lengths");
}

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
  check_lengths(xs.size(), codes, scales, zeros);
  STD_TORCH_CHECK(!xs.empty() && params.size() == xs.size(),
                  "lowtide: params must list one id for each tensor");
  std::vector<quant::GroupMatrix> outs;  // all checked before any is changed
  for (size_t i = 0; i < xs.size(); ++i) {
    float_type(xs[i], "x");
    outs.push_back(matrix(codes[i], scales[i], zero_at(zeros, i),
                          shape_of(xs[i], scales[i], bits, group, "x")));
  }
  if (check) refuse_nonfinite(xs);
  int64_t bad = 0;
  for (size_t i = 0; i < xs.size(); ++i) {
    const quant::QuantizeOptions options = {
        stochastic ? quant::Rounding::stochastic : quant::Rounding::nearest,
        static_cast<quant::Range>(range), stream(seed, step, slot, params[i], role), offset,
        bf16_scale};
    bad += quant::quantize_groups(xs[i].const_data_ptr(), float_type(xs[i], "x"), outs[i], options);
  }
  return counter(xs[0], bad);
}

void dequantize_group_list(const Tensors& codes, const Tensors& scales, const Tensors& zeros,
                           const Tensors& outs, int64_t bits, int64_t group) {
  check_lengths(outs.size(), codes, scales, zeros);
  std::vector<quant::ConstGroupMatrix> ins;
  for (size_t i = 0; i < outs.size(); ++i) {
    float_type(outs[i], "out");
    const Tensor* zero = zero_at(zeros, i);
    const quant::GroupShape s = shape_of(outs[i], scales[i], bits, group, "out");
    check_packed(codes[i], scales[i], zero, s);
    ins.push_back({const_u8(codes[i], "codes"), const_f32(scales[i], "scale"),
                   zero != nullptr ? const_u8(*zero, "zero") : nullptr, s});
  }
  for (size_t i = 0; i < outs.size(); ++i)
    quant::dequantize_groups(ins[i], outs[i].mutable_data_ptr(), float_type(outs[i], "out"));
}

Tensor quantize_map_list(const Tensors& xs, const Tensors& codes, const Tensors& scales,
                         int64_t map, int64_t group, bool stochastic, int64_t seed, int64_t step,
                         int64_t slot, const std::vector<int64_t>& params, int64_t role,
                         int64_t offset, bool check, bool bf16_scale) {
  check_lengths(xs.size(), codes, scales, {});
  STD_TORCH_CHECK(!xs.empty() && params.size() == xs.size(),
                  "lowtide: params must list one id for each tensor");
  const int bits = quant::map_bits(static_cast<quant::LevelMap>(map));
  std::vector<quant::GroupMatrix> outs;  // all checked before any is changed
  for (size_t i = 0; i < xs.size(); ++i) {
    float_type(xs[i], "x");
    outs.push_back(
        matrix(codes[i], scales[i], nullptr, shape_of(xs[i], scales[i], bits, group, "x")));
  }
  if (check) refuse_nonfinite(xs);
  int64_t bad = 0;
  for (size_t i = 0; i < xs.size(); ++i)
    bad += quant::quantize_map(xs[i].const_data_ptr(), float_type(xs[i], "x"),
                               static_cast<quant::LevelMap>(map), outs[i],
                               {stochastic ? quant::Rounding::stochastic : quant::Rounding::nearest,
                                stream(seed, step, slot, params[i], role), offset, bf16_scale});
  return counter(xs[0], bad);
}

void dequantize_map_list(const Tensors& codes, const Tensors& scales, const Tensors& outs,
                         int64_t map, int64_t group) {
  check_lengths(outs.size(), codes, scales, {});
  const int bits = quant::map_bits(static_cast<quant::LevelMap>(map));
  std::vector<quant::ConstGroupMatrix> ins;
  for (size_t i = 0; i < outs.size(); ++i) {
    float_type(outs[i], "out");
    const quant::GroupShape s = shape_of(outs[i], scales[i], bits, group, "out");
    check_packed(codes[i], scales[i], nullptr, s);
    ins.push_back({const_u8(codes[i], "codes"), const_f32(scales[i], "scale"), nullptr, s});
  }
  for (size_t i = 0; i < outs.size(); ++i)
    quant::dequantize_map(ins[i], static_cast<quant::LevelMap>(map), outs[i].mutable_data_ptr(),
                          float_type(outs[i], "out"));
}

Tensor requant_add_sr_list(const Tensors& codes, const Tensors& scales, const Tensors& zeros,
                           const Tensors& deltas, double alpha, double decay, int64_t bits,
                           int64_t group, int64_t seed, int64_t step, int64_t slot,
                           const std::vector<int64_t>& params, int64_t role, int64_t offset,
                           bool check) {
  check_lengths(deltas.size(), codes, scales, zeros);
  STD_TORCH_CHECK(!deltas.empty() && params.size() == deltas.size(),
                  "lowtide: params must list one id for each tensor");
  std::vector<quant::GroupMatrix> weights;  // all checked before any is changed
  for (size_t i = 0; i < deltas.size(); ++i) {
    const_f32(deltas[i], "delta");
    weights.push_back(matrix(codes[i], scales[i], zero_at(zeros, i),
                             shape_of(deltas[i], scales[i], bits, group, "delta")));
  }
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
