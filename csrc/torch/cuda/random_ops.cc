// SPDX-License-Identifier: Apache-2.0
#include "base/fpenv.h"
#include "random/stream_cuda.h"
#include "torch/cuda/device.h"
#include "torch/random_args.h"

namespace lowtide::torch_ops {
namespace {

using random::Dist;

void random_sample(const Tensor& out, int64_t seed, int64_t step, int64_t slot, int64_t param,
                   int64_t role, int64_t offset, int64_t dist) {
  const OnDevice device(out);
  check(random::cuda::sample(f32(out, "out"), out.numel(), offset,
                             stream(seed, step, slot, param, role), static_cast<Dist>(dist),
                             device.stream()),
        "random_sample");
}

void random_add(const Tensor& x, double scale, int64_t seed, int64_t step, int64_t slot,
                int64_t param, int64_t role, int64_t offset, int64_t dist) {
  const OnDevice device(x);
  check(random::cuda::add_scaled(f32(x, "x"), to_float_rn(scale), x.numel(), offset,
                                 stream(seed, step, slot, param, role), static_cast<Dist>(dist),
                                 device.stream()),
        "random_add_");
}

void random_add_list(const std::vector<Tensor>& xs, double scale, int64_t seed, int64_t step,
                     int64_t slot, const std::vector<int64_t>& params, int64_t role, int64_t dist) {
  STD_TORCH_CHECK(xs.size() == params.size(), "lowtide: xs and params must have equal lengths");
  const OnDevice device(xs);
  for (const auto& x : xs) f32(x, "xs");  // all checked before any is changed
  for (size_t i = 0; i < xs.size(); ++i)
    random_add(xs[i], scale, seed, step, slot, params[i], role, 0, dist);
}

Tensor random_dot(const Tensor& x, int64_t seed, int64_t step, int64_t slot, int64_t param,
                  int64_t role, int64_t offset, int64_t dist) {
  const OnDevice device(x);
  const float* p = const_f32(x, "x");
  Tensor out = empty(x, {}, ScalarType::Double);
  const Tensor scratch = doubles(x, random::cuda::dot_scratch(x.numel()));
  check(random::cuda::dot(as<double>(out), p, x.numel(), offset,
                          stream(seed, step, slot, param, role), static_cast<Dist>(dist),
                          as<double>(scratch), device.stream()),
        "random_dot");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("random_sample", LT_BOX(&random_sample));
  m.impl("random_add_", LT_BOX(&random_add));
  m.impl("random_add_list_", LT_BOX(&random_add_list));
  m.impl("random_dot", LT_BOX(&random_dot));
}

}  // namespace lowtide::torch_ops
