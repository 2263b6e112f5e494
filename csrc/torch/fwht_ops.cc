// SPDX-License-Identifier: Apache-2.0
#include "lowrank/fwht.h"
#include "torch/common.h"

namespace lowtide::torch_ops {
namespace {

using lowrank::DctMatrix;
using lowrank::Lines;

DctMatrix matrix(const Tensor& x, bool columns) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2 && x.is_contiguous() &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16),
                  "lowtide: x must be a contiguous 2-D float32 or bfloat16 CPU tensor");
  return {x.const_data_ptr(),
          dtype == ScalarType::Float ? quant::FloatType::f32 : quant::FloatType::bf16, x.size(0),
          x.size(1), columns ? Lines::columns : Lines::rows};
}

const float* signs_of(const std::optional<Tensor>& signs, int64_t n) {
  if (!signs.has_value()) return nullptr;
  const float* p = const_f32(*signs, "signs");
  STD_TORCH_CHECK(
      signs->dim() == 2 && signs->size(0) == lowrank::fwht_spans(n) && signs->size(1) == n,
      "lowtide: signs must be spans x n");
  return p;
}

const int32_t* index_of(const std::optional<Tensor>& index, int64_t n, int64_t& count) {
  count = n;
  if (!index.has_value()) return nullptr;
  check_cpu(*index, ScalarType::Int, "index", "int32");
  count = index->numel();
  static const int32_t nothing = 0;  // null would mean all of them
  return count == 0 ? &nothing : static_cast<const int32_t*>(index->const_data_ptr());
}

Tensor fwht_forward(const Tensor& x, const std::optional<Tensor>& signs,
                    const std::optional<Tensor>& index, bool columns) {
  const DctMatrix m = matrix(x, columns);
  const int64_t n = columns ? m.rows : m.cols;
  const float* d = signs_of(signs, n);
  int64_t count = 0;
  const int32_t* at = index_of(index, n, count);
  Tensor low = columns ? torch::stable::new_empty(x, {count, m.cols}, ScalarType::Float)
                       : torch::stable::new_empty(x, {m.rows, count}, ScalarType::Float);
  lowrank::fwht_forward(f32(low, "low"), m, d, at, count);
  return low;
}

Tensor fwht_inverse(const Tensor& low, const std::optional<Tensor>& signs,
                    const std::optional<Tensor>& index, bool columns, int64_t n) {
  const float* p = const_f32(low, "low");
  STD_TORCH_CHECK(low.dim() == 2, "lowtide: low must have two dimensions");
  const float* d = signs_of(signs, n);
  int64_t count = 0;
  const int32_t* at = index_of(index, n, count);
  STD_TORCH_CHECK(low.size(columns ? 0 : 1) == count, "lowtide: low must have ", count,
                  " coefficients a line");
  const int64_t rows = columns ? n : low.size(0), cols = columns ? low.size(1) : n;
  Tensor x = torch::stable::new_empty(low, {rows, cols}, ScalarType::Float);
  lowrank::fwht_inverse(f32(x, "x"), rows, cols, columns ? Lines::columns : Lines::rows, p, d, at,
                        count);
  return x;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def("fwht_forward(Tensor x, Tensor? signs, Tensor? index, bool columns) -> Tensor");
  m.def("fwht_inverse(Tensor low, Tensor? signs, Tensor? index, bool columns, int n) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("fwht_forward", LT_BOX(&fwht_forward));
  m.impl("fwht_inverse", LT_BOX(&fwht_inverse));
}

}  // namespace lowtide::torch_ops
