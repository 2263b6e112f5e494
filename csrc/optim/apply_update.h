// SPDX-License-Identifier: Apache-2.0
// The end of a step whose direction was computed elsewhere (a low-rank update projected back), over
// a list of tensors: p = (p * decay_before + alpha * u) * decay_after, multiply then add, for
// float32 weights or bfloat16 ones rounded to nearest or stochastically. Moves 12 bytes a parameter
// (8 for bfloat16 weights).
#pragma once
#include <cstdint>
#include <vector>

#include "optim/weight_store.h"

namespace lowtide::optim {

constexpr int64_t kUpdateBlock = 256;

struct UpdateTensor {
  int64_t n = 0;
  uint32_t param = 0;  // stream of the stochastic rounding, and the global index of the first
  int64_t offset = 0;  // element in it, a multiple of kUpdateBlock
  WeightStore weight_store = WeightStore::f32;
  void* p = nullptr;
  const float* u = nullptr;
};

struct UpdateRule {
  float alpha, decay_before, decay_after;
};

LT_HD float updated_weight(const UpdateRule& rule, float p, float u) {
  return (p * rule.decay_before + rule.alpha * u) * rule.decay_after;
}

UpdateRule make_update_rule(double alpha, double decay_before, double decay_after);
void apply_update(const std::vector<UpdateTensor>& tensors, const UpdateRule& rule, uint64_t seed,
                  uint64_t step);

}  // namespace lowtide::optim
