// SPDX-License-Identifier: Apache-2.0
// The end of a step (apply_update.h) on blocks of 256 weights. For *_simd.cc files only.
#pragma once
#include "optim/apply_update.h"
#include "optim/weight_store_simd.h"

namespace lowtide::optim {
namespace {

static_assert(kUpdateBlock == kWeightBlock);

template <class Store>
LT_SIMD void update_block(typename Store::Element* p, const float* u, const UpdateRule& rule,
                          const Store& target) {
  for (int i = 0; i < kWeightBlock; i += kLanes) {
    const vf32 weight = Store::load(p, i) * rule.decay_before + rule.alpha * load<vf32>(u + i);
    target.store(p, i, weight * rule.decay_after);
  }
}

// The same where only n weights are left; u is a whole block.
template <class Store>
LT_SIMD void update_last_block(typename Store::Element* p, const float* u, int64_t n,
                               const UpdateRule& rule, const Store& target) {
  typename Store::Element part[kWeightBlock] = {};
  __builtin_memcpy(part, p, static_cast<size_t>(n) * sizeof *p);
  update_block(part, u, rule, target);
  __builtin_memcpy(p, part, static_cast<size_t>(n) * sizeof *p);
}

}  // namespace
}  // namespace lowtide::optim
