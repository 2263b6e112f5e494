// SPDX-License-Identifier: Apache-2.0
// The scalar definition: one element at a time, obviously right, kept for ever as the oracle.
#include "quant/gemv_scalar.h"

namespace lowtide::quant {
namespace {

void rows_ref(const GemvJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.w.shape;
  const int64_t per_row = groups_per_row(s);
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* codes = job.w.codes + row * row_bytes(s);
    float total[kGemvLanes] = {};
    for (int64_t g = row * per_row; g < (row + 1) * per_row; ++g) {
      const GroupSpan at = group_span(s, g);
      const int zero = job.w.zero != nullptr ? job.w.zero[g] : symmetric_zero(s.bits);
      float lane[kGemvLanes] = {};
      for (int64_t k = at.col; k < at.col + padded(at.n); ++k) {
        const int code = k < s.cols ? get_code(codes, k, s.bits) : 0;
        const float w = code_value(code, zero, job.coding, job.levels);
        lane[k % kGemvLanes] = fma_rn(job.x[k], w, lane[k % kGemvLanes]);
      }
      for (int l = 0; l < kGemvLanes; ++l) total[l] = fma_rn(job.w.scale[g], lane[l], total[l]);
    }
    job.y[row] = lane_tree(total);
  }
}

}  // namespace

const GemvTable gemv_scalar = {rows_ref};

}  // namespace lowtide::quant
