// SPDX-License-Identifier: Apache-2.0
// The scalar definition, one element at a time.
#include "spsa/perturb_scalar.h"
#include "spsa/perturb_table.h"

namespace lowtide::spsa {
namespace {

void perturb_ref(const Perturbation& t, random::Key key, random::Dist dist, int64_t begin,
                 int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float w = element_at(t.w, t.w_type, i);
    const float z =
        random::sample_at(dist, static_cast<uint64_t>(t.offset + i), key, t.param, random::kRoleZ);
    const bool still = beyond(w, t.threshold);
    put_element(t.out, t.out_type, i, still ? w : perturbed(w, t.scale, z));
    if (t.minus != nullptr)
      put_element(t.minus, t.out_type, i, still ? w : perturbed(w, -t.scale, z));
  }
}

}  // namespace

const PerturbTable perturb_scalar = {perturb_ref};

}  // namespace lowtide::spsa
