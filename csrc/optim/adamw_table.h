// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of AdamW. Internal to csrc/optim.
#pragma once
#include "base/isa.h"
#include "optim/adamw.h"

namespace lowtide::optim {

struct AdamTable {
  // Blocks [begin, end) of one tensor; returns how many were skipped.
  int64_t (*blocks)(const AdamTensor& tensor, int64_t begin, int64_t end, const AdamRule& rule,
                    random::Key key);
};

LT_DECLARE_TABLES(AdamTable, adamw);

}  // namespace lowtide::optim
