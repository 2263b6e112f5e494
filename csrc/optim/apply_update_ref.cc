// SPDX-License-Identifier: Apache-2.0
#include "optim/apply_update_table.h"

namespace lowtide::optim {
namespace {

void blocks_ref(const UpdateTensor& t, int64_t begin, int64_t end, const UpdateRule& rule,
                random::Key key) {
  const int64_t stop = end * kUpdateBlock < t.n ? end * kUpdateBlock : t.n;
  for (int64_t i = begin * kUpdateBlock; i < stop; ++i) {
    const float p = load_weight(t.p, t.weight_store, i);
    store_weight(t.p, t.weight_store, i, updated_weight(rule, p, t.u[i]), t.offset, key, t.param);
  }
}

}  // namespace

const UpdateTable apply_update_scalar = {blocks_ref};

}  // namespace lowtide::optim
