// SPDX-License-Identifier: Apache-2.0
// What the ops of packed matrices check and take apart: tensor i of each list is one matrix. An
// empty list of zero points means the symmetric scheme.
#pragma once
#include <vector>

#include "quant/group_codec.h"
#include "quant/group_map.h"
#include "torch/float_type.h"
#include "torch/random_args.h"

namespace lowtide::torch_ops {

using Tensors = std::vector<Tensor>;

inline int64_t last_dim(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() >= 1, "lowtide: ", name, " must have at least one dimension");
  return t.size(t.dim() - 1);
}

// The shape of `full` (..., cols) as a matrix; rows are counted by the scale, for cols may be 0.
inline quant::GroupShape shape_of(const Tensor& full, const Tensor& scale, int64_t bits,
                                  int64_t group, const char* name) {
  STD_TORCH_CHECK(scale.dim() == 2, "lowtide: scale must have shape (rows, groups)");
  const quant::GroupShape s{scale.size(0), last_dim(full, name), group, static_cast<int>(bits)};
  quant::check_shape(s);
  STD_TORCH_CHECK(full.numel() == s.rows * s.cols, "lowtide: ", name,
                  " and scale must have the same number of rows");
  return s;
}

inline void check_packed(const Tensor& codes, const Tensor& scale, const Tensor* zero,
                         const quant::GroupShape& s) {
  const int64_t groups = s.rows * quant::groups_per_row(s);
  STD_TORCH_CHECK(codes.numel() == s.rows * quant::row_bytes(s) && scale.numel() == groups &&
                      (zero == nullptr || zero->numel() == groups),
                  "lowtide: codes, scale and zero do not fit the matrix, bits and group");
}

inline quant::GroupMatrix matrix(const Tensor& codes, const Tensor& scale, const Tensor* zero,
                                 const quant::GroupShape& s) {
  check_packed(codes, scale, zero, s);
  return {u8(codes, "codes"), f32(scale, "scale"), zero != nullptr ? u8(*zero, "zero") : nullptr,
          s};
}

inline const Tensor* zero_at(const Tensors& zeros, size_t i) {
  return zeros.empty() ? nullptr : &zeros[i];
}

inline void check_lengths(size_t n, const Tensors& codes, const Tensors& scales,
                          const Tensors& zeros) {
  STD_TORCH_CHECK(codes.size() == n && scales.size() == n && (zeros.empty() || zeros.size() == n),
                  "lowtide: the lists of tensors must have equal lengths");
}

// What a list op of one kind works on; all is checked before anything is changed.
inline std::vector<quant::GroupMatrix> quantized_list(const Tensors& xs, const Tensors& codes,
                                                      const Tensors& scales, const Tensors& zeros,
                                                      int64_t bits, int64_t group,
                                                      const std::vector<int64_t>& params) {
  check_lengths(xs.size(), codes, scales, zeros);
  STD_TORCH_CHECK(!xs.empty() && params.size() == xs.size(),
                  "lowtide: params must list one id for each tensor");
  std::vector<quant::GroupMatrix> outs;
  for (size_t i = 0; i < xs.size(); ++i) {
    float_type(xs[i], "x");
    outs.push_back(matrix(codes[i], scales[i], zero_at(zeros, i),
                          shape_of(xs[i], scales[i], bits, group, "x")));
  }
  return outs;
}

inline std::vector<quant::ConstGroupMatrix> packed_list(const Tensors& codes, const Tensors& scales,
                                                        const Tensors& zeros, const Tensors& outs,
                                                        int64_t bits, int64_t group) {
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
  return ins;
}

inline std::vector<quant::GroupMatrix> requantized_list(const Tensors& codes, const Tensors& scales,
                                                        const Tensors& zeros, const Tensors& deltas,
                                                        int64_t bits, int64_t group,
                                                        const std::vector<int64_t>& params) {
  check_lengths(deltas.size(), codes, scales, zeros);
  STD_TORCH_CHECK(!deltas.empty() && params.size() == deltas.size(),
                  "lowtide: params must list one id for each tensor");
  std::vector<quant::GroupMatrix> weights;
  for (size_t i = 0; i < deltas.size(); ++i) {
    const_f32(deltas[i], "delta");
    weights.push_back(matrix(codes[i], scales[i], zero_at(zeros, i),
                             shape_of(deltas[i], scales[i], bits, group, "delta")));
  }
  return weights;
}

inline quant::Rounding rounding(bool stochastic) {
  return stochastic ? quant::Rounding::stochastic : quant::Rounding::nearest;
}
inline int map_bits(int64_t map) { return quant::map_bits(static_cast<quant::LevelMap>(map)); }

}  // namespace lowtide::torch_ops
