// SPDX-License-Identifier: Apache-2.0
#include "optim/channel_energy.h"
#include "optim/combine.h"
#include "torch/common.h"

namespace lowtide::torch_ops {
namespace {

Tensor channel_energy(const Tensor& x, bool columns) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2 && x.is_contiguous() &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16),
                  "lowtide: x must be a contiguous 2-D float32 or bfloat16 CPU tensor");
  Tensor energy = torch::stable::new_empty(x, {x.size(columns ? 1 : 0)}, ScalarType::Double);
  optim::channel_energy(static_cast<double*>(energy.mutable_data_ptr()),
                        {x.const_data_ptr(), dtype == ScalarType::Float ? Dtype::f32 : Dtype::bf16,
                         x.size(0), x.size(1)},
                        columns ? optim::Channels::columns : optim::Channels::rows);
  return energy;
}

Tensor ordered_sum(const Tensor& x) {
  check_cpu(x, ScalarType::Double, "x", "float64");
  Tensor sum = torch::stable::new_empty(x, {}, ScalarType::Double);
  *static_cast<double*>(sum.mutable_data_ptr()) =
      optim::ordered_sum(static_cast<const double*>(x.const_data_ptr()), x.numel());
  return sum;
}

Dtype float_type(const Tensor& t, const char* name) {
  const bool ok = t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(ok && t.is_cpu() && t.is_contiguous(), "lowtide: ", name,
                  " must be a contiguous float32 or bfloat16 CPU tensor");
  return t.scalar_type() == ScalarType::Float ? Dtype::f32 : Dtype::bf16;
}

// along, chosen: optim::Along
void combine(const Tensor& p, const std::optional<Tensor>& g, const std::optional<Tensor>& k,
             int64_t along, bool sign, const std::optional<Tensor>& u,
             const std::optional<Tensor>& index, int64_t chosen, double alpha, double decay_before,
             double decay_after, bool stochastic, int64_t seed, int64_t step, int64_t param,
             int64_t offset) {
  optim::CombineMatrix m;
  const bool f32_weights = float_type(p, "p") == Dtype::f32;
  STD_TORCH_CHECK(p.dim() == 2, "lowtide: p must have two dimensions");
  STD_TORCH_CHECK(along >= 0 && along <= 2 && chosen >= 0 && chosen <= 2,
                  "lowtide: along and chosen must be 0, 1 or 2");
  m.rows = p.size(0), m.cols = p.size(1);
  m.param = static_cast<uint32_t>(param), m.offset = offset;
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
    m.g_dtype = float_type(*g, "g"), m.g = g->const_data_ptr();
    sized(*g, m.rows * m.cols, "g");
    m.k = const_f32(*k, "k");
    sized(*k, along == 0 ? 1 : along == 1 ? m.rows : m.cols, "k");
  }
  if (index.has_value()) {
    check_cpu(*index, ScalarType::Int, "index", "int32");
    m.index = static_cast<const int32_t*>(index->const_data_ptr()), m.count = index->numel();
  }
  if (u.has_value()) {
    m.u = const_f32(*u, "u");
    sized(*u,
          chosen == 0   ? m.rows * m.cols
          : chosen == 1 ? m.count * m.cols
                        : m.rows * m.count,
          "u");
  }
  m.p = p.mutable_data_ptr();
  optim::combine(m, optim::make_update_rule(alpha, decay_before, decay_after),
                 static_cast<uint64_t>(seed), static_cast<uint64_t>(step));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def("channel_energy(Tensor x, bool columns) -> Tensor");
  m.def("ordered_sum(Tensor x) -> Tensor");
  m.def(
      "combine_(Tensor(a!) p, Tensor? g, Tensor? k, int along, bool sign, Tensor? u, Tensor? "
      "index, "
      "int chosen, float alpha, float decay_before, float decay_after, bool stochastic, int seed, "
      "int step, int param, int offset) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("channel_energy", LT_BOX(&channel_energy));
  m.impl("ordered_sum", LT_BOX(&ordered_sum));
  m.impl("combine_", LT_BOX(&combine));
}

}  // namespace lowtide::torch_ops
