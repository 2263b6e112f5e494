// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the probes. Internal to csrc/curvature.
#pragma once
#include "base/isa.h"
#include "curvature/probe.h"
#include "random/philox.h"

namespace lowtide::curvature {

// Elements [begin, end) of one tensor; begin is a multiple of kReduceBlock.
struct ProbeTable {
  // end - begin <= kReduceBlock
  double (*dot)(const SignedInput& t, random::Key key, int64_t begin, int64_t end);
  void (*axpy)(const SignedTarget& t, float scale, random::Key key, int64_t begin, int64_t end);
  void (*fill)(const SignedTarget& t, float scale, random::Key key, int64_t begin, int64_t end);
  void (*fma)(const SignedPair& t, const Join& join, random::Key key, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(ProbeTable, probe);

}  // namespace lowtide::curvature
