// SPDX-License-Identifier: Apache-2.0
// Probes and vector algebra on lists of NumPy arrays. bfloat16 arrays are passed as their uint16
// bits.
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/fpenv.h"
#include "bindings.h"
#include "curvature/probe.h"
#include "curvature/vectors.h"

namespace lowtide::bind {
namespace {

using AnyList = std::vector<py::array>;  // float32, or uint16 holding bfloat16
using F32List = std::vector<Array<float>>;
using Params = std::vector<uint32_t>;

Dtype dtype_of(const py::array& a) {
  const bool f32 = py::isinstance<Array<float>>(a), bf16 = py::isinstance<Array<uint16_t>>(a);
  require(f32 || bf16,
          "curvature: arrays must be C-contiguous float32, or uint16 holding bfloat16 bits");
  return f32 ? Dtype::f32 : Dtype::bf16;
}

template <class A, class B>
void check_sizes(const A& xs, const B& ys) {
  require(xs.size() == ys.size(), "curvature: the lists must have equal lengths");
  for (size_t i = 0; i < xs.size(); ++i)
    require(xs[i].size() == ys[i].size(), "curvature: arrays of a pair must have equal sizes");
}

void check_params(size_t arrays, const Params& params) {
  require(arrays == params.size(), "curvature: params must have one entry for each array");
}

std::vector<curvature::SignedTarget> targets(AnyList& xs, const Params& params) {
  check_params(xs.size(), params);
  std::vector<curvature::SignedTarget> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({xs[i].mutable_data(), dtype_of(xs[i]), xs[i].size(), params[i]});
  return list;
}

std::vector<double> sign_dot(const AnyList& xs, uint64_t seed, uint64_t step, uint32_t slot,
                             const Params& params) {
  check_params(xs.size(), params);
  std::vector<curvature::SignedInput> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({xs[i].data(), dtype_of(xs[i]), xs[i].size(), params[i]});
  std::vector<double> out(xs.size());
  py::gil_scoped_release nogil;
  curvature::sign_dot(out.data(), list, {seed, step, slot});
  return out;
}

void sign_axpy(AnyList xs, double scale, uint64_t seed, uint64_t step, uint32_t slot,
               const Params& params) {
  const auto list = targets(xs, params);
  py::gil_scoped_release nogil;
  curvature::sign_axpy(list, to_float_rn(scale), {seed, step, slot});
}

void sign_fill(AnyList xs, double scale, uint64_t seed, uint64_t step, uint32_t slot,
               const Params& params) {
  const auto list = targets(xs, params);
  py::gil_scoped_release nogil;
  curvature::sign_fill(list, to_float_rn(scale), {seed, step, slot});
}

void sign_fma(F32List accs, const AnyList& xs, double a, double b, uint64_t seed, uint64_t step,
              uint32_t slot, const Params& params, bool squared) {
  check_sizes(accs, xs);
  check_params(xs.size(), params);
  std::vector<curvature::SignedPair> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({out(accs[i]), xs[i].data(), dtype_of(xs[i]), xs[i].size(), params[i]});
  py::gil_scoped_release nogil;
  curvature::sign_fma(list, {to_float_rn(a), to_float_rn(b), squared}, {seed, step, slot});
}

std::vector<double> dot(const AnyList& xs, const AnyList& ys) {
  check_sizes(xs, ys);
  std::vector<curvature::DotPair> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({xs[i].data(), ys[i].data(), dtype_of(xs[i]), dtype_of(ys[i]), xs[i].size()});
  std::vector<double> sums(xs.size());
  py::gil_scoped_release nogil;
  curvature::dot(sums.data(), list);
  return sums;
}

void axpby(AnyList ys, double a, const AnyList& xs, double b) {
  check_sizes(ys, xs);
  std::vector<curvature::AxpbyPair> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back(
        {ys[i].mutable_data(), xs[i].data(), dtype_of(ys[i]), dtype_of(xs[i]), xs[i].size()});
  py::gil_scoped_release nogil;
  curvature::axpby(list, to_float_rn(a), to_float_rn(b));
}

std::vector<double> fd_finish(Array<float> plus, const Array<float>& minus, double scale,
                              const std::optional<Array<float>>& q) {
  require(minus.size() == plus.size() && (!q || q->size() == plus.size()),
          "curvature: plus, minus and q must have equal sizes");
  const curvature::Difference d{out(plus), minus.data(), q ? q->data() : nullptr, plus.size(),
                                to_float_rn(scale)};
  std::vector<double> sums(2);
  py::gil_scoped_release nogil;
  curvature::fd_finish(sums.data(), d);
  return sums;
}

}  // namespace

void bind_curvature(py::module_& m) {
  m.def("curvature_sign_dot", &sign_dot, py::arg("xs"), py::arg("seed"), py::arg("step"),
        py::arg("slot"), py::arg("params"), "<z, x> of each array.");
  m.def("curvature_sign_axpy_", &sign_axpy, py::arg("xs"), py::arg("scale"), py::arg("seed"),
        py::arg("step"), py::arg("slot"), py::arg("params"), "x += scale z.");
  m.def("curvature_sign_fill_", &sign_fill, py::arg("xs"), py::arg("scale"), py::arg("seed"),
        py::arg("step"), py::arg("slot"), py::arg("params"), "x = scale z.");
  m.def("curvature_sign_fma_", &sign_fma, py::arg("accs").noconvert(), py::arg("xs"), py::arg("a"),
        py::arg("b"), py::arg("seed"), py::arg("step"), py::arg("slot"), py::arg("params"),
        py::arg("squared"), "acc = a acc + b z x, or a acc + b x x.");
  m.def("curvature_dot", &dot, py::arg("xs"), py::arg("ys"), "<x, y> of each pair.");
  m.def("curvature_axpby_", &axpby, py::arg("ys"), py::arg("a"), py::arg("xs"), py::arg("b"),
        "y = a y + b x.");
  m.def("curvature_fd_finish_", &fd_finish, py::arg("plus").noconvert(),
        py::arg("minus").noconvert(), py::arg("scale"), py::arg("q").noconvert() = py::none(),
        "plus = (plus - minus) scale; |plus|^2 and <plus, q>, or 0.");
}

}  // namespace lowtide::bind
