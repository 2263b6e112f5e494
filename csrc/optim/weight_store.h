// SPDX-License-Identifier: Apache-2.0
// How an updated weight is put back, one element at a time: float32 as it is, bfloat16 to nearest
// or by stochastic rounding with the 16 bits of the element's global index (role kRoleWeightSr).
#pragma once
#include "random/philox.h"

namespace lowtide::optim {

enum class WeightStore : int { f32 = 0, bf16_nearest = 1, bf16_stochastic = 2 };

LT_HD float load_weight(const void* p, WeightStore store, int64_t i) {
  return store == WeightStore::f32 ? static_cast<const float*>(p)[i]
                                   : bf16_to_float(static_cast<const uint16_t*>(p)[i]);
}

// p[i] = x, where element 0 of p has the global index `offset`.
LT_HD void store_weight(void* p, WeightStore store, int64_t i, float x, int64_t offset,
                        random::Key key, uint32_t param) {
  if (store == WeightStore::f32) {
    static_cast<float*>(p)[i] = x;
  } else if (store == WeightStore::bf16_nearest) {
    static_cast<uint16_t*>(p)[i] = float_to_bf16(x);
  } else {
    const uint32_t r16 =
        random::sr16(static_cast<uint64_t>(offset + i), key, param, random::kRoleWeightSr);
    static_cast<uint16_t*>(p)[i] = float_to_bf16_sr(x, r16);
  }
}

}  // namespace lowtide::optim
