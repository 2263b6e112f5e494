// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of factored.h. Internal to csrc/optim.
#pragma once
#include "base/hd.h"
#include "base/isa.h"
#include "optim/factored.h"

namespace lowtide::optim {

constexpr int kRowLanes = 16;

LT_HD double fold_row(double* lane) {
  for (int w = kRowLanes / 2; w >= 1; w /= 2)
    for (int i = 0; i < w; ++i) lane[i] = lane[i] + lane[i + w];
  return lane[0];
}

// The larger of two numbers would hide a NaN: what is not below the cap is the cap, but for NaN.
LT_HD float capped(float x, float cap) { return x > cap ? cap : x; }

struct FactoredTable {
  // All: rows [begin, end) of whole matrices.
  // row[i] = sum of squares; col[k] += squares in order of rows, unless col is null.
  void (*squares)(double* row, double* col, const RowMatrix& g, int64_t begin, int64_t end);
  void (*dots)(double* out, const RowMatrix& x, const RowMatrix& y, int64_t begin, int64_t end);
  // u = g * min(r[i] c[k], cap), c null: 1. Returns the sum of u^2, rows in order.
  double (*scale)(float* u, const RowMatrix& g, const float* r, const float* c, float cap,
                  int64_t begin, int64_t end);
  void (*shear)(float* u, const float* c, const RowMatrix& w, int64_t begin, int64_t end);
  void (*multiply)(float* u, const float* c, int64_t cols, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(FactoredTable, factored);

}  // namespace lowtide::optim
