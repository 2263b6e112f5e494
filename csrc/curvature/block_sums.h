// SPDX-License-Identifier: Apache-2.0
// Sums over many tensors in one parallel region, each in the order of sums.h.
#pragma once
#include <vector>

#include "base/list_blocks.h"
#include "base/reduce.h"
#include "curvature/sums.h"

namespace lowtide::curvature {

constexpr int64_t kPieceBlocks = 4;  // 16384 elements pay for waking a thread

// out[t] = the sum over the blocks of tensor t, f(t, block) of each.
template <class F>
void sum_list(double* out, const std::vector<int64_t>& blocks, const F& f) {
  std::vector<size_t> first(blocks.size());
  size_t total = 0;
  for (size_t t = 0; t < blocks.size(); ++t)
    first[t] = total, total += static_cast<size_t>(blocks[t]);
  std::vector<double> part(total);
  for_list_blocks<kPieceBlocks>(blocks, [&](size_t t, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) part[first[t] + static_cast<size_t>(b)] = f(t, b);
  });
  PinnedFpEnv pin;
  for (size_t t = 0; t < blocks.size(); ++t)
    out[t] = tree_sum(part.data() + first[t], static_cast<size_t>(blocks[t]));
}

}  // namespace lowtide::curvature
