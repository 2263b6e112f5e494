// SPDX-License-Identifier: Apache-2.0
// The scalar definition: one element at a time, kept for ever as the oracle.
#include "spsa/low_rank_table.h"

namespace lowtide::spsa {
namespace {

void perturb_ref(const LowRankPerturb& p, int64_t begin, int64_t end) {
  const LowRankMatrix& m = p.m;
  for (int64_t i = begin; i < end; ++i)
    for (int64_t j = 0; j < m.cols; ++j) {
      const float z = low_rank_z(p.f.u + i * m.rank, p.f.vt + j, m.rank, m.cols, p.norm);
      const int64_t at = i * m.cols + j;
      store_master(p.out, p.out_type, at, load_master(p.w, p.w_type, at) + p.scale * z);
    }
}

void replay_ref(const LowRankReplay& p, int64_t begin, int64_t end) {
  const LowRankMatrix& m = p.m;
  for (int64_t i = begin; i < end; ++i)
    for (int64_t j = 0; j < m.cols; ++j) {
      const int64_t at = i * m.cols + j;
      const auto e = static_cast<uint64_t>(m.first_row * m.cols + at);
      float w = load_master(p.w, p.type, at);
      for (int64_t k = 0; k < p.count; ++k) {
        const Step& step = p.steps[k];
        float acc = 0.0f;
        for (int64_t d = step.begin; d < step.end; ++d) {
          const float z = low_rank_z(p.f.u + (d * m.rows + i) * m.rank,
                                     p.f.vt + d * m.rank * m.cols + j, m.rank, m.cols, p.norm);
          acc = fma_rn(p.directions[d].coeff * p.scale, z, acc);
        }
        const uint32_t r16 = random::sr16(e, step.round, m.param, random::kRoleWeightSr);
        w = rounded_master(w * step.decay + acc, p.type, r16);
      }
      store_master(p.w, p.type, at, w);
    }
}

}  // namespace

const LowRankTable low_rank_scalar = {perturb_ref, replay_ref};

}  // namespace lowtide::spsa
