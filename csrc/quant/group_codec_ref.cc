// SPDX-License-Identifier: Apache-2.0
// The scalar definition: one element at a time, obviously right, kept for ever as the oracle.
#include "quant/group_codec_scalar.h"
#include "quant/group_codec_table.h"

namespace lowtide::quant {
namespace {

int64_t quantize_ref(const QuantizeJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.out.shape;
  int64_t bad = 0;
  for (int64_t g = begin; g < end; ++g) {
    const GroupSpan at = group_span(s, g);
    const int64_t first = at.row * s.cols + at.col;
    float mn = 0, mx = 0;
    bool any = false;
    for (int64_t i = 0; i < at.n; ++i) {
      const float raw = load_element(job.x, job.type, first + i);
      bad += !is_finite(raw);
      const float x = is_finite(raw) ? raw : 0.0f;
      mn = any && mn <= x ? mn : x;
      mx = any && mx >= x ? mx : x;
      any = true;
    }
    const GroupParams p = group_params(mn, mx, s.bits, job.scheme, job.range, job.bf16_scale);
    job.out.scale[g] = p.scale;
    if (job.out.zero != nullptr) job.out.zero[g] = static_cast<uint8_t>(p.zero);
    uint8_t* row = job.out.codes + at.row * row_bytes(s);
    for (int64_t i = 0; i < at.n; ++i) {
      const float raw = load_element(job.x, job.type, first + i);
      const float steps = steps_of(is_finite(raw) ? raw : 0.0f, p, job.range == Range::compat);
      const int q = job.stochastic
                        ? round_stochastic(steps, random::sr16(job.offset + first + i, job.key,
                                                               job.param, job.role))
                        : round_nearest(steps);
      put_code(row, at.col + i, s.bits,
               clamp_i(q + p.zero, min_code(job.scheme), max_code(s.bits)));
    }
  }
  return bad;
}

void dequantize_ref(const DequantizeJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.in.shape;
  for (int64_t g = begin; g < end; ++g) {
    const GroupSpan at = group_span(s, g);
    const uint8_t* row = job.in.codes + at.row * row_bytes(s);
    const int zero = job.in.zero != nullptr ? job.in.zero[g] : symmetric_zero(s.bits);
    for (int64_t i = 0; i < at.n; ++i) {
      const float x = decode(get_code(row, at.col + i, s.bits), zero, job.in.scale[g]);
      const int64_t e = at.row * s.cols + at.col + i;
      store_element(job.out, job.type, e, x);
    }
  }
}

int64_t count_nonfinite_ref(const void* x, FloatType type, int64_t begin, int64_t end) {
  int64_t bad = 0;
  for (int64_t i = begin; i < end; ++i) bad += !is_finite(load_element(x, type, i));
  return bad;
}

}  // namespace

const GroupCodecTable group_codec_scalar = {quantize_ref, dequantize_ref, count_nonfinite_ref};

}  // namespace lowtide::quant
