// SPDX-License-Identifier: Apache-2.0
// The scalar definition: one element at a time, obviously right, kept for ever as the oracle.
#include "quant/requant_table.h"

namespace lowtide::quant {
namespace {

int64_t add_sr_ref(const RequantJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.w.shape;
  const int lo = min_code(job.scheme), hi = max_code(s.bits);
  int64_t skipped = 0;
  for (int64_t g = begin; g < end; ++g) {
    const GroupSpan at = group_span(s, g);
    const int64_t first = at.row * s.cols + at.col;
    uint8_t* row = job.w.codes + at.row * row_bytes(s);
    const float* delta = job.delta + first;
    const float scale = job.w.scale[g];
    const int zero = job.w.zero != nullptr ? job.w.zero[g] : symmetric_zero(s.bits);
    auto value = [&](int64_t i) {
      return requant_value(get_code(row, at.col + i, s.bits) - zero, scale, delta[i], job.scalars);
    };
    auto noise = [&](int64_t i) {
      return random::sr16(job.offset + static_cast<uint64_t>(first + i), job.key, job.param,
                          job.role);
    };

    float mn = 0, mx = 0;
    bool finite = true, moved = job.scalars.decay != 1.0f;
    for (int64_t i = 0; i < at.n; ++i) {
      const float w = value(i);
      finite = finite && is_finite(w);
      moved = moved || job.scalars.alpha * delta[i] != 0.0f;
      mn = w < mn ? w : mn;
      mx = mx < w ? w : mx;
    }
    skipped += !finite;
    if (!finite || !moved) continue;

    if (fits_old_scale(mn, mx, scale, zero, s.bits, job.scheme)) {
      const float inv = inverse_scale(scale);
      for (int64_t i = 0; i < at.n; ++i) {
        const int code = get_code(row, at.col + i, s.bits);
        replace_code(row, at.col + i, s.bits,
                     requant_kept(code, zero, inv, delta[i], job.scalars, noise(i), lo, hi));
      }
    } else {
      const GroupParams p = headroom_params(mn, mx, s.bits, job.scheme);
      for (int64_t i = 0; i < at.n; ++i) {
        const int q = round_stochastic(value(i) * p.inv, noise(i));
        replace_code(row, at.col + i, s.bits, clamp_i(q + p.zero, lo, hi));
      }
      job.w.scale[g] = p.scale;
      if (job.w.zero != nullptr) job.w.zero[g] = static_cast<uint8_t>(p.zero);
    }
  }
  return skipped;
}

}  // namespace

const RequantTable requant_scalar = {add_sr_ref};

}  // namespace lowtide::quant
