// SPDX-License-Identifier: Apache-2.0
#include "torch/line_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor dct_forward(const Tensor& x, const std::optional<Tensor>& index, bool columns) {
  const DctMatrix m = line_matrix(x, columns);
  int64_t count = 0;
  const int32_t* at = index_of(index, length_of(m), count);
  Tensor low = torch::stable::new_empty(x, low_shape(m, count), ScalarType::Float);
  lowrank::dct_forward(f32(low, "low"), m, at, count);
  return low;
}

Tensor dct_inverse(const Tensor& low, const std::optional<Tensor>& index, bool columns, int64_t n) {
  const FromLow f = from_low(low, index, columns, n);
  Tensor x = torch::stable::new_empty(low, {f.x.rows, f.x.cols}, ScalarType::Float);
  lowrank::dct_inverse(f32(x, "x"), f.x.rows, f.x.cols, f.x.lines, f.low, f.index, f.count);
  return x;
}

Tensor dct_power(const Tensor& x, bool columns, bool square) {
  const DctMatrix m = line_matrix(x, columns);
  Tensor sums = torch::stable::new_empty(x, {length_of(m)}, ScalarType::Float);
  lowrank::dct_power(f32(sums, "sums"), m,
                     square ? lowrank::Power::square : lowrank::Power::magnitude);
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def("dct_forward(Tensor x, Tensor? index, bool columns) -> Tensor");
  m.def("dct_inverse(Tensor low, Tensor? index, bool columns, int n) -> Tensor");
  m.def("dct_power(Tensor x, bool columns, bool square) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("dct_forward", LT_BOX(&dct_forward));
  m.impl("dct_inverse", LT_BOX(&dct_inverse));
  m.impl("dct_power", LT_BOX(&dct_power));
}

}  // namespace lowtide::torch_ops
