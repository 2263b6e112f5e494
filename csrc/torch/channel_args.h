// SPDX-License-Identifier: Apache-2.0
// Matrices as the ops of channel-wise methods take them.
#pragma once
#include "optim/channel_energy.h"
#include "optim/combine.h"
#include "torch/float_type.h"

namespace lowtide::torch_ops {

inline optim::EnergyMatrix energy_matrix(const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(is_here(x) && x.dim() == 2 && x.is_contiguous() &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16),
                  "lowtide: x must be a contiguous 2-D float32 or bfloat16 ", kHere, " tensor");
  return {const_data(x), dtype == ScalarType::Float ? Dtype::f32 : Dtype::bf16, x.size(0),
          x.size(1)};
}

inline optim::Channels channels(bool columns) {
  return columns ? optim::Channels::columns : optim::Channels::rows;
}

// along, chosen: optim::Along
inline optim::CombineMatrix combine_matrix(const Tensor& p, const std::optional<Tensor>& g,
                                           const std::optional<Tensor>& k, int64_t along, bool sign,
                                           const std::optional<Tensor>& u,
                                           const std::optional<Tensor>& index, int64_t chosen,
                                           bool stochastic, int64_t param, int64_t offset) {
  optim::CombineMatrix m;
  const bool f32_weights = f32_or_bf16(p, "p") == Dtype::f32;
  STD_TORCH_CHECK(p.dim() == 2, "lowtide: p must have two dimensions");
  STD_TORCH_CHECK(along >= 0 && along <= 2 && chosen >= 0 && chosen <= 2,
                  "lowtide: along and chosen must be 0, 1 or 2");
  m.rows = p.size(0), m.cols = p.size(1);
  m.param = u32(param), m.offset = offset;
  m.weight_store = f32_weights  ? optim::WeightStore::f32
                   : stochastic ? optim::WeightStore::bf16_stochastic
                                : optim::WeightStore::bf16_nearest;
  m.sign = sign, m.along = static_cast<optim::Along>(along);
  m.chosen = static_cast<optim::Along>(chosen);
  const auto sized = [](const Tensor& t, int64_t n, const char* name) {
    STD_TORCH_CHECK(t.numel() == n, "lowtide: ", name, " must have ", n, " elements, got ",
                    t.numel());
  };
  STD_TORCH_CHECK(g.has_value() == k.has_value(), "lowtide: g and k come together");
  STD_TORCH_CHECK(index.has_value() == (chosen != 0), "lowtide: index and chosen come together");
  STD_TORCH_CHECK(!index.has_value() || u.has_value(), "lowtide: index needs u");
  if (g.has_value()) {
    m.g_dtype = f32_or_bf16(*g, "g"), m.g = const_data(*g);
    sized(*g, m.rows * m.cols, "g");
    m.k = const_f32(*k, "k");
    sized(*k, along == 0 ? 1 : along == 1 ? m.rows : m.cols, "k");
  }
  if (index.has_value()) {
    m.index = const_i32(*index, "index"), m.count = index->numel();
  }
  if (u.has_value()) {
    m.u = const_f32(*u, "u");
    sized(*u,
          chosen == 0   ? m.rows * m.cols
          : chosen == 1 ? m.count * m.cols
                        : m.rows * m.count,
          "u");
  }
  m.p = data(p);
  return m;
}

}  // namespace lowtide::torch_ops
