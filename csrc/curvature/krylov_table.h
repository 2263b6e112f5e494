// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of krylov. Internal to csrc/curvature. Work is a range of columns
// that starts a tile.
#pragma once
#include "base/isa.h"
#include "curvature/krylov.h"

namespace lowtide::curvature {

struct KrylovTable {
  // c[i] += the sums of the tiles of [begin, end), in order.
  void (*dots)(double* c, const Basis& q, const float* w, int64_t begin, int64_t end);
  // w -= Q' c in [begin, end).
  void (*subtract)(float* w, const Basis& q, const float* c, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(KrylovTable, krylov);

}  // namespace lowtide::curvature
