// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the fused step. Internal to csrc/optim.
#pragma once
#include "base/isa.h"
#include "optim/fused_step.h"

namespace lowtide::optim {

struct StepTable {
  // Blocks [begin, end) of one tensor; returns how many were skipped.
  int64_t (*blocks)(const StepTensor& tensor, int64_t begin, int64_t end, const StepRule& rule,
                    random::Key key);
};

LT_DECLARE_TABLES(StepTable, fused_step);

}  // namespace lowtide::optim
