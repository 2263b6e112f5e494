// SPDX-License-Identifier: Apache-2.0
// The scalar definition, line by line.
#include "lowrank/dct_scalar.h"
#include "lowrank/dct_table.h"

namespace lowtide::lowrank {
namespace {

// Element c of line l.
int64_t position(const DctMatrix& m, int64_t l, int64_t c) {
  return m.lines == Lines::rows ? l * m.cols + c : c * m.cols + l;
}
int64_t low_position(const DctJob& job, int64_t l, int64_t j) {
  return job.in.lines == Lines::rows ? l * job.count + j : j * job.in.cols + l;
}

float element(const DctMatrix& m, int64_t i) {
  return m.type == quant::FloatType::f32 ? static_cast<const float*>(m.x)[i]
                                         : bf16_to_float(static_cast<const uint16_t*>(m.x)[i]);
}

// The FFT of x; the result is in x or y, and the other one is free.
float* transform(const DctJob& job, float* x, float* y) {
  const float* twiddles = job.table;
  int64_t left = job.plan.m, stride = 1;
  for (int s = 0; s < job.plan.stages; ++s) {
    const int p = job.plan.radix[s];
    const int64_t groups = left / p;
    for (int64_t j = 0; j < groups; ++j)
      for (int64_t q = 0; q < stride; ++q) dct_butterfly(p, x, y, groups, stride, j, q, twiddles);
    twiddles += dct_stage_floats(p, left);
    left = groups, stride *= p;
    float* const other = x;
    x = y, y = other;
  }
  return x;
}

// Coefficients of line l; returns where they are.
const float* coefficients(const DctJob& job, int64_t l, float* work) {
  const DctPlan& p = job.plan;
  float* const other = work + dct_room(p);
  if (!dct_even(p))
    for (int64_t i = 0; i < 2 * p.m; ++i) work[i] = 0.0f;
  for (int64_t c = 0; c < p.n; ++c) work[dct_slot(p, c)] = element(job.in, position(job.in, l, c));
  float* const z = transform(job, work, other);
  float* const s = z == work ? other : work;
  for (int64_t k = 0; k < dct_pairs(p); ++k) dct_coefficients(p, job.table, z, s, k);
  return s;
}

void forward_ref(const DctJob& job, int64_t begin, int64_t end, float* work) {
  const int64_t lines = dct_lines(job.in);
  for (int64_t l = begin * kDctLanes; l < end * kDctLanes && l < lines; ++l) {
    const float* s = coefficients(job, l, work);
    for (int64_t j = 0; j < job.count; ++j)
      job.out[low_position(job, l, j)] = s[job.index != nullptr ? job.index[j] : j];
  }
}

void inverse_ref(const DctJob& job, int64_t begin, int64_t end, float* work) {
  const DctPlan& p = job.plan;
  float* const other = work + dct_room(p);
  const int64_t lines = dct_lines(job.in);
  for (int64_t l = begin * kDctLanes; l < end * kDctLanes && l < lines; ++l) {
    for (int64_t k = 0; k < p.n; ++k) work[k] = 0.0f;
    for (int64_t j = 0; j < job.count; ++j)
      work[job.index != nullptr ? job.index[j] : j] = element(job.in, low_position(job, l, j));
    for (int64_t k = 0; k < dct_pairs(p); ++k) dct_points(p, job.table, work, other, k);
    const float* x = transform(job, other, work);
    for (int64_t c = 0; c < p.n; ++c) job.out[position(job.in, l, c)] = x[dct_slot_back(p, c)];
  }
}

void power_ref(const DctJob& job, int64_t block, float* work) {
  const int64_t n = job.plan.n, lines = dct_lines(job.in);
  float* const sums = work + dct_work(job.plan) - kDctTogether * n;
  for (int64_t i = 0; i < kDctLanes * n; ++i) sums[i] = 0.0f;
  const int64_t first = block * kDctPowerLines;
  for (int64_t l = first; l < first + kDctPowerLines && l < lines; ++l) {
    const float* s = coefficients(job, l, work);
    for (int64_t k = 0; k < n; ++k) {
      float& sum = sums[kDctLanes * k + l % kDctLanes];
      sum = sum + (job.power == Power::square ? s[k] * s[k] : abs_f(s[k]));
    }
  }
  for (int64_t k = 0; k < n; ++k) job.out[block * n + k] = dct_fold(sums + kDctLanes * k);
}

}  // namespace

const DctTable dct_scalar = {forward_ref, inverse_ref, power_ref};

}  // namespace lowtide::lowrank
