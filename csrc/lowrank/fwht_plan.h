// SPDX-License-Identifier: Apache-2.0
// What every target of fwht.h shares: the spans of a line, and the butterfly.
#pragma once
#include "base/hd.h"

namespace lowtide::lowrank {

struct FwhtPlan {
  int64_t n = 0;  // values of a line
  int64_t h = 0;  // values of a span
  int spans = 0;
};

LT_HD FwhtPlan fwht_plan(int64_t n) {
  FwhtPlan p;
  p.n = n;
  p.h = 1;
  while (2 * p.h <= n) p.h *= 2;
  p.spans = p.h == n ? 1 : 2;
  return p;
}

// Where span s begins.
LT_HD int64_t fwht_start(const FwhtPlan& p, int s) { return s == 0 ? 0 : p.n - p.h; }

// Stages run with strides 1, 2, 4 .. h / 2.
template <class V>
LT_HD void fwht_butterfly(V& a, V& b) {
  const V sum = a + b;
  b = a - b;
  a = sum;
}

}  // namespace lowtide::lowrank
