// SPDX-License-Identifier: Apache-2.0
// The first line of a length waits for its table; that an index ascends is not checked.
#include "lowrank/dct_cuda.h"
#include "torch/cuda/device.h"
#include "torch/line_args.h"

namespace lowtide::torch_ops {
namespace {

const float* table_of(int64_t n, const Tensor& like) {
  STD_TORCH_CHECK(n >= 1 && n <= lowrank::cuda::kDctMostCuda, "lowtide: dct: lines must have 1 to ",
                  lowrank::cuda::kDctMostCuda, " values on a CUDA device, got ", n);
  return once(like, "dct", n, lowrank::dct_table_size(n),
              [n](float* table) { lowrank::make_dct_table(table, n); });
}

Tensor dct_forward(const Tensor& x, const std::optional<Tensor>& index, bool columns) {
  const OnDevice device(x);
  const DctMatrix m = line_matrix(x, columns);
  int64_t count = 0;
  const int32_t* at = index_of(index, length_of(m), count);
  const float* table = table_of(length_of(m), x);
  Tensor low = empty(x, low_shape(m, count), ScalarType::Float);
  check(lowrank::cuda::dct_forward(as<float>(low), m, at, count, table, device.stream()),
        "dct_forward");
  return low;
}

Tensor dct_inverse(const Tensor& low, const std::optional<Tensor>& index, bool columns, int64_t n) {
  const OnDevice device(low);
  const FromLow f = from_low(low, index, columns, n);
  const float* table = table_of(n, low);
  Tensor x = empty(low, {f.x.rows, f.x.cols}, ScalarType::Float);
  check(lowrank::cuda::dct_inverse(as<float>(x), f.x.rows, f.x.cols, f.x.lines, f.low, f.index,
                                   f.count, table, device.stream()),
        "dct_inverse");
  return x;
}

Tensor dct_power(const Tensor& x, bool columns, bool square) {
  const OnDevice device(x);
  const DctMatrix m = line_matrix(x, columns);
  const float* table = table_of(length_of(m), x);
  Tensor sums = floats(x, length_of(m));
  const Tensor scratch = floats(x, lowrank::cuda::dct_power_scratch(m.rows, m.cols, m.lines));
  check(lowrank::cuda::dct_power(as<float>(sums), m,
                                 square ? lowrank::Power::square : lowrank::Power::magnitude, table,
                                 as<float>(scratch), device.stream()),
        "dct_power");
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("dct_forward", LT_BOX(&dct_forward));
  m.impl("dct_inverse", LT_BOX(&dct_inverse));
  m.impl("dct_power", LT_BOX(&dct_power));
}

}  // namespace lowtide::torch_ops
