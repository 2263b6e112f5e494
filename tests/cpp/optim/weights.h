// SPDX-License-Identifier: Apache-2.0
// Weights in each store, shared by the tests of the optim kernels.
#pragma once
#include <vector>

#include "base/hd.h"
#include "optim/weight_store.h"
#include "testing.h"

namespace lowtide::testing {

inline std::vector<uint16_t> to_bf16(const std::vector<float>& x) {
  std::vector<uint16_t> h;
  for (float v : x) h.push_back(float_to_bf16(v));
  return h;
}

struct Weights {
  optim::WeightStore store;
  std::vector<float> f32;
  std::vector<uint16_t> bf16;

  Weights(optim::WeightStore s, const std::vector<float>& x) : store(s) {
    if (s == optim::WeightStore::f32)
      f32 = x;
    else
      bf16 = to_bf16(x);
  }
  void* at(int64_t i) {
    return store == optim::WeightStore::f32 ? static_cast<void*>(f32.data() + i)
                                            : static_cast<void*>(bf16.data() + i);
  }
  uint64_t bits() const { return digest(f32) ^ digest(bf16); }
};

inline constexpr optim::WeightStore kStores[] = {
    optim::WeightStore::f32, optim::WeightStore::bf16_nearest, optim::WeightStore::bf16_stochastic};

}  // namespace lowtide::testing
