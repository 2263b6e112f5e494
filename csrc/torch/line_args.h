// SPDX-License-Identifier: Apache-2.0
// Matrices whose lines are transformed, and which coefficients of them.
#pragma once
#include <vector>

#include "lowrank/dct.h"
#include "torch/common.h"

namespace lowtide::torch_ops {

using lowrank::DctMatrix;
using lowrank::Lines;

inline DctMatrix line_matrix(const Tensor& x, bool columns) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(is_here(x) && x.dim() == 2 && x.is_contiguous() &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16),
                  "lowtide: x must be a contiguous 2-D float32 or bfloat16 ", kHere, " tensor");
  return {const_data(x),
          dtype == ScalarType::Float ? quant::FloatType::f32 : quant::FloatType::bf16, x.size(0),
          x.size(1), columns ? Lines::columns : Lines::rows};
}

inline const int32_t* index_of(const std::optional<Tensor>& index, int64_t n, int64_t& count) {
  count = n;
  if (!index.has_value()) return nullptr;
  const int32_t* at = const_i32(*index, "index");
  count = index->numel();
  static const int32_t nothing = 0;  // null would mean all of them
  return count == 0 ? &nothing : at;
}

inline int64_t length_of(const DctMatrix& x) { return x.lines == Lines::columns ? x.rows : x.cols; }

// Where `count` coefficients of each line of x go.
inline std::vector<int64_t> low_shape(const DctMatrix& x, int64_t count) {
  if (x.lines == Lines::columns) return {count, x.cols};
  return {x.rows, count};
}

// The matrix whose lines have the coefficients `low`, its data still missing, and their index.
struct FromLow {
  DctMatrix x;
  const float* low;
  const int32_t* index;
  int64_t count;
};
inline FromLow from_low(const Tensor& low, const std::optional<Tensor>& index, bool columns,
                        int64_t n) {
  FromLow f;
  f.low = const_f32(low, "low");
  STD_TORCH_CHECK(low.dim() == 2, "lowtide: low must have two dimensions");
  f.index = index_of(index, n, f.count);
  STD_TORCH_CHECK(low.size(columns ? 0 : 1) == f.count, "lowtide: low must have ", f.count,
                  " coefficients a line");
  f.x = {nullptr, quant::FloatType::f32, columns ? n : low.size(0), columns ? low.size(1) : n,
         columns ? Lines::columns : Lines::rows};
  return f;
}

}  // namespace lowtide::torch_ops
