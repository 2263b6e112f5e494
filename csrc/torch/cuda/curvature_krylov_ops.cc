// SPDX-License-Identifier: Apache-2.0
// Gram-Schmidt and the step of Lanczos from their halves. A projection brings its coefficients to
// the host once, where it is decided whether a second pass is needed; the step of Lanczos waits for
// nothing.
#include <algorithm>
#include <vector>

#include "curvature/krylov_cuda.h"
#include "torch/cuda/device.h"
#include "torch/curvature_krylov_args.h"

namespace lowtide::torch_ops {
namespace {

using curvature::Basis;

Basis one_row(const float* x, int64_t n) { return {x, nullptr, curvature::BasisType::f32, 1, n}; }

// What one op does with a vector w of n elements.
class Vector {
 public:
  Vector(float* w, int64_t n, int64_t most_rows, const Tensor& like, const OnDevice& device)
      : w_(w),
        n_(n),
        scratch_(doubles(like, curvature::cuda::basis_dots_scratch(most_rows, n))),
        stream_(device.stream()) {}

  void dots(double* c, const Basis& q) const {
    check(curvature::cuda::basis_dots(c, q, w_, as<double>(scratch_), stream_), "krylov");
  }
  void norm2(double* c) const { dots(c, one_row(w_, n_)); }
  void subtract(const Basis& q, const double* c) const {
    check(curvature::cuda::basis_subtract(w_, q, c, stream_), "krylov");
  }

 private:
  float* w_;
  int64_t n_;
  Tensor scratch_;
  void* stream_;
};

// The coefficients, then: norm^2 before, norm^2 after, what is left^2, passes.
Tensor project(const Tensor& w, const Tensor& basis, const std::optional<Tensor>& scale,
               double again) {
  const OnDevice device(w);
  const Basis q = basis_of(basis, scale);
  const Vector x(projected(w, q, again), q.n, std::max<int64_t>(q.rows, 1), w, device);
  const int64_t m = q.rows;
  // Coefficients and the square of the norm, of the first pass and after it.
  const Tensor sums = doubles(w, 2 * (m + 1));
  auto *first = as<double>(sums), *second = first + m + 1;
  x.dots(first, q), x.norm2(first + m);
  x.subtract(q, first);
  x.dots(second, q), x.norm2(second + m);
  const Tensor known = host(sums);
  const auto* a = static_cast<const double*>(known.const_data_ptr());
  const auto* b = a + m + 1;
  std::vector<double> out(a, a + m);
  double left = 0, after = b[m], passes = 1;
  for (int64_t i = 0; i < m; ++i) left += b[i] * b[i];
  if (left > again * again * after) {
    x.subtract(q, second);
    x.norm2(second + m);
    for (int64_t i = 0; i < m; ++i) out[static_cast<size_t>(i)] += b[i];
    const Tensor rest = host(sums);
    after = static_cast<const double*>(rest.const_data_ptr())[2 * m + 1];
    passes = 2;
  }
  for (double value : {a[m], after, left, passes}) out.push_back(value);
  return upload(out.data(), m + 4, ScalarType::Double, w);
}

Tensor lanczos_step(const Tensor& w, const Tensor& q, const std::optional<Tensor>& previous,
                    double beta) {
  const OnDevice device(w);
  const Lanczos l = lanczos_of(w, q, previous);
  const Vector x(l.w, l.n, 1, w, device);
  if (l.previous != nullptr) {
    const Tensor b = upload(&beta, 1, ScalarType::Double, w);
    x.subtract(one_row(l.previous, l.n), as<const double>(b));
  }
  Tensor out = doubles(w, 2);
  auto* numbers = as<double>(out);
  x.dots(numbers, one_row(l.q, l.n));
  x.subtract(one_row(l.q, l.n), numbers);
  x.norm2(numbers + 1);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("curvature_project_", LT_BOX(&project));
  m.impl("curvature_lanczos_step_", LT_BOX(&lanczos_step));
}

}  // namespace lowtide::torch_ops
