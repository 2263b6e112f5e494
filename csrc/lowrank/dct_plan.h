// SPDX-License-Identifier: Apache-2.0
// How a DCT of n points is computed, and the table of its constants.
//
// The n values of a line, reordered (Makhoul 1980), are taken as m complex ones: pairs where n is
// even, the real parts where it is odd. A Stockham FFT of m points in stages of radix 8, 4, 2, 3, 5
// or any other prime, then one rotation a coefficient. The inverse runs the same FFT with real and
// imaginary parts exchanged.
//
// Table, in floats: the twiddles of each stage, m_stage x (radix - 1) pairs (cos, sin); behind the
// stages of a prime above 5 its roots of unity, radix pairs; for even n the pairs of angle
// 2 pi k / n, k = 0 .. m/2; the pairs of angle pi k / (2n), divided by sqrt(2n), k = 0 .. m (n - 1
// for odd n). The pair k = 0 of the last part is (1 / sqrt(n), 0).
#pragma once
#include "base/hd.h"

namespace lowtide::lowrank {

constexpr int kDctStages = 32;

struct DctPlan {
  int64_t n = 0;  // values of a line
  int64_t m = 0;  // points of the FFT
  int stages = 0;
  int radix[kDctStages] = {};
  int64_t table = 0;   // floats in the table
  int64_t unpack = 0;  // where the pairs of angle 2 pi k / n begin
  int64_t rotate = 0;  // where the last part begins
};

LT_HD bool dct_even(const DctPlan& p) { return p.n % 2 == 0; }

// Values of a buffer that holds a line in any of its forms.
LT_HD int64_t dct_room(const DctPlan& p) { return 2 * p.m; }

LT_HD bool dct_has_roots(int radix) { return radix > 5 && radix != 8; }

// Floats of a stage: radix p, `left` points a transform before it.
LT_HD int64_t dct_stage_floats(int p, int64_t left) {
  return 2 * (left / p) * (p - 1) + (dct_has_roots(p) ? 2 * p : 0);
}

inline DctPlan dct_plan(int64_t n) {
  DctPlan p;
  p.n = n;
  p.m = n % 2 == 0 ? n / 2 : n;
  int64_t left = p.m;
  const auto take = [&](int64_t radix) {
    while (left % radix == 0 && left > 1) {
      p.radix[p.stages++] = static_cast<int>(radix);
      p.table += dct_stage_floats(static_cast<int>(radix), left);
      left /= radix;
    }
  };
  take(8), take(4), take(2), take(3), take(5);
  for (int64_t f = 7; f * f <= left; f += 2) take(f);
  if (left > 1) take(left);
  p.unpack = p.table;
  if (n % 2 == 0) p.table += 2 * (p.m / 2 + 1);
  p.rotate = p.table;
  p.table += 2 * (n % 2 == 0 ? p.m + 1 : p.m);
  return p;
}

// Where value c of a line goes: even indices ascending, odd ones descending. For even n the values
// are the interleaved parts of m complex numbers; for odd n they are real parts.
LT_HD int64_t dct_slot(const DctPlan& p, int64_t c) {
  const int64_t i = c % 2 == 0 ? c / 2 : p.n - 1 - c / 2;
  return dct_even(p) ? i : 2 * i;
}
// Where the inverse finds it: real and imaginary parts are exchanged.
LT_HD int64_t dct_slot_back(const DctPlan& p, int64_t c) { return dct_slot(p, c) ^ 1; }

}  // namespace lowtide::lowrank
