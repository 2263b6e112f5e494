// SPDX-License-Identifier: Apache-2.0
#include "lowrank/range_finder.h"
#include "torch/common.h"

namespace lowtide::torch_ops {
namespace {

quant::Operand gradient(const Tensor& g) {
  const ScalarType dtype = g.scalar_type();
  STD_TORCH_CHECK(g.is_cpu() && g.dim() == 2 && g.is_contiguous() &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16),
                  "lowtide: g must be a contiguous 2-D float32 or bfloat16 CPU tensor");
  return {dtype == ScalarType::Float ? quant::Store::f32 : quant::Store::bf16,
          g.const_data_ptr(),
          g.size(0),
          g.size(1),
          g.size(1),
          nullptr,
          nullptr,
          256};
}

Tensor rsvd(const Tensor& g, int64_t rank, bool left, const std::optional<Tensor>& prev,
            int64_t oversample, int64_t power_iters, int64_t seed, int64_t step, int64_t param) {
  const quant::Operand x = gradient(g);
  const auto side = left ? lowrank::Side::left : lowrank::Side::right;
  STD_TORCH_CHECK(rank >= 1, "lowtide: rank must be >= 1");
  const int64_t r = lowrank::basis_rows(x, rank), d = lowrank::basis_cols(x, side);
  Tensor q = torch::stable::new_empty(g, {r, d}, ScalarType::Float);
  const random::Stream stream{static_cast<uint64_t>(seed), static_cast<uint64_t>(step), 0,
                              static_cast<uint32_t>(param), random::kRoleU};
  const lowrank::RangeFinder how{rank, oversample, power_iters};
  if (prev.has_value()) {
    const float* p = const_f32(*prev, "prev");
    STD_TORCH_CHECK(prev->dim() == 2 && prev->size(0) == r && prev->size(1) == d,
                    "lowtide: prev must have the shape of the basis, ", r, " x ", d);
    lowrank::track_range(f32(q, "q"), x, side, how, p, stream);
  } else {
    lowrank::find_range(f32(q, "q"), x, side, how, stream);
  }
  return q;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def(
      "rsvd(Tensor g, int rank, bool left, Tensor? prev, int oversample, int power_iters, int "
      "seed, int step, int param) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) { m.impl("rsvd", LT_BOX(&rsvd)); }

}  // namespace lowtide::torch_ops
