// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of channel_energy. Internal to csrc/optim.
#pragma once
#include "base/isa.h"
#include "optim/channel_energy.h"

namespace lowtide::optim {

struct EnergyTable {
  // energy[i] of rows [begin, end).
  void (*rows)(double* energy, const EnergyMatrix& m, int64_t begin, int64_t end);
  // sums[j] = the chain over rows [begin, end) of columns [first, last).
  void (*columns)(double* sums, const EnergyMatrix& m, int64_t begin, int64_t end, int64_t first,
                  int64_t last);
};

LT_DECLARE_TABLES(EnergyTable, channel_energy);

}  // namespace lowtide::optim
