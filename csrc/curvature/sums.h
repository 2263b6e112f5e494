// SPDX-License-Identifier: Apache-2.0
// The order of the sums of this family, shared by every target. A tensor is summed in blocks of
// kReduceBlock elements from its first one. A block keeps 32 sums in double, element i goes to
// sum i % 32 in the order of i, and a tree folds them; the tree of base/reduce.h joins the blocks.
// 32 because the signs of 32 neighbours are one random word.
#pragma once
#include "base/reduce_order.h"

namespace lowtide::curvature {

constexpr int kSums = 32;

LT_HD double fold_sums(double* sums) {
  for (int w = kSums / 2; w >= 1; w /= 2)
    for (int i = 0; i < w; ++i) sums[i] = sums[i] + sums[i + w];
  return sums[0];
}

LT_HD int64_t sum_blocks(int64_t n) { return (n + kReduceBlock - 1) / kReduceBlock; }

// The product of two floats has at most 48 significant bits: exact in double.
LT_HD double exact_product(float x, float y) {
  return static_cast<double>(x) * static_cast<double>(y);
}

}  // namespace lowtide::curvature
