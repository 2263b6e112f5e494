// SPDX-License-Identifier: Apache-2.0
// The order of additions in ce_rows.h, shared by every target.
//
// A row is cut into blocks of kCeBlock columns. A block has its own maximum m and, over e =
// exp(z - m), 32 float lanes a sum (column j goes to lane j % 32), folded by a tree. Blocks are
// joined in order, in double, scaled to the larger maximum: any number of threads can work on
// blocks at once, and no sum of floats has more than 32 terms and a tree of 5.
#pragma once
#include "base/exp.h"

namespace lowtide::curvature {

constexpr int kCeLanes = 32;
constexpr int64_t kCeBlock = 1024;

LT_HD float ce_infinity() { return bits_float(0x7f800000u); }
LT_HD float ce_nan() { return bits_float(0x7fc00000u); }
LT_HD bool ce_finite(double x) { return x - x == 0.0; }
// What a block's or a row's maximum is subtracted as: with nothing but -inf, exp must give 0.
LT_HD float ce_base(float m) { return m == -ce_infinity() ? 0.0f : m; }

LT_HD float ce_fold(float* lanes) {
  for (int w = kCeLanes / 2; w >= 1; w /= 2)
    for (int i = 0; i < w; ++i) lanes[i] = lanes[i] + lanes[i + w];
  return lanes[0];
}

// Sums over e of a block or of a row so far: e, and two more (e u and e q; e e).
struct CeBlock {
  float m, s, t1, t2;
};
struct CeRow {
  float m;
  double s, t1, t2;
};

LT_HD CeRow ce_start() { return {-ce_infinity(), 0.0, 0.0, 0.0}; }

// `square`: t2 is a sum of e e.
LT_HD void ce_join(CeRow& row, const CeBlock& b, bool square) {
  if (row.m == -ce_infinity() && row.s == 0.0) {  // the first block that has any class
    row = {b.m, b.s, b.t1, b.t2};
    return;
  }
  const float m = b.m > row.m ? b.m : row.m, base = ce_base(m);
  const double was = exp_nonpositive(row.m - base), is = exp_nonpositive(b.m - base);
  row.m = m;
  row.s = row.s * was + static_cast<double>(b.s) * is;
  row.t1 = row.t1 * was + static_cast<double>(b.t1) * is;
  row.t2 = square ? row.t2 * (was * was) + static_cast<double>(b.t2) * (is * is)
                  : row.t2 * was + static_cast<double>(b.t2) * is;
}

// What a row's elements are computed with: p r = e * scale.
struct CeScale {
  float base, scale, mean1, mean2, inverse;
  bool valid;
};

// Divisions are of floats: nvcc's routine for doubles spills registers.
LT_HD CeScale ce_scale(const CeRow& row, float r) {
  const float inverse = div_rn(1.0f, static_cast<float>(row.s));
  const double scale = static_cast<double>(r) * inverse;
  const double mean1 = row.t1 * inverse, mean2 = row.t2 * inverse;
  return {ce_base(row.m),
          static_cast<float>(scale),
          static_cast<float>(mean1),
          static_cast<float>(mean2),
          inverse,
          ce_finite(scale) && ce_finite(mean1) && ce_finite(mean2)};
}

LT_HD float ce_trace_of(const CeRow& row, float r) {
  const double square = row.s * row.s, rest = square - row.t2;
  const float left =
      div_rn(static_cast<float>(rest > 0.0 ? rest : 0.0), static_cast<float>(square));
  const double trace = static_cast<double>(r) * left;
  return ce_finite(rest) && ce_finite(trace) ? static_cast<float>(trace) : ce_nan();
}

}  // namespace lowtide::curvature
