// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of fwht.h. Internal to csrc/lowrank.
#pragma once
#include "base/isa.h"
#include "lowrank/fwht.h"
#include "lowrank/fwht_plan.h"

namespace lowtide::lowrank {

constexpr int kFwhtLanes = 16;  // columns that are transformed together

LT_HD int64_t fwht_lines(const DctMatrix& x) { return x.lines == Lines::rows ? x.rows : x.cols; }
LT_HD int64_t fwht_length(const DctMatrix& x) { return x.lines == Lines::rows ? x.cols : x.rows; }

struct FwhtJob {
  FwhtPlan plan;
  const float* factors;  // spans x n
  DctMatrix in;          // inverse: x is low, as float
  const int32_t* index;
  int64_t count;
  float* out;  // forward: low; inverse: the matrix
};

// Floats of scratch: one row, or 16 columns.
inline int64_t fwht_work(const FwhtJob& job) {
  return job.plan.n * (job.in.lines == Lines::rows ? 1 : kFwhtLanes);
}

struct FwhtTable {
  // Lines 16 b .. 16 b + 15 for b in [begin, end); `work` is aligned to 64 bytes.
  void (*forward)(const FwhtJob& job, int64_t begin, int64_t end, float* work);
  void (*inverse)(const FwhtJob& job, int64_t begin, int64_t end, float* work);
};

LT_DECLARE_TABLES(FwhtTable, fwht);

}  // namespace lowtide::lowrank
