// SPDX-License-Identifier: Apache-2.0
#include "curvature/ce_rows_order.h"
#include "curvature/ce_rows_table.h"

namespace lowtide::curvature {
namespace {

enum class Sums { one, u, uq, square, cumulant };

// The sums of columns [first, last) of a row; `means` for the cumulant's.
CeBlock block(Sums sums, const float* z, const float* u, const float* q, const CeScale* means,
              int64_t first, int64_t last) {
  float m = -ce_infinity();
  for (int64_t j = first; j < last; ++j) m = z[j] > m ? z[j] : m;
  float s[kCeLanes] = {}, t1[kCeLanes] = {}, t2[kCeLanes] = {};
  for (int64_t j = first; j < last; ++j) {
    const float e = exp_nonpositive(z[j] - ce_base(m));
    const int64_t lane = (j - first) % kCeLanes;
    s[lane] = s[lane] + e;
    if (sums == Sums::u || sums == Sums::uq) t1[lane] = t1[lane] + e * u[j];
    if (sums == Sums::uq) t2[lane] = t2[lane] + e * q[j];
    if (sums == Sums::square) t2[lane] = t2[lane] + e * e;
    if (sums == Sums::cumulant)
      t1[lane] = t1[lane] + e * ((u[j] - means->mean1) * (q[j] - means->mean2));
  }
  return {m, ce_fold(s), ce_fold(t1), ce_fold(t2)};
}

CeRow statistics(Sums sums, const CeRows& a, int64_t row, const CeScale* means = nullptr) {
  const float* z = a.z + row * a.cols;
  const float* u = a.u == nullptr ? nullptr : a.u + row * a.cols;
  const float* q = a.q == nullptr ? nullptr : a.q + row * a.cols;
  CeRow total = ce_start();
  for (int64_t first = 0; first < a.cols; first += kCeBlock) {
    const int64_t last = first + kCeBlock < a.cols ? first + kCeBlock : a.cols;
    ce_join(total, block(sums, z, u, q, means, first, last), sums == Sums::square);
  }
  return total;
}

// y of the row = of(column, e)
template <class F>
void write(float* y, const CeRows& a, int64_t row, const CeScale& c, const F& of) {
  for (int64_t j = 0; j < a.cols; ++j) {
    const int64_t i = row * a.cols + j;
    y[i] = c.valid ? of(i, exp_nonpositive(a.z[i] - c.base)) : ce_nan();
  }
}

void product_ref(float* y, const CeRows& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const CeScale c = ce_scale(statistics(Sums::u, a, row), a.r[row]);
    write(y, a, row, c, [&](int64_t i, float e) { return (e * c.scale) * (a.u[i] - c.mean1); });
  }
}

void cumulant_ref(float* y, const CeRows& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    CeScale c = ce_scale(statistics(Sums::uq, a, row), a.r[row]);
    const CeScale joint = ce_scale(statistics(Sums::cumulant, a, row, &c), a.r[row]);
    c.valid = c.valid && joint.valid;
    write(y, a, row, c, [&](int64_t i, float e) {
      return (e * c.scale) * ((a.u[i] - c.mean1) * (a.q[i] - c.mean2) - joint.mean1);
    });
  }
}

void diagonal_ref(float* y, const CeRows& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const CeScale c = ce_scale(statistics(Sums::one, a, row), a.r[row]);
    write(y, a, row, c, [&](int64_t, float e) { return (e * c.scale) * (1.0f - e * c.inverse); });
  }
}

void weighted_ref(float* y, const CeRows& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const CeScale c = ce_scale(statistics(Sums::one, a, row), a.r[row]);
    write(y, a, row, c, [&](int64_t, float e) { return e * c.scale; });
  }
}

void trace_ref(float* y, const CeRows& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    y[row] = a.cols == 0 ? 0.0f : ce_trace_of(statistics(Sums::square, a, row), a.r[row]);
}

}  // namespace

const CeTable ce_rows_scalar = {product_ref, cumulant_ref, diagonal_ref, weighted_ref, trace_ref};

}  // namespace lowtide::curvature
