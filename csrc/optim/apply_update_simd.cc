// SPDX-License-Identifier: Apache-2.0
// The same bits as apply_update_ref.cc. Bound by memory; stochastic rounding adds one Philox call
// of 16 lanes for each 128 elements.
#include "optim/apply_update_table.h"
#include "optim/update_block_simd.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::optim {
namespace {

constexpr int kBlock = kWeightBlock;

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
      float part[kBlock] = {};
      __builtin_memcpy(part, t.u + at, static_cast<size_t>(n) * sizeof *part);
      update_last_block(p + at, part, n, rule, target);
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
