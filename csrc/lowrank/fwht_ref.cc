// SPDX-License-Identifier: Apache-2.0
// The scalar definition, line by line.
#include "lowrank/fwht_table.h"

namespace lowtide::lowrank {
namespace {

// Element c of line l, of lines with `values` each.
int64_t position(const DctMatrix& m, int64_t l, int64_t c, int64_t values) {
  return m.lines == Lines::rows ? l * values + c : c * m.cols + l;
}

float element(const DctMatrix& m, int64_t i) {
  return m.type == quant::FloatType::f32 ? static_cast<const float*>(m.x)[i]
                                         : bf16_to_float(static_cast<const uint16_t*>(m.x)[i]);
}

void span(const FwhtPlan& p, int s, float* line) {
  float* const x = line + fwht_start(p, s);
  for (int64_t stride = 1; stride < p.h; stride *= 2)
    for (int64_t i = 0; i < p.h; i += 2 * stride)
      for (int64_t j = i; j < i + stride; ++j) fwht_butterfly(x[j], x[j + stride]);
}

void forward_ref(const FwhtJob& job, int64_t begin, int64_t end, float* work) {
  const FwhtPlan& p = job.plan;
  const int64_t lines = fwht_lines(job.in);
  for (int64_t l = begin * kFwhtLanes; l < end * kFwhtLanes && l < lines; ++l) {
    for (int64_t c = 0; c < p.n; ++c) work[c] = element(job.in, position(job.in, l, c, p.n));
    for (int s = 0; s < p.spans; ++s) {
      for (int64_t c = 0; c < p.n; ++c) work[c] = work[c] * job.factors[s * p.n + c];
      span(p, s, work);
    }
    for (int64_t j = 0; j < job.count; ++j)
      job.out[position(job.in, l, j, job.count)] = work[job.index != nullptr ? job.index[j] : j];
  }
}

void inverse_ref(const FwhtJob& job, int64_t begin, int64_t end, float* work) {
  const FwhtPlan& p = job.plan;
  const int64_t lines = fwht_lines(job.in);
  for (int64_t l = begin * kFwhtLanes; l < end * kFwhtLanes && l < lines; ++l) {
    for (int64_t c = 0; c < p.n; ++c) work[c] = 0.0f;
    for (int64_t j = 0; j < job.count; ++j)
      work[job.index != nullptr ? job.index[j] : j] =
          element(job.in, position(job.in, l, j, job.count));
    for (int s = p.spans - 1; s >= 0; --s) {
      span(p, s, work);
      for (int64_t c = 0; c < p.n; ++c) work[c] = work[c] * job.factors[s * p.n + c];
    }
    for (int64_t c = 0; c < p.n; ++c) job.out[position(job.in, l, c, p.n)] = work[c];
  }
}

}  // namespace

const FwhtTable fwht_scalar = {forward_ref, inverse_ref};

}  // namespace lowtide::lowrank
