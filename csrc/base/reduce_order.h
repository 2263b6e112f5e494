// SPDX-License-Identifier: Apache-2.0
// The order of deterministic reductions, shared by every target: a block of kReduceBlock elements
// keeps 64 lane sums (element i goes to lane i % 64), folded by a fixed tree.
#pragma once
#include "base/hd.h"

namespace lowtide {

constexpr int64_t kReduceBlock = 4096;
constexpr int kReduceLanes = 64;

LT_HD float tree64(float* lanes) {
  for (int w = 32; w >= 1; w /= 2)
    for (int i = 0; i < w; ++i) lanes[i] = lanes[i] + lanes[i + w];
  return lanes[0];
}

}  // namespace lowtide
