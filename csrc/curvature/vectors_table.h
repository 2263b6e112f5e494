// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the vector algebra. Internal to csrc/curvature.
#pragma once
#include "base/isa.h"
#include "curvature/vectors.h"

namespace lowtide::curvature {

// Elements [begin, end); begin is a multiple of kReduceBlock.
struct VectorsTable {
  // end - begin <= kReduceBlock in dot and fd_finish
  double (*dot)(const DotPair& t, int64_t begin, int64_t end);
  void (*axpby)(const AxpbyPair& t, float a, float b, int64_t begin, int64_t end);
  void (*fd_finish)(double* out, const Difference& d, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(VectorsTable, vectors);

}  // namespace lowtide::curvature
