// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of combine. Internal to csrc/optim.
#pragma once
#include "base/isa.h"
#include "optim/combine.h"

namespace lowtide::optim {

// Factors by column are padded by this, so that vectors may run past the end of a row.
constexpr int64_t kFactorPad = 16;

struct CombineTable {
  // Blocks [begin, end) of 256 elements.
  void (*blocks)(const CombineMatrix& m, int64_t begin, int64_t end, const UpdateRule& rule,
                 random::Key key);
};

LT_DECLARE_TABLES(CombineTable, combine);

}  // namespace lowtide::optim
