// SPDX-License-Identifier: Apache-2.0
// Weights and schedules of zeroth-order steps as tensors, for the torch ops.
#pragma once
#include "spsa/schedule.h"
#include "torch/float_type.h"

namespace lowtide::torch_ops {

inline spsa::Schedule schedule_of(int64_t seed, const Tensor& round_steps, const Tensor& decays,
                                  const Tensor& first, const Tensor& dir_steps,
                                  const Tensor& dir_slots, const Tensor& coeffs) {
  const int64_t steps = decays.numel(), directions = coeffs.numel();
  STD_TORCH_CHECK(round_steps.numel() == steps && first.numel() == steps + 1,
                  "lowtide: round_steps and decays must have one element a step, first one more");
  STD_TORCH_CHECK(dir_steps.numel() == directions && dir_slots.numel() == directions,
                  "lowtide: dir_steps, dir_slots and coeffs must have equal lengths");
  return {static_cast<uint64_t>(seed),
          steps,
          const_i64(round_steps, "round_steps"),
          const_f32(decays, "decays"),
          const_i64(first, "first"),
          directions,
          const_i64(dir_steps, "dir_steps"),
          const_i64(dir_slots, "dir_slots"),
          const_f32(coeffs, "coeffs")};
}

}  // namespace lowtide::torch_ops
