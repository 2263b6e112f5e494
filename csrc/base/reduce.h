// SPDX-License-Identifier: Apache-2.0
// Deterministic reductions: each block (reduce_order.h) hands one double to a fixed tree over
// blocks. No order depends on the ISA or the number of threads.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "base/parallel.h"
#include "base/reduce_order.h"

namespace lowtide {

// Neighbours first; overwrites `part`.
inline double tree_sum(double* part, size_t n) {
  if (n == 0) return 0.0;
  for (size_t w = 1; w < n; w *= 2)
    for (size_t i = 0; i + w < n; i += 2 * w) part[i] += part[i + w];
  return part[0];
}
inline double tree_sum(std::vector<double>& part) { return tree_sum(part.data(), part.size()); }

// block(b) returns the double of block b.
template <class F>
double reduce_blocks(int64_t blocks, const F& block) {
  std::vector<double> part(static_cast<size_t>(blocks));
  parallel_for(blocks, 8, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) part[static_cast<size_t>(b)] = block(b);
  });
  return tree_sum(part);
}

}  // namespace lowtide
