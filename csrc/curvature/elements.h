// SPDX-License-Identifier: Apache-2.0
// One element of a tensor of either type.
#pragma once
#include "base/dtype.h"
#include "base/hd.h"

namespace lowtide::curvature {

LT_HD int64_t bytes_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

LT_HD float element(const void* x, Dtype dtype, int64_t i) {
  return dtype == Dtype::f32 ? static_cast<const float*>(x)[i]
                             : bf16_to_float(static_cast<const uint16_t*>(x)[i]);
}

LT_HD void put_element(void* x, Dtype dtype, int64_t i, float v) {
  if (dtype == Dtype::f32)
    static_cast<float*>(x)[i] = v;
  else
    static_cast<uint16_t*>(x)[i] = float_to_bf16(v);
}

}  // namespace lowtide::curvature
