// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of dct.h. Internal to csrc/lowrank.
#pragma once
#include "base/isa.h"
#include "lowrank/dct.h"
#include "lowrank/dct_plan.h"

namespace lowtide::lowrank {

constexpr int kDctLanes = 16;            // lines that are transformed together
constexpr int64_t kDctPowerLines = 128;  // lines in a block of dct_power

LT_HD int64_t dct_lines(const DctMatrix& x) { return x.lines == Lines::rows ? x.rows : x.cols; }
LT_HD int64_t dct_length(const DctMatrix& x) { return x.lines == Lines::rows ? x.cols : x.rows; }

struct DctJob {
  DctPlan plan;
  const float* table;
  DctMatrix in;  // inverse: x is low, as float
  const int32_t* index;
  int64_t count;
  Power power;
  float* out;  // forward: low; inverse: the matrix; power: n sums for each block of lines
};

// Columns that are written together.
constexpr int64_t kDctTogether = 4 * kDctLanes;

// Floats of scratch: two buffers of 2 m (or n) values a lane, and the sums of dct_power or the
// columns that are written together.
inline int64_t dct_work(const DctPlan& p) {
  return kDctLanes * 2 * dct_room(p) + kDctTogether * p.n;
}

struct DctTable {
  // Lines 16 b .. 16 b + 15 for b in [begin, end); `work` is aligned to 64 bytes.
  void (*forward)(const DctJob& job, int64_t begin, int64_t end, float* work);
  void (*inverse)(const DctJob& job, int64_t begin, int64_t end, float* work);
  // One block of kDctPowerLines lines.
  void (*power)(const DctJob& job, int64_t block, float* work);
};

LT_DECLARE_TABLES(DctTable, dct);

LT_HD float dct_fold(float* lane) {
  for (int w = kDctLanes / 2; w >= 1; w /= 2)
    for (int i = 0; i < w; ++i) lane[i] = lane[i] + lane[i + w];
  return lane[0];
}

}  // namespace lowtide::lowrank
