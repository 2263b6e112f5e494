// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of apply_update. Internal to csrc/optim.
#pragma once
#include "base/isa.h"
#include "optim/apply_update.h"

namespace lowtide::optim {

struct UpdateTable {
  // Blocks [begin, end) of 256 elements of one tensor.
  void (*blocks)(const UpdateTensor& tensor, int64_t begin, int64_t end, const UpdateRule& rule,
                 random::Key key);
};

LT_DECLARE_TABLES(UpdateTable, apply_update);

}  // namespace lowtide::optim
