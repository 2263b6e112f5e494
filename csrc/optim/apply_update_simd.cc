// SPDX-License-Identifier: Apache-2.0
// The same bits as apply_update_ref.cc. Bound by memory; stochastic rounding adds one Philox call
// of 16 lanes for each 128 elements.
#include "optim/apply_update_table.h"
#include "optim/weight_store_simd.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::optim {
namespace {

constexpr int kBlock = static_cast<int>(kUpdateBlock);
static_assert(kBlock == kWeightBlock);

template <class Store>
LT_SIMD void update_block(typename Store::Element* p, const float* u, const UpdateRule& rule,
                          const Store& target) {
  for (int i = 0; i < kBlock; i += kLanes) {
    const vf32 weight = Store::load(p, i) * rule.decay_before + rule.alpha * load<vf32>(u + i);
    target.store(p, i, weight * rule.decay_after);
  }
}

template <class Store>
void update_blocks(const UpdateTensor& t, int64_t begin, int64_t end, const UpdateRule& rule,
                   random::Key key) {
  auto* p = static_cast<typename Store::Element*>(t.p);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t at = b * kBlock, n = t.n - at;
    const Store target(t.offset + at, key, t.param);
    if (n >= kBlock) {
      update_block(p + at, t.u + at, rule, target);
    } else {
      typename Store::Element part_p[kBlock] = {};
      float part_u[kBlock] = {};
      __builtin_memcpy(part_p, p + at, static_cast<size_t>(n) * sizeof *p);
      __builtin_memcpy(part_u, t.u + at, static_cast<size_t>(n) * sizeof *part_u);
      update_block(part_p, part_u, rule, target);
      __builtin_memcpy(p + at, part_p, static_cast<size_t>(n) * sizeof *p);
    }
  }
}

void blocks(const UpdateTensor& t, int64_t begin, int64_t end, const UpdateRule& rule,
            random::Key key) {
  switch (t.weight_store) {
    case WeightStore::f32:
      return update_blocks<F32Store>(t, begin, end, rule, key);
    case WeightStore::bf16_nearest:
      return update_blocks<Bf16NearestStore>(t, begin, end, rule, key);
    case WeightStore::bf16_stochastic:
      return update_blocks<Bf16StochasticStore>(t, begin, end, rule, key);
  }
}

}  // namespace

extern const UpdateTable LT_CAT(apply_update_, LT_ISA);
const UpdateTable LT_CAT(apply_update_, LT_ISA) = {blocks};

}  // namespace lowtide::optim
