// SPDX-License-Identifier: Apache-2.0
// The perturbation of one element, and elements of any float type. Shared by reference and CUDA.
#pragma once
#include "quant/group_format.h"

namespace lowtide::spsa {

LT_HD float perturbed(float w, float scale, float z) { return w + scale * z; }
// Whether the mask holds an element still.
LT_HD bool beyond(float w, float threshold) { return abs_f(w) > threshold; }

LT_HD int64_t bytes_of(quant::FloatType type) { return type == quant::FloatType::f32 ? 4 : 2; }

LT_HD float element_at(const void* p, quant::FloatType type, int64_t i) {
  if (type == quant::FloatType::f32) return static_cast<const float*>(p)[i];
  const uint16_t h = static_cast<const uint16_t*>(p)[i];
  return type == quant::FloatType::bf16 ? bf16_to_float(h) : half_to_float(h);
}
LT_HD void put_element(void* p, quant::FloatType type, int64_t i, float x) {
  if (type == quant::FloatType::f32)
    static_cast<float*>(p)[i] = x;
  else
    static_cast<uint16_t*>(p)[i] =
        type == quant::FloatType::bf16 ? float_to_bf16(x) : float_to_half(x);
}

}  // namespace lowtide::spsa
