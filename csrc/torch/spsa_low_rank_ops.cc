// SPDX-License-Identifier: Apache-2.0
#include "torch/spsa_low_rank_args.h"

namespace lowtide::torch_ops {
namespace {

void spsa_low_rank_perturb(const Tensor& out, const Tensor& w, double scale, int64_t seed,
                           int64_t step, int64_t v_step, int64_t slot, int64_t param, int64_t rank,
                           int64_t first_row) {
  const auto out_type = float_type(out, "out"), w_type = float_type(w, "w");
  same_size(out, w);
  spsa::low_rank_perturb(data(out), out_type, const_data(w), w_type, to_float_rn(scale),
                         low_rank_matrix(w, rank, param, first_row),
                         {u64(seed), u64(step), u64(v_step), u32(slot)});
}

void spsa_low_rank_replay(const Tensor& w, double scale, int64_t seed, int64_t param, int64_t rank,
                          const Tensor& round_steps, const Tensor& decays, const Tensor& first,
                          const Tensor& dir_steps, const Tensor& v_steps, const Tensor& dir_slots,
                          const Tensor& coeffs, int64_t first_row) {
  const int64_t* v = v_steps_of(v_steps, coeffs);
  spsa::low_rank_replay(
      data(w), float_type(w, "w"), to_float_rn(scale), low_rank_matrix(w, rank, param, first_row),
      schedule_of(seed, round_steps, decays, first, dir_steps, dir_slots, coeffs), v);
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
