// SPDX-License-Identifier: Apache-2.0
// The Hessian of cross entropy in the logits, row by row. With p = softmax(z) of a row and its
// factor r (sample weight over the sum of weights; 0 for rows that do not count):
//
//   product     r p (u - E[u])                    E[a] = sum_c p a
//   cumulant    r p (v w - E[v w])                v = u - E[u], w = q - E[q]
//   diagonal    r p (1 - p)
//   weighted    r p
//   trace       r (1 - sum_c p^2)                 one number a row
//
// z and u are read once for the statistics (running maximum, sum of e, sum of e u) and once more
// for the result, from a cache if a row fits there. The order of additions (ce_rows_order.h)
// depends on nothing but the number of columns.
//
// A logit of -inf has p = 0 exactly. A row with a NaN, with +inf, or with -inf only, becomes NaN,
// the quiet one without payload.
#pragma once
#include <cstdint>

#include "base/hd.h"

namespace lowtide::curvature {

struct CeRows {  // row-major, contiguous, rows x cols; u and q where the result needs them
  const float* z = nullptr;
  const float* r = nullptr;  // rows
  const float* u = nullptr;
  const float* q = nullptr;
  int64_t rows = 0, cols = 0;
};

// y: rows x cols; may be z, u or q itself, as all are read before an element is written. Throws
// lowtide::Error on negative sizes.
void ce_product(float* y, const CeRows& a);
void ce_cumulant(float* y, const CeRows& a);
void ce_diagonal(float* y, const CeRows& a);
void ce_weighted(float* y, const CeRows& a);
// y: rows.
void ce_trace(float* y, const CeRows& a);

}  // namespace lowtide::curvature
