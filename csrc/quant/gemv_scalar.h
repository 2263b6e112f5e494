// SPDX-License-Identifier: Apache-2.0
// A packed matrix times one vector, one row at a time: the definition that every target reproduces
// bit for bit.
//
// Column k belongs to lane k % 16. Within a group each lane is one chain of fused multiply-adds of
// x and the code's integer (or level), which is exact; the group's scale multiplies the chain's
// end, once, into the lane's total. Rows are padded with zeros to blocks of 32 columns. Sixteen
// totals are added as a tree. Weights are never rounded: the result is nearer to the exact one than
// a product with decoded weights.
#pragma once
#include "quant/gemv_table.h"

namespace lowtide::quant {

constexpr int kGemvLanes = 16;

// Columns up to which a group of n columns is padded.
LT_HD int64_t padded(int64_t n) { return (n + 31) / 32 * 32; }

LT_HD float code_value(int code, int zero, Coding coding, const float* levels) {
  return coding == Coding::nf4 ? levels[code] : static_cast<float>(code - zero);
}

LT_HD float lane_tree(float t[kGemvLanes]) {
  for (int d = kGemvLanes / 2; d > 0; d /= 2)
    for (int l = 0; l < d; ++l) t[l] = t[l] + t[l + d];
  return t[0];
}

}  // namespace lowtide::quant
