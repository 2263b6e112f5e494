// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the perturbation. Internal to csrc/spsa.
#pragma once
#include "base/isa.h"
#include "spsa/perturb.h"

namespace lowtide::spsa {

struct PerturbTable {
  // Elements [begin, end) of one tensor.
  void (*perturb)(const Perturbation& t, random::Key key, random::Dist dist, int64_t begin,
                  int64_t end);
};

LT_DECLARE_TABLES(PerturbTable, perturb);

}  // namespace lowtide::spsa
