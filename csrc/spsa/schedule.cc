// SPDX-License-Identifier: Apache-2.0
#include "spsa/schedule.h"

#include <cmath>

#include "base/error.h"

namespace lowtide::spsa {

Steps resolve(const Schedule& s) {
  require(s.steps >= 0 && s.directions >= 0, "schedule: sizes must be >= 0");
  require(s.first[0] == 0 && s.first[s.steps] == s.directions,
          "schedule: first must begin with 0 and end with the number of directions");
  Steps out;
  for (int64_t k = 0; k < s.steps; ++k) {
    require(s.first[k] <= s.first[k + 1], "schedule: first must not descend");
    require(std::isfinite(s.decays[k]), "schedule: decays must be finite");
    require(s.round_steps[k] >= 0, "schedule: round_steps must be >= 0");
    if (s.first[k] == s.first[k + 1] && s.decays[k] == 1.0f) continue;
    out.steps.push_back({random::derive_key(s.seed, static_cast<uint64_t>(s.round_steps[k]), 0),
                         s.decays[k], s.first[k], s.first[k + 1]});
  }
  for (int64_t j = 0; j < s.directions; ++j) {
    require(s.dir_steps[j] >= 0, "schedule: dir_steps must be >= 0");
    require(s.dir_slots[j] >= 0 && s.dir_slots[j] <= INT64_C(0xffffffff),
            "schedule: dir_slots must be in [0, 2**32)");
    require(std::isfinite(s.coeffs[j]), "schedule: coeffs must be finite");
    out.directions.push_back({random::derive_key(s.seed, static_cast<uint64_t>(s.dir_steps[j]),
                                                 static_cast<uint32_t>(s.dir_slots[j])),
                              s.coeffs[j]});
  }
  return out;
}

}  // namespace lowtide::spsa
