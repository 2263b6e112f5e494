// SPDX-License-Identifier: Apache-2.0
// Signs come back to the host, where they are checked and scaled: calls with signs wait for the
// device, others for the first line of a length.
#include "lowrank/fwht_cuda.h"
#include "torch/cuda/device.h"
#include "torch/fwht_args.h"

namespace lowtide::torch_ops {
namespace {

struct Factors {
  std::optional<Tensor> own;  // keeps them
  const float* at;
};

Factors factors_of(int64_t n, const std::optional<Tensor>& signs, const Tensor& like) {
  STD_TORCH_CHECK(n >= 1 && n <= lowrank::cuda::kFwhtMostCuda,
                  "lowtide: hadamard: lines must have 1 to ", lowrank::cuda::kFwhtMostCuda,
                  " values on a CUDA device, got ", n);
  signs_of(signs, n);  // checks the shape
  const int64_t size = lowrank::fwht_spans(n) * n;
  if (!signs.has_value())
    return {std::nullopt, once(like, "fwht", n, size, [n](float* factors) {
              lowrank::make_fwht_factors(factors, n, nullptr);
            })};
  const Tensor given = host(*signs);
  std::vector<float> made(static_cast<size_t>(size));
  lowrank::make_fwht_factors(made.data(), n, static_cast<const float*>(given.const_data_ptr()));
  Tensor own = upload(made.data(), size, ScalarType::Float, like);
  return {own, as<const float>(own)};
}

Tensor fwht_forward(const Tensor& x, const std::optional<Tensor>& signs,
                    const std::optional<Tensor>& index, bool columns) {
  const OnDevice device(x);
  const DctMatrix m = line_matrix(x, columns);
  const Factors factors = factors_of(length_of(m), signs, x);
  int64_t count = 0;
  const int32_t* at = index_of(index, length_of(m), count);
  Tensor low = empty(x, low_shape(m, count), ScalarType::Float);
  check(lowrank::cuda::fwht_forward(as<float>(low), m, factors.at, at, count, device.stream()),
        "fwht_forward");
  return low;
}

Tensor fwht_inverse(const Tensor& low, const std::optional<Tensor>& signs,
                    const std::optional<Tensor>& index, bool columns, int64_t n) {
  const OnDevice device(low);
  const FromLow f = from_low(low, index, columns, n);
  const Factors factors = factors_of(n, signs, low);
  Tensor x = empty(low, {f.x.rows, f.x.cols}, ScalarType::Float);
  check(lowrank::cuda::fwht_inverse(as<float>(x), f.x.rows, f.x.cols, f.x.lines, f.low, factors.at,
                                    f.index, f.count, device.stream()),
        "fwht_inverse");
  return x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("fwht_forward", LT_BOX(&fwht_forward));
  m.impl("fwht_inverse", LT_BOX(&fwht_inverse));
}

}  // namespace lowtide::torch_ops
