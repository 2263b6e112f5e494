// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of small_dense.h. Internal to csrc/lowrank.
#pragma once
#include "base/hd.h"
#include "base/isa.h"
#include "lowrank/gram_plan.h"
#include "lowrank/small_dense.h"

namespace lowtide::lowrank {

constexpr int kDotLanes = 16;

LT_HD double fold_lanes(double* lane) {
  for (int w = kDotLanes / 2; w >= 1; w /= 2)
    for (int i = 0; i < w; ++i) lane[i] = lane[i] + lane[i + w];
  return lane[0];
}

struct SmallDenseTable {
  // Continues the chains of g[i, j], j <= i, over `depth` <= kGramDepth columns of y (row stride
  // ld). g: stride `padded` = rows rounded up to kGramPad; work: kGramDepth x padded doubles.
  void (*gram_block)(double* g, const float* y, int64_t ld, int64_t rows, int64_t depth,
                     int64_t padded, double* work);
  RowOps rows;
};

LT_DECLARE_TABLES(SmallDenseTable, small_dense);

}  // namespace lowtide::lowrank
