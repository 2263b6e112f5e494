// SPDX-License-Identifier: Apache-2.0
// Schedules of a given size for the benches of the spsa kernels.
#pragma once
#include <vector>

#include "spsa/schedule.h"

namespace lowtide::bench {

struct ScheduleArrays {
  std::vector<int64_t> round_steps, first = {0}, dir_steps, dir_slots;
  std::vector<float> decays, coeffs;

  ScheduleArrays(int64_t steps, int64_t directions) {
    for (int64_t k = 0; k < steps; ++k) {
      round_steps.push_back(k), decays.push_back(1.0f);
      for (int64_t j = 0; j < directions; ++j)
        dir_steps.push_back(k), dir_slots.push_back(j), coeffs.push_back(1e-6f);
      first.push_back(static_cast<int64_t>(coeffs.size()));
    }
  }
  spsa::Schedule schedule() const {
    return {1,
            static_cast<int64_t>(decays.size()),
            round_steps.data(),
            decays.data(),
            first.data(),
            static_cast<int64_t>(coeffs.size()),
            dir_steps.data(),
            dir_slots.data(),
            coeffs.data()};
  }
};

}  // namespace lowtide::bench
