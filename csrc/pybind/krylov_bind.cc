// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <utility>

#include "base/error.h"
#include "bindings.h"
#include "curvature/krylov.h"
#include "curvature/krylov_order.h"

namespace lowtide::bind {
namespace {

using curvature::Basis;
using curvature::BasisType;

Basis basis_of(const py::array& data, const std::optional<Array<float>>& scale) {
  const bool f32 = py::isinstance<Array<float>>(data), bf16 = py::isinstance<Array<uint16_t>>(data);
  require(
      data.ndim() == 2 && (f32 || bf16 || py::isinstance<Array<uint8_t>>(data)),
      "curvature: basis must be a C-contiguous matrix of float32, uint16 holding bfloat16 bits, "
      "or uint8");
  require(scale.has_value() == !(f32 || bf16), "curvature: a uint8 basis has scales, others none");
  Basis q{data.data(), nullptr,
          f32    ? BasisType::f32
          : bf16 ? BasisType::bf16
                 : BasisType::int8,
          data.shape(0), data.shape(1)};
  if (scale) {
    require(scale->ndim() == 2 && scale->shape(0) == q.rows &&
                scale->shape(1) == curvature::krylov_groups(q.n),
            "curvature: scale must have one number for each 256 elements of each row");
    q.scale = scale->data();
  }
  return q;
}

std::tuple<std::vector<double>, double, double, int> project(
    Array<float> w, const py::array& basis, const std::optional<Array<float>>& scale,
    double again) {
  const Basis q = basis_of(basis, scale);
  require(w.size() == q.n, "curvature: w must have as many elements as a row of the basis");
  float* x = out(w);
  std::vector<double> c(static_cast<size_t>(q.rows));
  py::gil_scoped_release nogil;
  const curvature::Projection p = curvature::project(c.data(), q, x, again);
  return {std::move(c), p.before, p.after, p.passes};
}

std::pair<double, double> lanczos_step(Array<float> w, const Array<float>& q,
                                       const std::optional<Array<float>>& previous, double beta) {
  require(q.size() == w.size() && (!previous || previous->size() == w.size()),
          "curvature: w, q and previous must have equal sizes");
  float* x = out(w);
  const float *now = q.data(), *before = previous ? previous->data() : nullptr;
  const int64_t n = w.size();
  py::gil_scoped_release nogil;
  const curvature::LanczosStep s = curvature::lanczos_step(x, now, before, beta, n);
  return {s.alpha, s.norm2};
}

}  // namespace

void bind_krylov(py::module_& m) {
  m.def("curvature_project_", &project, py::arg("w").noconvert(), py::arg("basis"),
        py::arg("scale").noconvert(), py::arg("again"),
        "w -= Q' Q w, perhaps twice; Q w, |w|^2 before and after, and how often.");
  m.def("curvature_lanczos_step_", &lanczos_step, py::arg("w").noconvert(),
        py::arg("q").noconvert(), py::arg("previous").noconvert(), py::arg("beta"),
        "w -= beta previous; alpha = <w, q>; w -= alpha q; alpha and |w|^2.");
}

}  // namespace lowtide::bind
