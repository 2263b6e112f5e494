// SPDX-License-Identifier: Apache-2.0
// The float types that codecs and zeroth-order kernels read and write, as tensors.
#pragma once
#include "base/dtype.h"
#include "quant/group_format.h"
#include "torch/common.h"

namespace lowtide::torch_ops {

// half: whether float16 is among them.
inline quant::FloatType float_type(const Tensor& t, const char* name, bool half = true) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(is_here(t) && t.is_contiguous() &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                       (half && dtype == ScalarType::Half)),
                  "lowtide: ", name, " must be a contiguous ",
                  half ? "float32, bfloat16 or float16" : "float32 or bfloat16", " ", kHere,
                  " tensor");
  return dtype == ScalarType::Float      ? quant::FloatType::f32
         : dtype == ScalarType::BFloat16 ? quant::FloatType::bf16
                                         : quant::FloatType::f16;
}

inline Dtype f32_or_bf16(const Tensor& t, const char* name) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK((dtype == ScalarType::Float || dtype == ScalarType::BFloat16) && is_here(t) &&
                      t.is_contiguous(),
                  "lowtide: ", name, " must be a contiguous float32 or bfloat16 ", kHere,
                  " tensor");
  return dtype == ScalarType::Float ? Dtype::f32 : Dtype::bf16;
}

}  // namespace lowtide::torch_ops
