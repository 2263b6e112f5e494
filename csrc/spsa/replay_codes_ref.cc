// SPDX-License-Identifier: Apache-2.0
// The scalar definition: one code at a time through all steps, kept for ever as the oracle.
#include "quant/requant_scalar.h"
#include "spsa/replay_codes_table.h"

namespace lowtide::spsa {
namespace {

using quant::Scheme;

int replay_code(int code, int zero, float inv, int lo, int hi, const CodesTensor& t,
                const CodesJob& job, uint64_t e) {
  for (int64_t k = 0; k < job.count; ++k) {
    const Step& step = job.steps[k];
    float acc = 0.0f;
    for (int64_t j = step.begin; j < step.end; ++j) {
      const Direction& d = job.directions[j];
      const float z = random::sample_at(job.dist, e, d.key, t.param, random::kRoleZ);
      acc = fma_rn(d.coeff * t.scale, z, acc);
    }
    const uint32_t word = random::stream_word(e, step.round, t.param, random::kRoleWeightSr);
    const float steps = code_steps(code - zero, step.decay - 1.0f, acc, inv);
    code = quant::clamp_i(code + round_code(steps, word), lo, hi);
  }
  return code;
}

void segments_ref(const CodesTensor& t, const CodesJob& job, int64_t begin, int64_t end) {
  const quant::GroupShape& s = t.w.shape;
  const int64_t per_row = segments_per_row(s);
  const int lo = quant::min_code(t.w.zero == nullptr ? Scheme::symmetric : Scheme::asymmetric);
  const int hi = quant::max_code(s.bits);
  for (int64_t g = begin; g < end; ++g) {
    const int64_t row = g / per_row, first = g % per_row * kSegment;
    const int64_t stop = first + kSegment < s.cols ? first + kSegment : s.cols;
    uint8_t* codes = t.w.codes + row * quant::row_bytes(s);
    for (int64_t col = first; col < stop; ++col) {
      const int64_t group = row * quant::groups_per_row(s) + col / s.group;
      const int zero = t.w.zero != nullptr ? t.w.zero[group] : quant::symmetric_zero(s.bits);
      const auto e = static_cast<uint64_t>(t.offset + row * s.cols + col);
      quant::replace_code(codes, col, s.bits,
                          replay_code(quant::get_code(codes, col, s.bits), zero,
                                      quant::inverse_scale(t.w.scale[group]), lo, hi, t, job, e));
    }
  }
}

}  // namespace

const ReplayCodesTable replay_codes_scalar = {segments_ref};

}  // namespace lowtide::spsa
