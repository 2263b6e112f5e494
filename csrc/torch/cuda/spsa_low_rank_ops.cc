// SPDX-License-Identifier: Apache-2.0
// Factors of all directions of a call are drawn before the matrix is moved: (rows + cols) rank
// floats of workspace a direction.
#include "spsa/low_rank_cuda.h"
#include "torch/cuda/device.h"
#include "torch/cuda/steps.h"
#include "torch/spsa_low_rank_args.h"

namespace lowtide::torch_ops {
namespace {

void spsa_low_rank_perturb(const Tensor& out, const Tensor& w, double scale, int64_t seed,
                           int64_t step, int64_t v_step, int64_t slot, int64_t param, int64_t rank,
                           int64_t first_row) {
  const OnDevice device(w);
  const auto out_type = float_type(out, "out"), w_type = float_type(w, "w");
  same_size(out, w);
  const spsa::LowRankMatrix m = low_rank_matrix(w, rank, param, first_row);
  const Tensor scratch = floats(w, spsa::cuda::low_rank_scratch(m, 1));
  check(spsa::cuda::low_rank_perturb(data(out), out_type, const_data(w), w_type, to_float_rn(scale),
                                     m, {u64(seed), u64(step), u64(v_step), u32(slot)},
                                     as<float>(scratch), device.stream()),
        "spsa_low_rank_perturb");
}

void spsa_low_rank_replay(const Tensor& w, double scale, int64_t seed, int64_t param, int64_t rank,
                          const Tensor& round_steps, const Tensor& decays, const Tensor& first,
                          const Tensor& dir_steps, const Tensor& v_steps, const Tensor& dir_slots,
                          const Tensor& coeffs, int64_t first_row) {
  const OnDevice device(w);
  const int64_t* v = v_steps_of(v_steps, coeffs);
  const auto type = float_type(w, "w");
  const spsa::LowRankMatrix m = low_rank_matrix(w, rank, param, first_row);
  const spsa::Schedule schedule =
      schedule_of(seed, round_steps, decays, first, dir_steps, dir_slots, coeffs);
  const DeviceSteps steps(schedule, w);
  const Tensor scratch = floats(w, spsa::cuda::low_rank_scratch(m, schedule.directions));
  check(spsa::cuda::low_rank_replay(data(w), type, to_float_rn(scale), m, schedule, v,
                                    steps.steps(), steps.count(), steps.directions(),
                                    as<float>(scratch), device.stream()),
        "spsa_low_rank_replay_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("spsa_low_rank_perturb", LT_BOX(&spsa_low_rank_perturb));
  m.impl("spsa_low_rank_replay_", LT_BOX(&spsa_low_rank_replay));
}

}  // namespace lowtide::torch_ops
