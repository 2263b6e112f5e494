// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of ce_rows. Internal to csrc/curvature.
#pragma once
#include "base/isa.h"
#include "curvature/ce_rows.h"

namespace lowtide::curvature {

struct CeTable {  // rows [begin, end)
  void (*product)(float* y, const CeRows& a, int64_t begin, int64_t end);
  void (*cumulant)(float* y, const CeRows& a, int64_t begin, int64_t end);
  void (*diagonal)(float* y, const CeRows& a, int64_t begin, int64_t end);
  void (*weighted)(float* y, const CeRows& a, int64_t begin, int64_t end);
  void (*trace)(float* y, const CeRows& a, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(CeTable, ce_rows);

}  // namespace lowtide::curvature
