// SPDX-License-Identifier: Apache-2.0
#include "torch/fwht_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor fwht_forward(const Tensor& x, const std::optional<Tensor>& signs,
                    const std::optional<Tensor>& index, bool columns) {
  const DctMatrix m = line_matrix(x, columns);
  const float* d = signs_of(signs, length_of(m));
  int64_t count = 0;
  const int32_t* at = index_of(index, length_of(m), count);
  Tensor low = torch::stable::new_empty(x, low_shape(m, count), ScalarType::Float);
  lowrank::fwht_forward(f32(low, "low"), m, d, at, count);
  return low;
}

Tensor fwht_inverse(const Tensor& low, const std::optional<Tensor>& signs,
                    const std::optional<Tensor>& index, bool columns, int64_t n) {
  const FromLow f = from_low(low, index, columns, n);
  const float* d = signs_of(signs, n);
  Tensor x = torch::stable::new_empty(low, {f.x.rows, f.x.cols}, ScalarType::Float);
  lowrank::fwht_inverse(f32(x, "x"), f.x.rows, f.x.cols, f.x.lines, f.low, d, f.index, f.count);
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
