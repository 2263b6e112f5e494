// SPDX-License-Identifier: Apache-2.0
#include "optim/combine_table.h"

namespace lowtide::optim {
namespace {

void blocks_ref(const CombineMatrix& m, int64_t begin, int64_t end, const UpdateRule& rule,
                random::Key key) {
  const int64_t n = m.rows * m.cols;
  const int64_t stop = end * kUpdateBlock < n ? end * kUpdateBlock : n;
  for (int64_t i = begin * kUpdateBlock; i < stop; ++i) {
    const int64_t row = i / m.cols, col = i % m.cols;
    float g = 0, k = 0;
    if (m.g != nullptr) {
      g = m.g_dtype == Dtype::f32 ? static_cast<const float*>(m.g)[i]
                                  : bf16_to_float(static_cast<const uint16_t*>(m.g)[i]);
      k = m.k[m.along == Along::rows ? row : m.along == Along::columns ? col : 0];
    }
    const float d = combined(m, row, col, g, k);
    const float p = load_weight(m.p, m.weight_store, i);
    store_weight(m.p, m.weight_store, i, updated_weight(rule, p, d), m.offset, key, m.param);
  }
}

}  // namespace

const CombineTable combine_scalar = {blocks_ref};

}  // namespace lowtide::optim
