// SPDX-License-Identifier: Apache-2.0
#include "curvature/vectors_cuda.h"
#include "torch/cuda/device.h"
#include "torch/curvature_vectors_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor dot(const Tensors& xs, const Tensors& ys) {
  const OnDevice device(xs);
  const auto list = dot_pairs(xs, ys);
  Tensor out = doubles(xs[0], static_cast<int64_t>(xs.size()));
  const Tensor scratch = doubles(xs[0], curvature::cuda::dot_scratch(list));
  check(curvature::cuda::dot(as<double>(out), list, as<double>(scratch), device.stream()),
        "curvature_dot");
  return out;
}

void axpby(const Tensors& ys, double a, const Tensors& xs, double b) {
  const OnDevice device(ys);
  const auto list = axpby_pairs(ys, xs);
  curvature::check_apart(list);
  check(curvature::cuda::axpby(list, to_float_rn(a), to_float_rn(b), device.stream()),
        "curvature_axpby_");
}

Tensor fd_finish(const Tensor& plus, const Tensor& minus, double scale,
                 const std::optional<Tensor>& q) {
  const OnDevice device(plus);
  const curvature::Difference d = difference_of(plus, minus, scale, q);
  curvature::check_apart(d);
  Tensor out = doubles(plus, 2);
  const Tensor scratch = doubles(plus, curvature::cuda::fd_finish_scratch(d.n));
  check(curvature::cuda::fd_finish(as<double>(out), d, as<double>(scratch), device.stream()),
        "curvature_fd_finish_");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("curvature_dot", LT_BOX(&dot));
  m.impl("curvature_axpby_", LT_BOX(&axpby));
  m.impl("curvature_fd_finish_", LT_BOX(&fd_finish));
}

}  // namespace lowtide::torch_ops
