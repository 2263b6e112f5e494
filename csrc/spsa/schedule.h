// SPDX-License-Identifier: Apache-2.0
// The steps of a run as the kernels take them: which directions contributed to a step, and with
// which coefficient. A direction is addressed by (seed, dir_step, slot); z of it is role kRoleZ.
#pragma once
#include <cstdint>
#include <vector>

#include "random/distributions.h"

namespace lowtide::spsa {

// As it comes from a caller. Step k applies directions first[k] .. first[k + 1] - 1.
struct Schedule {
  uint64_t seed = 0;
  int64_t steps = 0;
  const int64_t* round_steps = nullptr;  // [steps] whose stochastic rounding a step draws (slot 0)
  const float* decays = nullptr;         // [steps] factors of the weights
  const int64_t* first = nullptr;        // [steps + 1]
  int64_t directions = 0;
  const int64_t* dir_steps = nullptr;  // [directions]
  const int64_t* dir_slots = nullptr;
  const float* coeffs = nullptr;
};

// With keys derived. Plain structs: the CUDA kernels read arrays of them from device memory.
struct Direction {
  random::Key key;
  float coeff;
};
struct Step {
  random::Key round;
  float decay;
  int64_t begin, end;  // directions
};
struct Steps {
  std::vector<Step> steps;
  std::vector<Direction> directions;
};

// Checks everything. Steps without directions and without decay are left out: they change nothing.
Steps resolve(const Schedule& schedule);

}  // namespace lowtide::spsa
