// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "base/fpenv.h"
#include "spsa/low_rank.h"
#include "torch/spsa_schedule.h"

namespace lowtide::torch_ops {

// A matrix is the first dimension by all others.
inline spsa::LowRankMatrix low_rank_matrix(const Tensor& w, int64_t rank, int64_t param,
                                           int64_t first_row) {
  STD_TORCH_CHECK(w.dim() >= 2, "lowtide: w must have at least two dimensions, got ", w.dim());
  int64_t cols = 1;
  for (int64_t d = 1; d < w.dim(); ++d) cols *= w.size(d);
  return {w.size(0), cols, first_row, rank, u32(param)};
}

inline void same_size(const Tensor& out, const Tensor& w) {
  STD_TORCH_CHECK(out.numel() == w.numel(), "lowtide: out must have ", w.numel(), " elements, got ",
                  out.numel());
}

inline const int64_t* v_steps_of(const Tensor& v_steps, const Tensor& coeffs) {
  STD_TORCH_CHECK(v_steps.numel() == coeffs.numel(),
                  "lowtide: v_steps and coeffs must have equal lengths");
  return host_array<int64_t>(v_steps, ScalarType::Long, "v_steps");
}

}  // namespace lowtide::torch_ops
