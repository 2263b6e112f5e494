// SPDX-License-Identifier: Apache-2.0
// The scalar definition: one element at a time through all steps, kept for ever as the oracle.
#include "spsa/replay_table.h"

namespace lowtide::spsa {
namespace {

float replay_element(float w, const ReplayTensor& t, const ReplayJob& job, uint64_t e) {
  for (int64_t k = 0; k < job.count; ++k) {
    const Step& step = job.steps[k];
    float acc = 0.0f;
    for (int64_t j = step.begin; j < step.end; ++j) {
      const Direction& d = job.directions[j];
      const float z = random::sample_at(job.dist, e, d.key, t.param, random::kRoleZ);
      acc = fma_rn(d.coeff * t.scale, z, acc);
    }
    const uint32_t r16 = random::sr16(e, step.round, t.param, random::kRoleWeightSr);
    w = rounded_master(stepped(w, acc, step.decay, t.threshold, t.floor), t.type, r16);
  }
  return w;
}

void chunks_ref(const ReplayTensor& t, const ReplayJob& job, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    const ChunkSpan span = chunk_span(t.n, t.offset, c);
    for (int64_t at = span.lo; at < span.hi; ++at) {
      const int64_t i = span.start + at - t.offset;
      const float w = load_master(t.w, t.type, i);
      store_master(t.w, t.type, i,
                   replay_element(w, t, job, static_cast<uint64_t>(span.start + at)));
    }
  }
}

}  // namespace

const ReplayTable replay_scalar = {chunks_ref};

}  // namespace lowtide::spsa
