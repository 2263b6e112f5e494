// SPDX-License-Identifier: Apache-2.0
// Schedules for the tests of the spsa kernels: owned arrays, and the same cut into single steps.
#pragma once
#include <vector>

#include "spsa/schedule.h"

namespace lowtide::testing {

struct Plan {
  uint64_t seed = 77;
  std::vector<int64_t> round_steps, first = {0}, dir_steps, dir_slots;
  std::vector<float> decays, coeffs;

  void add(int64_t step, float decay, const std::vector<float>& c, int64_t age = 0) {
    round_steps.push_back(step);
    decays.push_back(decay);
    for (size_t j = 0; j < c.size(); ++j) {
      dir_steps.push_back(step - age);
      dir_slots.push_back(static_cast<int64_t>(3 * j));
      coeffs.push_back(c[j]);
    }
    first.push_back(static_cast<int64_t>(coeffs.size()));
  }

  spsa::Schedule schedule() const {
    return {seed,         static_cast<int64_t>(decays.size()), round_steps.data(), decays.data(),
            first.data(), static_cast<int64_t>(coeffs.size()), dir_steps.data(),   dir_slots.data(),
            coeffs.data()};
  }

  Plan step(size_t k) const {
    Plan one;
    one.seed = seed;
    one.round_steps = {round_steps[k]};
    one.decays = {decays[k]};
    for (auto j = static_cast<size_t>(first[k]); j < static_cast<size_t>(first[k + 1]); ++j) {
      one.dir_steps.push_back(dir_steps[j]);
      one.dir_slots.push_back(dir_slots[j]);
      one.coeffs.push_back(coeffs[j]);
    }
    one.first = {0, static_cast<int64_t>(one.coeffs.size())};
    return one;
  }
};

// Steps of 1, 3, 0 (with and without decay) and 19 directions, some of them old.
inline Plan mixed_run() {
  Plan run;
  run.add(5, 1.0f, {1e-3f});
  run.add(6, 0.999f, {-2e-3f, 0.0f, 1e-4f});
  run.add(7, 0.99f, {});
  run.add(8, 1.0f, {});
  std::vector<float> many;
  for (int j = 0; j < 19; ++j) many.push_back(1e-4f * static_cast<float>(j - 9));
  run.add(9, 1.0f, many);
  run.add(10, 1.0f, {3e-4f}, 4);
  return run;
}

}  // namespace lowtide::testing
