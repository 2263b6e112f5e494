// SPDX-License-Identifier: Apache-2.0
#include "lowrank/procrustes.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "lowrank/orthonormal.h"
#include "lowrank/small_dense.h"
#include "quant/matmul.h"

namespace lowtide::lowrank {
namespace {

using quant::dense;
using quant::matmul;
using quant::Operand;

// Sums of squares in float are cut here: longer chains would be 1e-6 off.
constexpr int64_t kShortChain = 512;

// fix (r x r) such that the rows of fix y are orthonormal, if those of y nearly are: with
// y y' = I + E, I - E / 2 leaves only squares of E. False otherwise.
bool nearly_orthonormal(Floats& fix, const Floats& y, int64_t r, int64_t d) {
  fix.assign(static_cast<size_t>(r * r), 0.0f);
  Floats part(fix.size());
  for (int64_t k = 0; k < d; k += kShortChain) {
    Operand rows = dense(y.data() + k, r, std::min(kShortChain, d - k));
    rows.stride = d;
    matmul(part.data(), rows, false, rows, true);
    for (size_t i = 0; i < fix.size(); ++i) fix[i] += part[i];
  }
  for (int64_t i = 0; i < r; ++i) fix[static_cast<size_t>(i * r + i)] -= 1;
  if (!(bits_float(static_cast<uint32_t>(largest_bits(fix.data(), r * r))) <
        1e-3f / std::sqrt(static_cast<float>(r))))
    return false;
  for (int64_t i = 0; i < r; ++i) {
    float* row = fix.data() + i * r;
    for (int64_t j = 0; j < r; ++j) row[j] *= -0.5f;
    row[i] += 1;
  }
  return true;
}

}  // namespace

bool polish(Floats& y, int64_t rows, int64_t depth) {
  Floats fix;
  if (!nearly_orthonormal(fix, y, rows, depth)) return false;
  Floats fixed(y.size());
  matmul(fixed.data(), dense(fix.data(), rows, rows), false, dense(y.data(), rows, depth), false);
  y.swap(fixed);
  return true;
}

// Odd polynomials in w: first the quintic of Jordan et al. (Muon, 2024), which multiplies small
// singular values by 3.4 and takes all of them near 1, then Newton-Schulz, which converges
// quadratically.
bool polar(Floats& w, int64_t r) {
  Floats p(w.size()), pw(w.size()), ppw(w.size()), diagonal(static_cast<size_t>(r));
  const Operand wo = dense(w.data(), r, r), po = dense(p.data(), r, r),
                pwo = dense(pw.data(), r, r);
  // Above 1.25 the quintic diverges. Row sums of w w' bound the squares of the singular values.
  matmul(p.data(), wo, false, wo, true);
  float bound = 0;
  for (int64_t i = 0; i < r; ++i) {
    float sum = 0;
    for (int64_t j = 0; j < r; ++j) sum += std::fabs(p[static_cast<size_t>(i * r + j)]);
    bound = std::max(bound, sum);
  }
  if (bound > 1.4f)
    for (float& v : w) v *= 1.0f / std::sqrt(bound);
  for (int step = 0; step < 40; ++step) {
    matmul(p.data(), wo, false, wo, true);
    for (int64_t i = 0; i < r; ++i) {
      float& v = p[static_cast<size_t>(i * r + i)];
      diagonal[static_cast<size_t>(i)] = v;
      v -= 1;
    }
    const float off = bits_float(static_cast<uint32_t>(largest_bits(p.data(), r * r)));
    for (int64_t i = 0; i < r; ++i)
      p[static_cast<size_t>(i * r + i)] = diagonal[static_cast<size_t>(i)];
    if (!(off < 1e3f)) return false;
    matmul(pw.data(), po, false, wo, false);
    if (off > 0.7f && step < 12) {
      matmul(ppw.data(), po, false, pwo, false);
      for (size_t i = 0; i < w.size(); ++i)
        w[i] = 3.4445f * w[i] - 4.775f * pw[i] + 2.0315f * ppw[i];
      continue;
    }
    for (size_t i = 0; i < w.size(); ++i) w[i] = 1.5f * w[i] - 0.5f * pw[i];
    if (off < 3e-4f) return true;
  }
  return false;
}

void align(Floats& y, int64_t r, int64_t d, const float* prev) {
  Floats fix;  // fix y has orthonormal rows
  if (!nearly_orthonormal(fix, y, r, d)) {
    std::vector<double> g(static_cast<size_t>(r * r)), inverse(g.size());
    gram(g.data(), y.data(), r, d);
    if (!cholesky_inverse(g.data(), r, inverse.data())) {
      orthonormalize_householder(y.data(), r, d);
      std::fill(inverse.begin(), inverse.end(), 0.0);
      for (int64_t i = 0; i < r; ++i) inverse[static_cast<size_t>(i * r + i)] = 1.0;
    }
    for (size_t i = 0; i < fix.size(); ++i) fix[i] = static_cast<float>(inverse[i]);
  }
  // w = prev (fix y)'; the result is polar(w) fix y.
  Floats t(fix.size()), w(fix.size()), q(y.size());
  matmul(t.data(), dense(prev, r, d), false, dense(y.data(), r, d), true);
  matmul(w.data(), dense(t.data(), r, r), false, dense(fix.data(), r, r), true);
  const bool aligned = polar(w, r);
  if (aligned) matmul(t.data(), dense(w.data(), r, r), false, dense(fix.data(), r, r), false);
  matmul(q.data(), dense((aligned ? t : fix).data(), r, r), false, dense(y.data(), r, d), false);
  y.swap(q);
}

}  // namespace lowtide::lowrank
