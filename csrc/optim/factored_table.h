// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of factored.h. Internal to csrc/optim.
#pragma once
#include "base/isa.h"
#include "optim/factored.h"
#include "optim/factored_numerics.h"

namespace lowtide::optim {

struct FactoredTable {
  // All: rows [begin, end) of whole matrices.
  // row[i] = sum of squares; col[k] += squares in order of rows, unless col is null.
  void (*squares)(double* row, double* col, const RowMatrix& g, int64_t begin, int64_t end);
  void (*dots)(double* out, const RowMatrix& x, const RowMatrix& y, int64_t begin, int64_t end);
  // u = g * min(r[i] c[k], cap), c null: 1; sums[i] = the sum of u^2 over the row.
  void (*scale)(float* u, double* sums, const RowMatrix& g, const float* r, const float* c,
                float cap, int64_t begin, int64_t end);
  void (*shear)(float* u, const float* c, const RowMatrix& w, int64_t begin, int64_t end);
  void (*multiply)(float* u, const float* c, int64_t cols, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(FactoredTable, factored);

}  // namespace lowtide::optim
