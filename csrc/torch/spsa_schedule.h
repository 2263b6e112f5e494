// SPDX-License-Identifier: Apache-2.0
// Weights and schedules of zeroth-order steps as tensors, for the torch ops.
#pragma once
#include "spsa/schedule.h"
#include "torch/float_type.h"

namespace lowtide::torch_ops {

// Schedules are read by the host, wherever the weights are.
template <class T>
const T* host_array(const Tensor& t, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.scalar_type() == dtype, "lowtide: ", name,
                  " must be a contiguous ", dtype == ScalarType::Long ? "int64" : "float32",
                  " CPU tensor");
  return static_cast<const T*>(t.const_data_ptr());
}

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
          host_array<int64_t>(round_steps, ScalarType::Long, "round_steps"),
          host_array<float>(decays, ScalarType::Float, "decays"),
          host_array<int64_t>(first, ScalarType::Long, "first"),
          directions,
          host_array<int64_t>(dir_steps, ScalarType::Long, "dir_steps"),
          host_array<int64_t>(dir_slots, ScalarType::Long, "dir_slots"),
          host_array<float>(coeffs, ScalarType::Float, "coeffs")};
}

}  // namespace lowtide::torch_ops
