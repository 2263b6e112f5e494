// SPDX-License-Identifier: Apache-2.0
// A matrix is the first dimension by all others. Everything is checked before anything is changed.
#include "base/fpenv.h"
#include "spsa/low_rank.h"
#include "torch/spsa_schedule.h"

namespace lowtide::torch_ops {
namespace {

spsa::LowRankMatrix matrix_of(const Tensor& w, int64_t rank, int64_t param, int64_t first_row) {
  STD_TORCH_CHECK(w.dim() >= 2, "lowtide: w must have at least two dimensions, got ", w.dim());
  int64_t cols = 1;
  for (int64_t d = 1; d < w.dim(); ++d) cols *= w.size(d);
  return {w.size(0), cols, first_row, rank, static_cast<uint32_t>(param)};
}

void spsa_low_rank_perturb(const Tensor& out, const Tensor& w, double scale, int64_t seed,
                           int64_t step, int64_t v_step, int64_t slot, int64_t param, int64_t rank,
                           int64_t first_row) {
  const auto out_type = float_type(out, "out"), w_type = float_type(w, "w");
  STD_TORCH_CHECK(out.numel() == w.numel(), "lowtide: out must have ", w.numel(), " elements, got ",
                  out.numel());
  spsa::low_rank_perturb(out.mutable_data_ptr(), out_type, w.const_data_ptr(), w_type,
                         to_float_rn(scale), matrix_of(w, rank, param, first_row),
                         {static_cast<uint64_t>(seed), static_cast<uint64_t>(step),
                          static_cast<uint64_t>(v_step), static_cast<uint32_t>(slot)});
}

void spsa_low_rank_replay(const Tensor& w, double scale, int64_t seed, int64_t param, int64_t rank,
                          const Tensor& round_steps, const Tensor& decays, const Tensor& first,
                          const Tensor& dir_steps, const Tensor& v_steps, const Tensor& dir_slots,
                          const Tensor& coeffs, int64_t first_row) {
  STD_TORCH_CHECK(v_steps.numel() == coeffs.numel(),
                  "lowtide: v_steps and coeffs must have equal lengths");
  spsa::low_rank_replay(w.mutable_data_ptr(), float_type(w, "w"), to_float_rn(scale),
                        matrix_of(w, rank, param, first_row),
                        schedule_of(seed, round_steps, decays, first, dir_steps, dir_slots, coeffs),
                        const_i64(v_steps, "v_steps"));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def(
      "spsa_low_rank_perturb(Tensor(a!) out, Tensor w, float scale, int seed, int step, int "
      "v_step, "
      "int slot, int param, int rank, int first_row=0) -> ()");
  m.def(
      "spsa_low_rank_replay_(Tensor(a!) w, float scale, int seed, int param, int rank, Tensor "
      "round_steps, Tensor decays, Tensor first, Tensor dir_steps, Tensor v_steps, Tensor "
      "dir_slots, Tensor coeffs, int first_row=0) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("spsa_low_rank_perturb", LT_BOX(&spsa_low_rank_perturb));
  m.impl("spsa_low_rank_replay_", LT_BOX(&spsa_low_rank_replay));
}

}  // namespace lowtide::torch_ops
