// SPDX-License-Identifier: Apache-2.0
// The order of additions in channel_energy.h, shared by every target.
//
// Row: element j is added to lane j % 32 in the order of j, then the lanes are folded by a tree.
// Column: the rows of a run are added in order from 0, then the sums of the runs, in order.
#pragma once
#include "base/hd.h"

namespace lowtide::optim {

constexpr int kEnergyLanes = 32;
constexpr int64_t kEnergyRun = 64;

LT_HD double square_d(float x) { return static_cast<double>(x) * static_cast<double>(x); }

LT_HD double fold_lanes(double* lanes) {
  for (int w = kEnergyLanes / 2; w >= 1; w /= 2)
    for (int i = 0; i < w; ++i) lanes[i] = lanes[i] + lanes[i + w];
  return lanes[0];
}

LT_HD int64_t energy_runs(int64_t rows) { return (rows + kEnergyRun - 1) / kEnergyRun; }

}  // namespace lowtide::optim
