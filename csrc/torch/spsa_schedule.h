// SPDX-License-Identifier: Apache-2.0
// Weights and schedules of zeroth-order steps as tensors, for the torch ops.
#pragma once
#include "quant/group_format.h"
#include "spsa/schedule.h"
#include "torch/common.h"

namespace lowtide::torch_ops {

inline const int64_t* longs(const Tensor& t, const char* name) {
  check_cpu(t, ScalarType::Long, name, "int64");
  return static_cast<const int64_t*>(t.const_data_ptr());
}

inline quant::FloatType float_type(const Tensor& t, const char* name) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                       dtype == ScalarType::Half),
                  "lowtide: ", name,
                  " must be a contiguous float32, bfloat16 or float16 CPU tensor");
  return dtype == ScalarType::Float      ? quant::FloatType::f32
         : dtype == ScalarType::BFloat16 ? quant::FloatType::bf16
                                         : quant::FloatType::f16;
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
          longs(round_steps, "round_steps"),
          const_f32(decays, "decays"),
          longs(first, "first"),
          directions,
          longs(dir_steps, "dir_steps"),
          longs(dir_slots, "dir_slots"),
          const_f32(coeffs, "coeffs")};
}

}  // namespace lowtide::torch_ops
